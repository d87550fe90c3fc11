"""What `inspect` finds out about a backup or model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.average_length import average_of, run_steps
from onetrainer_ema_select.backups import Backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.cli.distances import UNNAMED, Measured, measure, open_named, progress
from onetrainer_ema_select.cli.shortfall import Rounded, backup_rounding, lora_gap, model_rounding
from onetrainer_ema_select.comparison import Count, count
from onetrainer_ema_select.errors import EmaSelectError, NamesError
from onetrainer_ema_select.length import Average
from onetrainer_ema_select.lora_product import ProductGap
from onetrainer_ema_select.manifest import FOLDER, PostHocRecord
from onetrainer_ema_select.model_kinds import PARKED, Kind, backup_kind, kind_of, snapshot_kind
from onetrainer_ema_select.models import open_model
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.recognise import is_backup, is_parked, is_snapshot
from onetrainer_ema_select.snapshots import Snapshot, read_snapshot
from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import TensorSet
from onetrainer_ema_select.validation import ValidationRecord
from onetrainer_ema_select.workspace import leg_text, partner_of, save_metadata, size_of

_OURS = f"{FOLDER}."
_EXAMPLES = 5


@dataclass(frozen=True)
class SetReport:
    """One set: `name` is `ema`, `non-ema`, `post-hoc`, or empty for a model that does not say which it is."""

    name: str
    tensors: int
    elements: int
    size_bytes: int
    dtypes: Mapping[str, int]
    nan: int
    inf: int


@dataclass(frozen=True)
class EmaReport:
    """How an average was made; None for what nothing says.

    Attributes:
        decay: Of an update.
        update_step_interval: Optimizer steps from one update to the next.
        updates: So far.
        precision: As in the settings.
        average: What its length comes from.
        step: Steps done.
        run_steps: Steps of the whole run.
        age: In half-lives, of one that began with a half-life.
    """

    decay: float | None
    update_step_interval: int | None
    updates: int | None
    precision: str
    average: Average | None = None
    step: int = 0
    run_steps: int | None = None
    age: float | None = None

    @property
    def half_life_steps(self) -> float | None:
        """Optimizer steps after which a weight counts half in the average: ln 2 / -ln(decay), times the interval."""
        if self.decay is None or self.update_step_interval is None or not 0 < self.decay < 1:
            return None
        return math.log(2) / -math.log(self.decay) * self.update_step_interval


@dataclass(frozen=True)
class Report:
    """All that `inspect` tells.

    Attributes:
        path: What was inspected.
        kind: What it is, and is good for.
        size_bytes: On the disk.
        sets: What it holds.
        ema: How its average was made, if it is or holds one.
        provenance: Where it comes from, as key and text; empty texts are left out.
        metadata: Of a file's header, without the plugin's own keys.
        examples: Some names of tensors.
        between: The two sides of `distance`.
        distance: How far the two sets, or the model and its partner, are apart.
        distance_problem: Why there is no distance, though there are two sets; else empty.
        partner: Of a saved model, the other set of the same moment.
        validation: Of a backup, the losses of both sets at the last validation before it.
        rounded: What rounding to 16 bits takes from its EMA, where that is so and can be told.
        gap: What averaging the factors of a LoRA leaves out, of a backup of one.
    """

    path: Path
    kind: Kind
    size_bytes: int
    sets: tuple[SetReport, ...]
    ema: EmaReport | None
    provenance: Mapping[str, str]
    metadata: Mapping[str, str]
    examples: tuple[str, ...]
    between: tuple[str, str] = ("", "")
    distance: Measured | None = None
    distance_problem: str = ""
    partner: Path | None = None
    validation: ValidationRecord | None = None
    rounded: Rounded | None = None
    gap: ProductGap | None = None


def inspect_path(path: Path, *, onetrainer: Path | None) -> Report:
    """Find out all about a backup or model; reads every tensor.

    Raises:
        EmaSelectError: If it cannot be opened or read.
    """
    if path.is_dir() and (is_backup(path) or is_parked(path)):
        return _backup_report(open_named(path, onetrainer))
    if path.is_dir() and is_snapshot(path):
        return _snapshot_report(read_snapshot(path))
    return _model_report(path)


def _backup_report(backup: Backup) -> Report:
    ema, live = backup.sets.get(WeightSet.EMA), backup.sets.get(WeightSet.NON_EMA)
    distance, problem = None, ""
    counts: dict[WeightSet, Count] = {}
    if ema is not None and live is not None:
        if not backup.named:
            problem = f"{UNNAMED} add --onetrainer DIR."
        else:
            try:
                distance = measure(ema, live, called=("its EMA", "its non-EMA set"), exact=True)
            except NamesError:
                problem = (
                    "None of its EMA's weights could be found among its model files with certainty, so its two sets "
                    f"cannot be compared here. Export both and compare the models: {PACKAGE} compare"
                )
    rounded, gap = None, None
    if distance is not None:
        rounded, gap = backup_rounding(backup, distance.match.pairs), lora_gap(backup)
        counts = {WeightSet.EMA: distance.nan_inf[0], WeightSet.NON_EMA: distance.nan_inf[1]}
    return Report(
        path=backup.path,
        kind=PARKED if live is None else backup_kind(backup.path, ema=ema is not None),
        size_bytes=size_of(backup.path),
        sets=tuple(_set_report(set_suffix(one), tensors, counts.get(one)) for one, tensors in backup.sets.items()),
        ema=None if ema is None else _backup_ema(backup),
        provenance=_backup_provenance(backup),
        metadata={},
        examples=(live or ema or TensorSet({})).names[:_EXAMPLES],
        between=("ema", "non-ema"),
        distance=distance,
        distance_problem=problem,
        validation=backup.manifest.validation if backup.manifest is not None else None,
        rounded=rounded,
        gap=gap,
    )


def _snapshot_report(snapshot: Snapshot) -> Report:
    manifest, record = snapshot.manifest, snapshot.record
    sets = {
        f"post-hoc {track.sigma_rel:g}": TensorSet(read_safetensors(snapshot.file(track))[0]) for track in record.tracks
    }
    lengths = ", ".join(f"{track.sigma_rel:g}" for track in record.tracks)
    said = {
        "sigma_rel": lengths,
        "step": str(manifest.step),
        "epoch": str(manifest.epoch),
        "epoch_step": str(manifest.epoch_step),
        "images": f"{record.images:g}",
        "updates": str(record.updates),
        "update_step_interval": str(record.update_step_interval),
        "precision": record.dtype,
        "model_type": manifest.model_type,
        "training_method": manifest.training_method,
        "run": manifest.run,
        "leg": leg_text(manifest.leg),
        "created": manifest.created,
        "plugin_version": manifest.plugin_version,
        "onetrainer_commit": manifest.onetrainer_commit,
    }
    return Report(
        path=snapshot.path,
        kind=snapshot_kind(snapshot.path.absolute()),
        size_bytes=size_of(snapshot.path),
        sets=tuple(_set_report(name, tensors, None) for name, tensors in sets.items()),
        ema=None,
        provenance={key: value for key, value in said.items() if value},
        metadata={},
        examples=next(iter(sets.values()), TensorSet({})).names[:_EXAMPLES],
    )


def _backup_ema(backup: Backup) -> EmaReport:
    record = backup.manifest.ema if backup.manifest is not None else None
    progress = {"global_step": backup.step, "epoch": backup.epoch, "epoch_step": backup.epoch_step}
    average = average_of(record, backup.config, decay=backup.decay, progress=progress)
    run = None if average is None else run_steps(average, backup.config)
    if record is not None:
        return EmaReport(
            record.decay,
            record.update_step_interval,
            record.updates,
            record.dtype,
            average,
            record.step,
            run,
            record.age,
        )
    interval = (backup.config or {}).get("ema_update_step_interval")
    return EmaReport(backup.decay, interval if isinstance(interval, int) else None, None, "", average, backup.step, run)


def _backup_provenance(backup: Backup) -> dict[str, str]:
    said = {
        "step": str(backup.step),
        "epoch": str(backup.epoch),
        "epoch_step": str(backup.epoch_step),
        "model_type": backup.model_type,
        "training_method": backup.training_method,
    }
    if (manifest := backup.manifest) is not None:
        said |= {
            "run": manifest.run,
            "leg": leg_text(manifest.leg) if manifest.kind == "backup" else "",
            "milestone": ", ".join(manifest.milestones),
            "post_hoc": _tracks_text(manifest.post_hoc),
            "created": manifest.created,
            "plugin_version": manifest.plugin_version,
            "onetrainer_commit": manifest.onetrainer_commit,
        }
    return {key: value for key, value in said.items() if value}


def _tracks_text(record: PostHocRecord | None) -> str:
    """The post-hoc tracks that a backup goes on from; empty where it has none."""
    if record is None:
        return ""
    return f"tracks of sigma_rel {', '.join(f'{track.sigma_rel:g}' for track in record.tracks)}"


def _model_report(path: Path) -> Report:
    model = open_model(path)
    ours = {key.removeprefix(_OURS): text for key, text in model.metadata.items() if key.startswith(_OURS)}
    own = ours.get("set", "").lower().replace("_", "-")
    partner = partner_of(path, save_metadata(path))
    distance, problem, counted = None, "", None
    between = own or "this", "its partner"
    if partner is not None:
        try:
            other = open_model(partner)
            distance = measure(model.tensors, other.tensors, called=(str(path), str(partner)))
            counted = distance.nan_inf[0]
        except EmaSelectError as error:
            problem = str(error)
    ema = None
    if ours.get("decay"):
        ema = _model_ema(ours)
    told = ("sigma_rel", "fit_error", "run", "step", "epoch", "epoch_step", "leg", "milestone", "rounding", "version")
    provenance = {("plugin_version" if key == "version" else key): ours[key] for key in told if ours.get(key)}
    held = _set_report(own, model.tensors, counted)
    return Report(
        path=path,
        kind=kind_of(path, model.tensors.names),
        size_bytes=size_of(path),
        sets=(held,),
        ema=ema,
        provenance=provenance,
        metadata={key: text for key, text in model.metadata.items() if not key.startswith(_OURS)},
        examples=model.tensors.names[:_EXAMPLES],
        between=between,
        distance=distance,
        distance_problem=problem,
        partner=partner,
        rounded=model_rounding(path, ours, held.dtypes),
    )


def _model_ema(ours: Mapping[str, str]) -> EmaReport:
    """How the average in a saved model was made, as its header says."""

    def whole(key: str) -> int | None:
        return None if (value := _number(ours.get(key))) is None else int(value)

    decay, interval, step = _number(ours.get("decay")), whole("update_step_interval"), whole("step") or 0
    average = None
    if decay is not None and interval is not None and interval > 0:
        average = Average(
            decay,
            interval,
            typed=ours.get("half_life", ""),
            accumulation=max(whole("accumulation") or 1, 1),
            images_per_step=whole("images_per_step"),
            steps_per_epoch=whole("steps_per_epoch"),
        )
    return EmaReport(decay, interval, whole("updates"), ours.get("precision", ""), average, step)


def _set_report(name: str, tensors: TensorSet, counted: Count | None) -> SetReport:
    if counted is None:
        with progress(tensors.nbytes, "reading") as advance:
            counted = count(tensors, tensors.names, advance=advance)
    dtypes: Counter[str] = Counter()
    for one in tensors:
        dtypes[tensors.dtype_name(one)] += tensors.numel(one)
    return SetReport(
        name=name,
        tensors=len(tensors),
        elements=tensors.elements,
        size_bytes=tensors.nbytes,
        dtypes=dict(dtypes.most_common()),
        nan=counted.nan,
        inf=counted.inf,
    )


def _number(text: str | None) -> float | None:
    """A number out of a header, which anybody may have written."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
