"""What lies in a OneTrainer workspace, and what each program would continue from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrainer_ema_select.average_length import average_of, run_steps
from onetrainer_ema_select.errors import EmaSelectError, ManifestError
from onetrainer_ema_select.integrity import (
    BACKUP_NAME,
    EMA_FILE,
    backup_problem,
    read_progress,
    safetensors_problem,
)
from onetrainer_ema_select.length import Length
from onetrainer_ema_select.manifest import FOLDER, EmaRecord, LegRecord, Manifest, read_manifest
from onetrainer_ema_select.naming import (
    MODEL_ENDINGS,
    companions,
    is_paired_name,
    paired_name,
    set_suffix,
    split,
)
from onetrainer_ema_select.run_config import read_config
from onetrainer_ema_select.settings import WeightSet
from onetrainer_ema_select.store import read_metadata

BACKUP_FOLDER = "backup"
SAVE_FOLDER = "save"
MILESTONE_FOLDER = Path(FOLDER, "milestones", "backup")
#: Where the final output goes if its own place fails.
OUTPUT_FOLDER = Path(FOLDER, "output")
PARKED_FOLDER = Path(FOLDER, "parked")
#: Of post-hoc tracks. The word `backup` in it has OneTrainer's cloud synchronisation fetch them with the backups.
DRIFT_FILE = Path(FOLDER, "drift.jsonl")
SNAPSHOT_FOLDER = Path(FOLDER, "post_hoc", "backup")

#: Where a model is a folder, its metadata lies in this file.
FOLDER_METADATA = "ema_select.json"

#: What is said of a folder among the backups that is none.
STRAY = "stray folder, ignored"

#: `-save-<step>-<epoch>-<step of the epoch>`, as OneTrainer ends the names of its saves.
SAVE_PROGRESS = re.compile(r"-save-(\d+)-(\d+)-\d+$")


@dataclass(frozen=True)
class BackupView:
    """A folder that a run may be resumed from.

    Attributes:
        name: The folder's name.
        path: The folder.
        complete: Whether OneTrainer could resume from it.
        reason: Why not, or what else is wrong with it; else empty.
        step: Steps done, None where that cannot be read.
        epoch: Epochs finished, None where that cannot be read.
        sets: The sets it holds, of `non-ema` and `ema`.
        size_bytes: Everything in it.
        leg: What its leg of the run began with; empty for a backup made without the plugin.
        parked: Averages set aside before it, each with the step it stopped at.
        milestone: The milestones that it was pinned for; empty for others.
        half_life: What its average's half-life had come to, OneTrainer's warm-up and all; None where it holds none,
            where that cannot be told, and where it is endless.
        length_warnings: What is wrong with that length, a sentence each.
        validation: Losses of both sets and which is better, by :meth:`ValidationRecord.as_json`; None where there was
            no validation.
    """

    name: str
    path: Path
    complete: bool
    reason: str
    step: int | None
    epoch: int | None
    sets: tuple[str, ...]
    size_bytes: int
    leg: str
    parked: tuple[str, ...]
    milestone: str = ""
    half_life: Length | None = None
    length_warnings: tuple[str, ...] = ()
    validation: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SaveView:
    """A model for inference, file or folder.

    Attributes:
        path: The file or folder.
        set: `ema` or `non-ema`; empty where the plugin did not write it.
        step: Steps done, None where neither the file nor its name says.
        epoch: Epochs finished, likewise.
        milestone: The milestone that it was saved for.
        partner: The other set of the same run and step.
        missing: The set that was to be written with it and is not there, ``ema`` or ``non-ema``; else empty.
        size_bytes: With what belongs beside it.
    """

    path: Path
    set: str
    step: int | None
    epoch: int | None
    milestone: str | None
    partner: Path | None
    missing: str
    size_bytes: int


@dataclass(frozen=True)
class ParkedView:
    """An average that was set aside when EMA was switched off; `step` is where it stopped."""

    path: Path
    step: int | None
    size_bytes: int


@dataclass(frozen=True)
class SnapshotView:
    """A snapshot of post-hoc tracks.

    Attributes:
        path: Its folder.
        step: Steps done, None where that cannot be read.
        epoch: Epochs finished, likewise.
        sigma_rels: The lengths of its tracks.
        size_bytes: Everything in it.
        reason: What is wrong with it; empty where nothing is.
    """

    path: Path
    step: int | None
    epoch: int | None
    sigma_rels: tuple[float, ...]
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class WorkspaceView:
    """All of it; backups and snapshots newest first, saves in the order of their names.

    Attributes:
        plain_continue: Name of the backup that "continue last backup" loads in plain OneTrainer.
        our_continue: The same with the plugin.
        skipped: A sentence for each newer folder that the plugin passes over.
    """

    backups: tuple[BackupView, ...]
    milestones: tuple[BackupView, ...]
    saves: tuple[SaveView, ...]
    parked: tuple[ParkedView, ...]
    plain_continue: str | None
    our_continue: str | None
    skipped: tuple[str, ...]
    snapshots: tuple[SnapshotView, ...] = ()


def newest_complete_backup(workspace: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The backup that "continue last backup" takes with the plugin.

    Plain OneTrainer takes the greatest folder name in `workspace/backup`, whatever it holds; this takes the
    greatest name that is a backup and whole.

    Returns:
        Its folder, or None where there is none, and one sentence for each newer folder that was passed over.
    """
    skipped: list[str] = []
    for folder in sorted(folders_in(workspace / BACKUP_FOLDER), key=lambda path: _age(path.name), reverse=True):
        if not BACKUP_NAME.match(folder.name):
            skipped.append(f"Skipped {folder}: stray folder, its name does not begin with a backup's time.")
        elif problem := backup_problem(folder):
            skipped.append(f"Skipped {folder}: {problem}.")
        else:
            return folder, tuple(skipped)
    return None, tuple(skipped)


#: `<time>-backup-<step>-<epoch>-<step of the epoch>`, as OneTrainer names its backups.
BACKUP_PROGRESS = re.compile(r"(?P<time>.{19})-backup-(?P<step>\d+)-")


def _age(name: str) -> tuple[str, int, str]:
    """Sort key, newest greatest: by time, and by step where two backups were made in the same second.

    Their names would then be compared as text, and step 8 would come after step 24.
    """
    named = BACKUP_PROGRESS.match(name)
    return (named["time"], int(named["step"]), name) if named else (name, -1, name)


def scan_workspace(path: Path) -> WorkspaceView:
    """Everything in a workspace that can be resumed from or used; reads headers and sizes, no tensors.

    Raises:
        EmaSelectError: There is no such folder.
    """
    if not path.is_dir():
        raise EmaSelectError(
            f"There is no folder {path}. Give a run's workspace, the folder that workspace_dir names in its config.",
            path=path,
        )
    backups = folders_in(path / BACKUP_FOLDER)
    ours, skipped = newest_complete_backup(path)
    saves = [
        save
        for folder in (path / SAVE_FOLDER, path / OUTPUT_FOLDER)
        for save in (sorted(folder.iterdir(), key=beside_partner) if folder.is_dir() else ())
    ]
    return WorkspaceView(
        backups=tuple(view_backup(folder) for folder in backups),
        milestones=tuple(view_backup(folder, pinned=True) for folder in folders_in(path / MILESTONE_FOLDER)),
        saves=tuple(view_save(save) for save in saves if is_save(save)),
        parked=tuple(view_parked(folder) for folder in folders_in(path / PARKED_FOLDER)),
        plain_continue=backups[0].name if backups else None,
        our_continue=ours.name if ours else None,
        skipped=skipped,
        snapshots=tuple(view_snapshot(folder) for folder in folders_in(path / SNAPSHOT_FOLDER)),
    )


def folders_in(folder: Path) -> tuple[Path, ...]:
    """The folders in a folder, greatest name first, the order that OneTrainer itself goes by."""
    if not folder.is_dir():
        return ()
    return tuple(sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name)[::-1])


def view_backup(folder: Path, *, pinned: bool = False) -> BackupView:
    """One backup, whole or not; `pinned` ones are a milestone's and may have any name."""
    size = size_of(folder)
    if not pinned and not BACKUP_NAME.match(folder.name):
        return BackupView(folder.name, folder, False, STRAY, None, None, (), size, "", ())
    problem = backup_problem(folder)
    try:
        progress = read_progress(folder)
    except (OSError, ValueError):
        progress = {}
    reason = problem
    sets: tuple[str, ...] = ()
    if progress:
        sets = ("non-ema", "ema") if (folder / EMA_FILE).is_file() else ("non-ema",)
    leg = ""
    parked: tuple[str, ...] = ()
    milestone = ""
    record = None
    validation = None
    try:
        if manifest := read_manifest(folder):
            sets = tuple(set_suffix(WeightSet(name)) for name in manifest.sets)
            leg = leg_text(manifest.leg)
            milestone = ", ".join(manifest.milestones)
            record = manifest.ema
            validation = manifest.validation.as_json() if manifest.validation is not None else None
            parked = tuple(f"{record.name} (stopped at step {record.step})" for record in manifest.parked)
    except ManifestError as error:
        # OneTrainer can still resume from it, the plugin says this sentence and stops
        reason = reason or str(error)
    step, epoch = progress.get("global_step"), progress.get("epoch")
    half_life, warnings = _length(folder, record, progress) if "ema" in sets else (None, ())
    return BackupView(
        folder.name,
        folder,
        not problem,
        reason,
        step,
        epoch,
        sets,
        size,
        leg,
        parked,
        milestone,
        half_life,
        warnings,
        validation,
    )


def _length(
    folder: Path, record: EmaRecord | None, progress: Mapping[str, int]
) -> tuple[Length | None, tuple[str, ...]]:
    """The half-life of a backup's average, and what is wrong with it."""
    config = read_config(folder)
    average = average_of(record, config, progress=progress)
    if average is None:
        return None, ()
    half_life = average.half_life_at(progress.get("global_step", 0))
    warnings = average.warnings(run_steps=run_steps(average, config))
    return None if math.isinf(half_life.steps) else half_life, warnings


def pinned_backups(workspace: Path) -> tuple[tuple[Path, Manifest], ...]:
    """The backups that milestones have left, whole or not, with their manifests; newest names first."""
    found = []
    for folder in folders_in(workspace / MILESTONE_FOLDER):
        try:
            manifest = read_manifest(folder)
        except ManifestError:
            continue
        if manifest is not None and manifest.milestones:
            found.append((folder, manifest))
    return tuple(found)


def is_pinned(workspace: Path, milestone: str, *, step: int, run: str, leg: str) -> bool:
    """Whether the backup of a milestone of a leg of a run is there and whole."""
    return any(
        (manifest.run, manifest.leg.id, manifest.step) == (run, leg, step)
        and milestone in manifest.milestones
        and not backup_problem(folder)
        for folder, manifest in pinned_backups(workspace)
    )


def leg_text(leg: LegRecord) -> str:
    """What a leg began with, in one phrase."""
    if not leg.began_from and leg.choices is None:
        return "fresh start"
    choices = ", ".join(f"{key}={value}" for key, value in (leg.choices or {}).items() if value)
    return f"from {leg.began_from} at step {leg.began_at_step}" + (f" with {choices}" if choices else "")


def is_save(path: Path) -> bool:
    """Whether this is a model, and not what a saver puts beside one."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return not path.name.endswith("_embeddings")
    return path.suffix.lower() in MODEL_ENDINGS


def beside_partner(path: Path) -> tuple[str, str]:
    """Sorts the other set of a moment right behind the one with OneTrainer's own name."""
    plain, weight_set = is_paired_name(path.name)
    return plain, "" if weight_set is None else path.name


def view_save(path: Path) -> SaveView:
    """One model, file or folder."""
    metadata = save_metadata(path)
    plain, _ = is_paired_name(path.name)
    named = SAVE_PROGRESS.search(split(plain)[0])
    step, epoch = (int(named[1]), int(named[2])) if named else (None, None)
    beside = [path.with_name(name) for name in companions(path.name)]
    own = metadata.get("set", "")
    partner = partner_of(path, metadata)
    missing = (
        "" if partner else next((name for name in metadata.get("sets", "").split(", ") if name not in ("", own)), "")
    )
    return SaveView(
        path=path,
        set=_shown(own),
        step=int(metadata["step"]) if metadata.get("step", "").isdigit() else step,
        epoch=int(metadata["epoch"]) if metadata.get("epoch", "").isdigit() else epoch,
        milestone=metadata.get("milestone") or None,
        partner=partner,
        missing=_shown(missing),
        size_bytes=size_of(path) + sum(size_of(other) for other in beside if other.exists()),
    )


def partner_of(path: Path, metadata: Mapping[str, str]) -> Path | None:
    """The other set of the same moment: by its name, and by the run and step that both say."""
    if metadata.get("set") == "POST_HOC":
        return None
    plain, weight_set = is_paired_name(path.name)
    names = [plain] if weight_set else [paired_name(path.name, set_suffix(other)) for other in WeightSet]
    for other in map(path.with_name, names):
        if not other.exists():
            continue
        theirs = save_metadata(other)
        alike = all(metadata.get(key) == theirs.get(key) for key in ("run", "step"))
        if alike and (not metadata or metadata.get("set") != theirs.get("set")):
            return other
    return None


def _shown(weight_set: str) -> str:
    return weight_set.lower().replace("_", "-")


def save_metadata(path: Path) -> dict[str, str]:
    """The plugin's keys of a model file or folder, without their prefix; empty where there are none."""
    prefix = f"{FOLDER}."
    try:
        if path.is_dir():
            raw = json.loads((path / FOLDER_METADATA).read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            raw = {key: value for key, value in read_metadata(path).items() if key.startswith(prefix)}
        else:
            raw = {}
    except (OSError, ValueError):
        return {}
    return {str(key).removeprefix(prefix): str(value) for key, value in raw.items()} if isinstance(raw, dict) else {}


def view_parked(folder: Path) -> ParkedView:
    """One parked average."""
    try:
        manifest = read_manifest(folder)
    except ManifestError:
        manifest = None
    return ParkedView(path=folder, step=manifest.step if manifest else None, size_bytes=size_of(folder))


def view_snapshot(folder: Path) -> SnapshotView:
    """One snapshot of post-hoc tracks."""
    size = size_of(folder)
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return SnapshotView(folder, None, None, (), size, str(error))
    if manifest is None or manifest.post_hoc is None:
        return SnapshotView(folder, None, None, (), size, "it has no manifest of post-hoc tracks")
    tracks = manifest.post_hoc.tracks
    problems = ((track.file, safetensors_problem(folder / track.file)) for track in tracks)
    reason = next((f"{file} {problem}" for file, problem in problems if problem), "")
    sigma_rels = tuple(track.sigma_rel for track in tracks)
    return SnapshotView(folder, manifest.step, manifest.epoch, sigma_rels, size, reason)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total
