"""What the window's list of backups shows, and the names it suggests for exports; no toolkit in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.host.announce import gigabytes
from onetrainer_ema_select.naming import split
from onetrainer_ema_select.workspace import (
    BACKUP_FOLDER,
    MILESTONE_FOLDER,
    STRAY,
    BackupView,
    folders_in,
    newest_complete_backup,
    view_backup,
)

NOTHING = "no backups in this workspace"
UNREADABLE = "the workspace cannot be read"
LOOKING = "looking into the workspace …"


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        label: What the list shows: step, epoch, sets, name. No two are the same.
        backup: The backup; None for the line that says there is none.
        detail: All that is to be said of it.
    """

    label: str
    backup: BackupView | None = None
    detail: str = ""

    @property
    def complete(self) -> bool:
        """Whether it can be resumed from and exported."""
        return self.backup is not None and self.backup.complete


def entries(workspace: Path) -> tuple[Entry, ...]:
    """The backups and milestones of a workspace, each newest first; complete ones before others. Never empty.

    Raises:
        OSError: The workspace cannot be read.
        EmaSelectError: A manifest cannot be read.
    """
    if not workspace.is_dir():
        return (Entry(NOTHING, None, f"The folder {workspace} does not exist yet."),)
    newest, _ = newest_complete_backup(workspace)
    found = [
        *views(folders_in(workspace / BACKUP_FOLDER), pinned=False),
        *views(folders_in(workspace / MILESTONE_FOLDER), pinned=True),
    ]
    found.sort(key=lambda backup: not backup.complete)
    made: dict[str, Entry] = {}
    for backup in found:
        text = label(backup)
        if text in made:
            text = f"{text} ({backup.path.parent})"
        made[text] = Entry(text, backup, detail(backup, newest=newest is not None and backup.path == newest))
    return tuple(made.values()) or (Entry(NOTHING, None, f"OneTrainer has written none to {workspace} yet."),)


def views(folders: Iterable[Path], *, pinned: bool) -> list[BackupView]:
    """What the folders hold; one that is deleted in this moment, as training does, is left out."""
    found = []
    for folder in folders:
        try:
            backup = view_backup(folder, pinned=pinned)
        except OSError:
            continue
        if backup.reason != STRAY:
            found.append(backup)
    return found


def label(backup: BackupView) -> str:
    """One line: what tells a backup from the others first."""
    if not backup.complete:
        return f"NOT COMPLETE | {backup.name}"
    kind = f"milestone {backup.milestone}" if backup.milestone else "backup"
    return f"{kind} | step {backup.step}, epoch {backup.epoch} | {sets_of(backup)} | {backup.name}"


def sets_of(backup: BackupView) -> str:
    """The sets it holds, the averages first, as a run's files are named."""
    return " and ".join(sorted(backup.sets)) or "nothing"


def detail(backup: BackupView, *, newest: bool) -> str:
    """What the list's one line has no room for.

    Args:
        backup: The backup.
        newest: Whether it is the one that continuing takes by itself.
    """
    if not backup.complete:
        return f"Neither OneTrainer nor the plugin can resume from it: {backup.reason}."
    made = f"its leg: {backup.leg}" if backup.leg else "made without the plugin"
    said = [f"Holds {sets_of(backup)}; {gigabytes(backup.size_bytes)}; {made}."]
    if backup.reason:
        said.append(f"Problem: {backup.reason}.")
    if newest:
        said.append("It is the newest.")
    if backup.parked:
        said.append(f"Set aside before it: {', '.join(backup.parked)}.")
    return " ".join(said)


def suggested_output(destination: str, backup: BackupView, weight_set: str, *, folder: bool = False) -> str:
    """A name for an export, beside the run's final output and never the same.

    Args:
        destination: OneTrainer's ``output_model_destination``.
        backup: What is exported.
        weight_set: ``ema``, ``non-ema`` or ``both``; the name tells which, for both it is the plugin's part.
        folder: Whether the format is a folder, whose name has no ending.
    """
    path = Path(destination or "models/model.safetensors")
    stem, ending, _ = split(path.name)
    suffix = "" if weight_set == "both" else f"-{weight_set}"
    return str(path.with_name(f"{stem}-step{backup.step}{suffix}{'' if folder else ending}"))
