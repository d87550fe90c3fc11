"""What `inspect` and `compare` share: two sets of weights, measured and shown."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onetrainer_ema_select.backups import Backup, open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.cli.table import cosine, number, table, wrapped
from onetrainer_ema_select.comparison import Advance, Comparison, Count, Distance, compare, count
from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.name_matching import Match, match
from onetrainer_ema_select.tensor_set import TensorSet

SHOWN_BLOCKS = 12
_SHOWN_NAMES = 3
TOTAL = "in total"
UNNAMED = (
    "This backup was made without the plugin, so its EMA names no weights and cannot be compared. To have OneTrainer "
    "name them,"
)


@dataclass(frozen=True)
class Measured:
    """Two sets of weights beside each other.

    Attributes:
        match: Which tensors belong together.
        comparison: How far they are apart.
        nan_inf: NaN and Inf in each, also in tensors that the other does not have.
    """

    match: Match
    comparison: Comparison
    nan_inf: tuple[Count, Count]

    @property
    def identical(self) -> bool:
        """Whether the two hold the same, bit for bit."""
        return self.match.complete and self.comparison.total.same_bits


def measure(a: TensorSet, b: TensorSet, *, called: tuple[str, str], exact: bool = False) -> Measured:
    """Compare two sets, and look through what only one of them has; shows a bar if it takes long.

    Args:
        a: The first set, which distances are relative to.
        b: The second.
        called: How the two are called in a message.
        exact: Whether they are two sets of one backup, with the same stable names.

    Raises:
        NamesError: If no two tensors belong together.
        StoreError: If a tensor cannot be read.
    """
    found = match(a, b, called=called, exact=exact)
    with progress(a.nbytes + b.nbytes, "comparing") as advance:
        comparison = compare(a, b, found.pairs, advance=advance)
        counts = []
        for tensors, place, side in ((a, 0, comparison.total.a), (b, 1, comparison.total.b)):
            compared = {pair[place] for pair in found.pairs}
            rest = count(tensors, [name for name in tensors if name not in compared], advance=advance)
            counts.append(Count(side.nan + rest.nan, side.inf + rest.inf))
    return Measured(found, comparison, (counts[0], counts[1]))


@contextmanager
def progress(total: int, what: str) -> Iterator[Advance]:
    """A bar on the error stream, which appears after two seconds."""
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, delay=2, file=sys.stderr, leave=False) as bar:
        yield bar.update


def open_named(path: Path, onetrainer: Path | None) -> Backup:
    """Open a backup; where it does not name its weights and a OneTrainer is given, have that one name them.

    Raises:
        EmaSelectError: If it cannot be opened or named.
    """
    backup = open_backup(path)
    if backup.named or onetrainer is None or WeightSet.EMA not in backup.sets:
        return backup
    backup.close()
    from onetrainer_ema_select.host.export import trained_names

    return open_backup(path, names=trained_names(path, onetrainer=onetrainer))


def require_named(backup: Backup, weight_set: WeightSet) -> None:
    """Refuse to compare an average whose weights have no names.

    Raises:
        NamesError: Saying what to add.
    """
    if weight_set is WeightSet.EMA and not backup.named:
        raise NamesError(f"{UNNAMED} add --onetrainer DIR.", path=backup.path)


def distance_lines(measured: Measured, *, every: bool, heads: tuple[str, str]) -> list[str]:
    """The table, those furthest apart first, and what else is to be said.

    Args:
        measured: The two sets.
        every: Whether to show all blocks.
        heads: How the two sides are called above their norms.
    """
    blocks = list(measured.comparison.blocks.items())
    shown = blocks if every else blocks[:SHOWN_BLOCKS]
    rows = [_row(name, distance) for name, distance in (*shown, (TOTAL, measured.comparison.total))]
    lines = table(["block", "rel. dist.", "cosine", f"norm {heads[0]}", f"norm {heads[1]}"], rows, last=TOTAL)
    if len(shown) < len(blocks):
        lines += wrapped(f"{len(blocks) - len(shown)} more blocks, less far apart: --all shows them.", indent="  ")
    lines += [line for note in notes(measured, heads) for line in wrapped(note, indent="  ")]
    return lines


def notes(measured: Measured, heads: tuple[str, str]) -> list[str]:
    """What is not usual about a comparison, in sentences."""
    found = measured.match
    said = [
        f"Names were matched without {one or 'nothing'} in {heads[0]} and {other or 'nothing'} in {heads[1]}."
        for one, other in found.prefixes
    ]
    for names, head in ((found.only_a, heads[0]), (found.only_b, heads[1])):
        if names:
            said.append(f"{len(names)} tensors are only in {head}: {_some(names)}.")
    if found.reshaped:
        said.append(f"{len(found.reshaped)} tensors have other shapes: {_some([one for one, _ in found.reshaped])}.")
    for counted, head in zip(measured.nan_inf, heads, strict=True):
        if counted.nan or counted.inf:
            said.append(f"{counted.nan} NaN and {counted.inf} Inf in {head}; left out of the numbers above.")
    if measured.identical:
        said.append("The same, bit for bit.")
    elif measured.comparison.total.same_bits:
        said.append(f"The {len(found.pairs)} tensors that both have are the same, bit for bit.")
    return said


def distance_json(measured: Measured) -> dict[str, Any]:
    """The same for programs; see docs/json.md."""
    found = measured.match
    return {
        "identical": measured.identical,
        "tensors": len(found.pairs),
        "total": _numbers(measured.comparison.total),
        "blocks": [{"block": name, **_numbers(one)} for name, one in measured.comparison.blocks.items()],
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "reshaped": [{"a": one, "b": other} for one, other in found.reshaped],
        "prefixes": [{"a": one, "b": other} for one, other in found.prefixes],
    }


def _numbers(distance: Distance) -> Mapping[str, float | int | bool | None]:
    return {
        "elements": distance.elements,
        "relative_distance": distance.relative,
        "cosine": distance.cosine,
        "norm_a": distance.norm_a,
        "norm_b": distance.norm_b,
        "largest_difference": distance.largest if math.isfinite(distance.largest) else None,
        "same_bits": distance.same_bits,
        "nan_a": distance.a.nan,
        "inf_a": distance.a.inf,
        "nan_b": distance.b.nan,
        "inf_b": distance.b.inf,
    }


def _row(name: str, distance: Distance) -> tuple[str, ...]:
    return (
        name,
        number(distance.relative),
        cosine(distance.cosine),
        number(distance.norm_a),
        number(distance.norm_b),
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (" and others" if len(names) > _SHOWN_NAMES else "")
