"""What a path is, where it is not the backup that was asked for, and what to give instead."""

from __future__ import annotations

from pathlib import Path

from onetrainer_ema_select.errors import BackupError, EmaSelectError, ManifestError
from onetrainer_ema_select.integrity import BACKUP_NAME, META_FILE, backup_problem
from onetrainer_ema_select.manifest import FOLDER, MANIFEST_NAME, read_manifest
from onetrainer_ema_select.workspace import (
    BACKUP_FOLDER,
    FOLDER_METADATA,
    MILESTONE_FOLDER,
    SNAPSHOT_FOLDER,
    folders_in,
    newest_complete_backup,
)

MODEL_INDEX = "model_index.json"

_WANTED = "Give a backup: a folder in WORKSPACE/backup, as `onetrainer-ema-select list WORKSPACE` shows them."


def is_parked(path: Path) -> bool:
    """Whether this is the folder of an average that was set aside.

    Raises:
        ManifestError: If it has a manifest that cannot be read.
    """
    return _is_kind(path, "parked")


def is_snapshot(path: Path) -> bool:
    """Whether this is the folder of a snapshot of post-hoc tracks.

    Raises:
        ManifestError: If it has a manifest that cannot be read.
    """
    return _is_kind(path, "snapshot")


def _is_kind(path: Path, kind: str) -> bool:
    if not (path / MANIFEST_NAME).is_file() or (path / FOLDER).is_dir():
        return False
    manifest = read_manifest(path)
    return manifest is not None and manifest.kind == kind


def is_backup(path: Path) -> bool:
    """Whether this is a backup, whole or not: by what only a backup has, or by its name and where it is."""
    if not path.is_dir():
        return False
    if (path / META_FILE).is_file() or (path / "optimizer").is_dir() or (path / "onetrainer_config").is_dir():
        return True
    if path.parent.parts[-2:] == SNAPSHOT_FOLDER.parts[-2:]:
        return False
    return path.parent.name == BACKUP_FOLDER and BACKUP_NAME.match(path.name) is not None


def refuse_other(path: Path) -> None:
    """Let backups and parked averages through.

    Raises:
        BackupError: If it is neither; the message says what it looks like, and what to give instead.
        ManifestError: If it looks like a parked average whose manifest cannot be read.
    """
    if not path.exists():
        raise BackupError(f"There is no {path}. {_WANTED}", path=path)
    around = enclosing_backup(path)
    if path.is_file():
        if around is not None:
            raise BackupError(
                f"{path} is a file of a backup, not the backup itself. Give its folder: {around}", path=path
            )
        raise BackupError(
            f"{path} is a file, and a backup is a folder. A saved model holds one set of weights and nothing to go on "
            f"from. {_WANTED}",
            path=path,
        )
    if is_backup(path) or is_parked(path):
        return
    if is_snapshot(path):
        raise BackupError(
            f"{path} is a snapshot of post-hoc tracks, not a backup. Make a model of any length out of it: "
            f"`onetrainer-ema-select synthesize WORKSPACE --at {path.name} --sigma-rel 0.10 --output MODEL`.",
            path=path,
        )
    if around is not None:
        raise BackupError(f"{path} is a part of a backup, not the backup itself. Give its folder: {around}", path=path)
    if (path / BACKUP_FOLDER).is_dir() or (path / FOLDER).is_dir() or path.name == BACKUP_FOLDER:
        workspace = path.parent if path.name == BACKUP_FOLDER and not (path / BACKUP_FOLDER).is_dir() else path
        newest = newest_backup(workspace)
        what = "a workspace" if workspace == path else "the folder of all backups of a workspace"
        advice = f"Give one of its backups; the newest whole one is {newest}" if newest else f"It holds none. {_WANTED}"
        raise BackupError(f"{path} is {what}, not a backup. {advice}", path=path)
    if (path / MODEL_INDEX).is_file():
        raise BackupError(
            f"{path} is a model in diffusers' format, not a backup: it has no {META_FILE}. It can be used as it is. "
            f"{_WANTED}",
            path=path,
        )
    if (path / FOLDER_METADATA).is_file() or any(path.glob("*.safetensors")):
        raise BackupError(
            f"{path} is a folder with a saved model, not a backup: it has no {META_FILE}. {_WANTED}", path=path
        )
    raise BackupError(f"{path} is not a backup: it has no {META_FILE}. {_WANTED}", path=path)


def refuse_incomplete(path: Path) -> None:
    """Refuse a backup that is not whole. A missing optimizer state is no matter: only training needs it.

    Raises:
        BackupError: Saying what is wrong.
    """
    if problem := backup_problem(path, optimizer=False):
        raise BackupError(
            f"The backup {path} is not complete: {problem}. Give another one, as "
            "`onetrainer-ema-select list WORKSPACE` shows them.",
            path=path,
        )


def enclosing_backup(path: Path) -> Path | None:
    """The backup that a file or folder is a part of, if any."""
    for folder in path.absolute().parents[:3]:
        if (folder / META_FILE).is_file():
            return folder
    return None


def newest_backup(workspace: Path) -> Path | None:
    """The newest whole backup of a workspace; else the newest of its milestones that is whole."""
    try:
        newest, _ = newest_complete_backup(workspace)
    except EmaSelectError:
        newest = None
    if newest is not None:
        return newest
    return next((path for path in folders_in(workspace / MILESTONE_FOLDER) if not backup_problem(path)), None)


def parked_problem(path: Path) -> str:
    """Why a parked average cannot be opened, as the end of a sentence; empty where it can."""
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        return str(error)
    if manifest is None or manifest.ema is None:
        return "its manifest names no average"
    return "" if (path / manifest.ema.file).is_file() else f"{manifest.ema.file} is missing"
