"""What lies in the demonstration's folder, and how far the sets are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from onetrainer_ema_select.demo.runner import STANDIN, STEPS, WORKSPACE
from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.naming import is_paired_name
from onetrainer_ema_select.workspace import PARKED_FOLDER, SaveView, scan_workspace, view_save


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        folder: The folder it lies in, relative to the demonstration's.
        name: Its name there.
        sets: The sets it holds.
        step: Steps done.
        size_bytes: Its size.
        apart: Distance of this set from the other one of the same moment, relative to this one's length; None
            where there is no other, and for the first of the two.
    """

    folder: str
    name: str
    sets: str
    step: str
    size_bytes: int
    apart: float | None = None


def collect(folder: Path) -> list[Row]:
    """Everything that the steps have written.

    Raises:
        EmaSelectError: Something is missing that should be there.
    """
    models, workspace = f"{STANDIN}/models", f"{STANDIN}/{WORKSPACE}"
    view = scan_workspace(folder / workspace)
    finals = [view_save(path) for path in (folder / models).glob("*.safetensors")]
    rows = [_save_row(models, save) for save in sorted(finals, key=_order)]
    rows += [_save_row(f"{workspace}/save", save) for save in sorted(view.saves, key=_order)]
    for backup in reversed(view.backups):
        step = "?" if backup.step is None else str(backup.step)
        rows.append(Row(f"{workspace}/backup", backup.name, _sets(backup.sets), step, backup.size_bytes))
    parked_folder = f"{workspace}/{PARKED_FOLDER.as_posix()}"
    for parked in view.parked:
        rows.append(Row(parked_folder, parked.path.name, "ema", str(parked.step), parked.size_bytes))
    _check(rows)
    return rows


def distance(first: Path, second: Path) -> float:
    """Length of the difference of two models' weights, relative to the length of the first."""
    ours, theirs = load_file(first), load_file(second)
    difference = sum(float((tensor.double() - theirs[name].double()).square().sum()) for name, tensor in ours.items())
    length = sum(float(tensor.double().square().sum()) for tensor in ours.values())
    return math.sqrt(difference / length) if length else 0.0


def _sets(sets: tuple[str, ...]) -> str:
    return "both" if len(sets) > 1 else "".join(sets)


def _order(save: SaveView) -> tuple[str, bool]:
    """The two sets of a moment one after the other, the one with OneTrainer's own name first."""
    plain, suffix = is_paired_name(save.path.name)
    return plain, suffix is not None


def _save_row(folder: str, save: SaveView) -> Row:
    apart = None
    if save.partner is not None and save.set == "non-ema":
        apart = distance(save.path, save.partner)
    return Row(folder, save.path.name, save.set, str(save.step), save.size_bytes, apart)


def _check(rows: list[Row]) -> None:
    """The demonstration must not tell of what has not happened."""
    pairs = sum(1 for row in rows if row.apart)
    backups = sum(1 for row in rows if row.folder.endswith("/backup"))
    parked = sum(1 for row in rows if row.folder.endswith("/parked"))
    # the milestone and the final outputs of all steps but the one with EMA off
    if (pairs, backups, parked) != (len(STEPS), len(STEPS), 1):
        raise EmaSelectError(
            f"The runs went through, but left {pairs} different pairs of sets instead of {len(STEPS)}, {backups} "
            f"backups instead of {len(STEPS)}, and {parked} parked EMAs instead of 1. Please report this."
        )
