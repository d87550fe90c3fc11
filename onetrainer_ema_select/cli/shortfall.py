"""What `inspect` says a set falls short of: by rounding to 16 bits, and by averaging a LoRA's factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onetrainer_ema_select.backups import Backup, open_backup
from onetrainer_ema_select.choices import SaveRounding, WeightSet
from onetrainer_ema_select.cli.distances import progress
from onetrainer_ema_select.cli.table import number, wrapped
from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.lora_product import DOWN, ProductGap, product_gap
from onetrainer_ema_select.manifest import read_manifest
from onetrainer_ema_select.rounding import SIXTEEN_BITS, run_rounding
from onetrainer_ema_select.rounding_loss import RoundingLoss, measure_rounding
from onetrainer_ema_select.tensor_set import TensorSet
from onetrainer_ema_select.workspace import BACKUP_FOLDER, MILESTONE_FOLDER, folders_in

# OneTrainer's names, None for the weights' own; in others no file is rounded here.
_DTYPES: Mapping[str, torch.dtype | None] = {
    "BFLOAT_16": torch.bfloat16,
    "FLOAT_16": torch.float16,
    "NONE": None,
}

# Below this share of the difference the nearest loses more than noise can.
_MOST = 0.9


@dataclass(frozen=True)
class Rounded:
    """What rounding to 16 bits takes from an average.

    Attributes:
        measured: The figures.
        rounding: How the file is rounded, or a save of the run is.
        source: The backup with the average in 32 bits; None where that is what is inspected.
    """

    measured: RoundingLoss
    rounding: SaveRounding
    source: Path | None = None

    @property
    def dtype(self) -> str:
        """Torch's name of the file's dtype; of several, all."""
        return " and ".join(sorted(str(one).removeprefix("torch.") for one in self.measured.dtypes))


def backup_rounding(backup: Backup, pairs: Iterable[tuple[str, str]]) -> Rounded | None:
    """What a save of the run takes from the average in its backup; None where it takes nothing, or nothing says.

    Args:
        backup: With both sets.
        pairs: A name in the EMA and one in the non-EMA set.

    Raises:
        StoreError: If a tensor cannot be read.
    """
    config = backup.config or {}
    dtype = str(config.get("output_dtype"))
    if dtype not in _DTYPES:
        return None
    return _measured(backup, pairs, _DTYPES[dtype], run_rounding(config), source=None)


def model_rounding(path: Path, ours: Mapping[str, str], dtypes: Iterable[str]) -> Rounded | None:
    """What rounding has taken from the average in a saved model, by a backup of its step in the same workspace.

    Args:
        path: The model.
        ours: The plugin's keys of its header, without their prefix.
        dtypes: Torch's names of its dtypes, the most frequent first.

    Returns:
        None where it is no EMA of 16 bits, or there is no such backup.
    """
    most = getattr(torch, next(iter(dtypes), ""), None)
    if ours.get("set") != str(WeightSet.EMA) or most not in SIXTEEN_BITS:
        return None
    random = ours.get("rounding") == str(SaveRounding.STOCHASTIC)
    rounding = SaveRounding.STOCHASTIC if random else SaveRounding.NEAREST
    for folder in _backups_around(path):
        try:
            manifest = read_manifest(folder)
            if manifest is None or (manifest.run, str(manifest.step)) != (ours.get("run"), ours.get("step")):
                continue
            with open_backup(folder) as backup:
                live = backup.sets[WeightSet.NON_EMA]
                pairs = [(name, name) for name in backup.sets.get(WeightSet.EMA, TensorSet({})) if name in live]
                if found := _measured(backup, pairs, most, rounding, source=folder):
                    return found
        except EmaSelectError:
            continue  # a backup that cannot be read is no news about the model
    return None


def lora_gap(backup: Backup) -> ProductGap | None:
    """How far the average of a LoRA's factors is from the average of their product; None where there is no LoRA.

    Raises:
        StoreError: If a tensor cannot be read.
    """
    average, live = backup.sets[WeightSet.EMA], backup.sets[WeightSet.NON_EMA]
    alphas = {
        name: f"lora.{place.key.removesuffix(DOWN)}.alpha"
        for name, place in backup.places.items()
        if name.endswith(DOWN)
    }
    return product_gap(average, live, alphas=alphas)


def rounding_lines(rounded: Rounded) -> list[str]:
    """For people, of 80 columns."""
    measured = rounded.measured
    if measured.lost is None:
        return []
    random = rounded.rounding is SaveRounding.STOCHASTIC
    of_this = "its file is" if rounded.source is not None else "saves of this run are"
    said = [
        f"to the nearest{'' if random else f', as {of_this}'}: an error of {number(measured.lost)} of that distance; "
        f"{number(measured.left)} of the difference is left, and {_percent(measured.same_share)} of the weights that "
        "differ become the same",
        f"stochastic{f', as {of_this}' if random else ''}: an error of {number(measured.noise)}; all of the difference "
        "is left on average",
        f"float32 (export --dtype FLOAT_32; output_dtype): none; where it has to be 16 bits, {_better(measured)}",
    ]
    lines = wrapped(f"What rounding the EMA to {rounded.dtype} takes, beside the distance between the two sets:")
    lines += [line for text in said for line in wrapped(text, indent="  ")]
    if rounded.source is not None:
        lines += wrapped(f"Measured in the backup of the same step: {rounded.source.name}", indent="  ")
    return lines


def _better(measured: RoundingLoss) -> str:
    if measured.left is not None and measured.left < _MOST:
        return "stochastic (save_rounding; export --rounding) keeps what the nearest loses"
    return "the nearest is closer here"


def gap_lines(gap: ProductGap) -> list[str]:
    """For people, of 80 columns."""
    lines = []
    if gap.of_distance is not None and gap.of_ema is not None:
        lines += wrapped(
            "LoRA: the EMA averages its two factors, not their product. As far as this backup can tell, that leaves "
            f"out about {_percent(gap.of_distance)} of the distance between the two sets, and "
            f"{_percent(gap.of_ema)} of what the EMA adds to the model."
        )
    if gap.others:
        lines += wrapped(
            "How far the average of a LoHa's, LoKr's or OFT's factors is from the average of what they add is not "
            "computed."
        )
    return lines


def rounding_json(rounded: Rounded | None) -> dict[str, Any] | None:
    """For programs; see docs/json.md."""
    if rounded is None:
        return None
    measured = rounded.measured
    return {
        "dtype": rounded.dtype,
        "rounding": str(rounded.rounding),
        "elements": measured.elements,
        "error_nearest": measured.lost,
        "error_stochastic": measured.noise,
        "left_nearest": measured.left,
        "same_nearest": measured.same_share,
        "backup": None if rounded.source is None else rounded.source.absolute(),
    }


def gap_json(gap: ProductGap | None) -> dict[str, Any] | None:
    """For programs; see docs/json.md."""
    if gap is None:
        return None
    return {
        "layers": gap.layers,
        "other_layers": gap.others,
        "of_distance": gap.of_distance,
        "of_ema": gap.of_ema,
    }


def _measured(
    backup: Backup,
    pairs: Iterable[tuple[str, str]],
    dtype: torch.dtype | None,
    rounding: SaveRounding,
    *,
    source: Path | None,
) -> Rounded | None:
    average, live = backup.sets.get(WeightSet.EMA), backup.sets.get(WeightSet.NON_EMA)
    if average is None or live is None:
        return None
    with progress(2 * average.nbytes, "rounding") as advance:
        found = measure_rounding(average, live, pairs, dtype=dtype, advance=advance)
    return None if found is None else Rounded(found, rounding, source)


def _backups_around(path: Path) -> Iterable[Path]:
    """Backups of the workspace that a save lies in."""
    for workspace in path.absolute().parents[:3]:
        for folder in (BACKUP_FOLDER, MILESTONE_FOLDER):
            yield from folders_in(workspace / folder)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.3g} %"
