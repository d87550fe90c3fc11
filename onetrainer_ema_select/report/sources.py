"""What runs have left of their measurements in a workspace. Each reader takes what it can, and says what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onetrainer_ema_select.average_age import START_LEFT
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.report.events import Points, read_scalars
from onetrainer_ema_select.snapshots import find_snapshots
from onetrainer_ema_select.validation import HISTORY
from onetrainer_ema_select.workspace import DRIFT_FILE

VALIDATION_FILE = Path(FOLDER, HISTORY)
TENSORBOARD_FOLDER = Path("tensorboard")
#: The folder inside a TensorBoard run's that has the EMA's validation.
EMA_CURVES = "EMA"

TRAINING_TAGS = ("loss/train_step", "smooth_loss/train_step", "ema_decay")
VALIDATION_TAG = "loss/validation_step/"

_MAX_BYTES = 256 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Validation:
    """One validation of both sets.

    Attributes:
        step: Steps done.
        epoch: Epochs finished.
        batches: Batches of all concepts together.
        ema: Mean loss of the EMA, None where it is not a finite number.
        non_ema: Of the non-EMA weights, likewise.
        error: Standard error of the mean difference between them over the batches, None where it cannot be told.
        better: ``ema``, ``non-ema``, or empty where neither is.
        sure: ``clear``, ``probable`` or empty.
        concepts: Of each concept its label and both losses.
        run: The run that it is of.
        leg: The stretch of it.
    """

    step: int
    epoch: int
    batches: int
    ema: float | None
    non_ema: float | None
    error: float | None
    better: str
    sure: str
    concepts: tuple[tuple[str, float | None, float | None], ...]
    run: str = ""
    leg: str = ""


@dataclass(frozen=True)
class Drift:
    """One look at how far the sets are apart; the values have the names of the curves."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Snapshot:
    """Post-hoc tracks of one moment, from which an average of any length can be made."""

    name: str
    step: int
    sigma_rels: tuple[float, ...]
    run: str = ""


@dataclass(frozen=True)
class Curves:
    """OneTrainer's own curves, each along the line that led to the newest step."""

    training: dict[str, Points]
    validation: dict[str, Points]
    ema_validation: dict[str, Points]


def read_validations(workspace: Path) -> tuple[Validation, ...]:
    """The validations that led to the newest one."""
    found = (validation_of(line) for line in _lines(workspace / VALIDATION_FILE))
    every = [one for one in found if one is not None]
    return line_of((one.step, one) for one in every if one.run == every[-1].run)


def validation_of(line: Mapping[str, Any]) -> Validation | None:
    """A validation as it is written in a line of the list."""
    step = _whole(line.get("step"))
    if step is None:
        return None
    ema, other = _number(line.get("ema")), _number(line.get("non_ema"))
    concepts = line.get("concepts")
    parts = [one for one in concepts if isinstance(one, dict)] if isinstance(concepts, list) else []
    better = {"EMA": "ema", "NON_EMA": "non-ema"}.get(str(line.get("better")), "")
    sure = str(line.get("sure"))
    return Validation(
        step=step,
        epoch=_whole(line.get("epoch")) or 0,
        batches=_whole(line.get("batches")) or 0,
        ema=ema,
        non_ema=other,
        error=_number(line.get("standard_error")),
        better=better,
        sure=sure if sure in ("clear", "probable") else "",
        concepts=tuple(
            (str(one.get("label", "")), _number(one.get("ema")), _number(one.get("non_ema"))) for one in parts
        ),
        run=str(line.get("run", "")),
        leg=str(line.get("leg", "")),
    )


def read_drift(workspace: Path) -> tuple[tuple[Drift, ...], frozenset[str]]:
    """The looks that led to the newest one, and the kinds of warnings: ``same``, ``start``, ``swing``."""
    looks: list[tuple[str, str, Drift]] = []
    warnings: set[tuple[str, str, str]] = set()
    for line in _lines(workspace / DRIFT_FILE):
        step = _whole(line.get("step"))
        if step is None:
            continue
        run, leg = str(line.get("run", "")), str(line.get("leg", ""))
        if isinstance(line.get("warning"), str):
            warnings.add((run, leg, str(line["warning"])))
            continue
        values = {str(key): _number(value) for key, value in line.items() if key not in ("step", "run", "leg")}
        looks.append((run, leg, Drift(step, {key: value for key, value in values.items() if value is not None})))
    if not looks:
        return (), frozenset()
    run, leg, last = looks[-1]
    said = {kind for *of, kind in warnings if of == [run, leg]}
    if last.values.get("start_share", 1.0) < START_LEFT:
        said.discard("start")
    return line_of((one.step, one) for of, _, one in looks if of == run), frozenset(said)


def read_snapshots(workspace: Path) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """The snapshots of post-hoc tracks, by step, and a sentence for each that cannot be read."""
    found, problems = find_snapshots(workspace)
    kept = [
        Snapshot(one.path.name, one.step, tuple(track.sigma_rel for track in one.record.tracks), one.manifest.run)
        for one in reversed(found)
    ]
    return tuple(sorted(kept, key=lambda one: one.step)), problems


def read_curves(workspace: Path) -> Curves:
    """OneTrainer's TensorBoard; what cannot be read counts as not there."""
    curves = Curves({}, {}, {})
    folder = workspace / TENSORBOARD_FOLDER
    try:
        files = sorted(folder.rglob("*tfevents*")) if folder.is_dir() else []
    except OSError:
        files = []
    for file in files:
        try:
            scalars = read_scalars(file, _is_wanted) if file.is_file() else {}
        except OSError:
            continue
        ours = file.parent.name == EMA_CURVES and file.parent.parent != folder
        for tag, points in scalars.items():
            if tag.startswith(VALIDATION_TAG):
                target, name = curves.ema_validation if ours else curves.validation, tag.removeprefix(VALIDATION_TAG)
            else:
                target, name = curves.training, tag
            target.setdefault(name, []).extend(points)
    for part in (curves.training, curves.validation, curves.ema_validation):
        for name, points in part.items():
            part[name] = list(line_of((step, (step, value)) for step, value in points))
    return curves


def _is_wanted(tag: str) -> bool:
    return tag in TRAINING_TAGS or tag.startswith(VALIDATION_TAG)


def line_of(entries: Iterable[tuple[int, T]]) -> tuple[T, ...]:
    """Of entries in the order in which they were made, those that led to the last one.

    A run that was taken back comes by earlier steps again: what had been measured from there on was of weights that
    are no longer this run's.
    """
    kept: list[tuple[int, T]] = []
    for step, entry in entries:
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((step, entry))
    return tuple(entry for _, entry in kept)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that has one in a line; what cannot be read is passed over."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return []
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where that cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value if fine and isinstance(value, int) else None
