"""Snapshots of post-hoc tracks: which there are, and which led to a moment. Needs neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.errors import ManifestError, PostHocError
from onetrainer_ema_select.manifest import FOLDER, Manifest, PostHocRecord, PowerTrackRecord, read_manifest
from onetrainer_ema_select.workspace import BACKUP_FOLDER, MILESTONE_FOLDER, SNAPSHOT_FOLDER, folders_in, pinned_backups

STATE_FOLDER = Path(FOLDER, "post_hoc")
"""Of a backup: the tracks as they were then, from which a resumed run goes on."""

_SWITCH_ON = "Switch post-hoc EMA on for the next run: --config-value ema_select.post_hoc_sigma_rels=0.05,0.10"


@dataclass(frozen=True)
class Snapshot:
    """The tracks of a moment: a snapshot, or what a backup holds of them.

    Attributes:
        path: Its folder.
        manifest: What it holds.
        record: The part of it on post-hoc tracks.
    """

    path: Path
    manifest: Manifest
    record: PostHocRecord

    @property
    def step(self) -> int:
        """The host's ``global_step`` it is of."""
        return self.manifest.step

    def file(self, track: PowerTrackRecord) -> Path:
        """Where a track's weights lie."""
        return self.path / track.file


def read_snapshot(folder: Path) -> Snapshot:
    """Read what a snapshot, or a backup, says of its tracks.

    Raises:
        EmaSelectError: If it says nothing of any, or cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.post_hoc is None:
        raise PostHocError(f"{folder} holds no post-hoc tracks. {_SWITCH_ON}", path=folder)
    return Snapshot(folder, manifest, manifest.post_hoc)


def find_snapshots(workspace: Path) -> tuple[tuple[Snapshot, ...], tuple[str, ...]]:
    """The snapshots of a workspace, the newest first, and a sentence for each that cannot be read."""
    found, problems = [], []
    for folder in folders_in(workspace / SNAPSHOT_FOLDER):
        try:
            found.append(read_snapshot(folder))
        except (ManifestError, PostHocError) as error:
            problems.append(f"The snapshot {folder.name} was left out: {error}")
    return tuple(sorted(found, key=_age, reverse=True)), tuple(problems)


def _age(snapshot: Snapshot) -> tuple[str, int]:
    """Sort key, newest greatest: by the time in the name, and by the file's own within the same second."""
    try:
        written = (snapshot.path / "manifest.json").stat().st_mtime_ns
    except OSError:
        written = 0
    return snapshot.path.name[:19], written


def choose_end(workspace: Path, at: str, snapshots: Sequence[Snapshot]) -> Snapshot:
    """The moment that an average is made for.

    Args:
        workspace: The run's.
        at: A step, or the name or path of a snapshot, backup or milestone; empty for the newest snapshot.
        snapshots: All of the workspace, the newest first.

    Raises:
        EmaSelectError: There is none such.
    """
    if at and not at.isdigit():
        return _named(workspace, at, snapshots)
    if not snapshots:
        raise PostHocError(
            f"There are no snapshots of post-hoc tracks in {workspace / SNAPSHOT_FOLDER}. Give the workspace of a run "
            f"that kept some. {_SWITCH_ON}",
            path=workspace,
            expected="snapshots",
            found="none",
        )
    if not at:
        return snapshots[0]
    # Another line may have come by this step too: the newest one counts.
    line = (*reversed(line_to(snapshots[0], snapshots)), *snapshots)
    found = next((one for one in line if one.step == int(at)), None)
    if found is None:
        raise PostHocError(
            f"There is no snapshot of step {at} in {workspace / SNAPSHOT_FOLDER}, only of {_steps(snapshots)}. Give "
            "one of these with --at, or nothing for the newest.",
            path=workspace,
            expected=_steps(snapshots),
            found=at,
        )
    return found


def _named(workspace: Path, at: str, snapshots: Sequence[Snapshot]) -> Snapshot:
    by_name = next((one for one in snapshots if at == one.path.name), None)
    if by_name is not None:
        return by_name
    places = [workspace / place / at for place in (BACKUP_FOLDER, MILESTONE_FOLDER)] + [Path(at)]
    pinned = [folder for folder, manifest in pinned_backups(workspace) if at in manifest.milestones]
    folder = next((place for place in (*places, *pinned) if place.is_dir()), None)
    if folder is None:
        raise PostHocError(
            f'"{at}" is neither a step nor a snapshot, backup or milestone of {workspace}. Snapshots there are of '
            f"{_steps(snapshots)}. Give one of these steps with --at, or nothing for the newest.",
            path=workspace,
            found=at,
        )
    return read_snapshot(folder)


def _steps(snapshots: Iterable[Snapshot]) -> str:
    steps = sorted({one.step for one in snapshots})
    return f"the steps {', '.join(map(str, steps))}" if steps else "no step"


def line_to(end: Snapshot, snapshots: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    """The snapshots of the training that led to a moment, itself among them, the earliest first.

    A run that was taken back to an earlier backup leaves later snapshots behind: these are of another line.
    """
    until = {stretch.id: stretch.until_step for stretch in end.record.line}
    until[end.record.stretch] = end.step
    found: dict[int, Snapshot] = {}
    for one in sorted(snapshots, key=_age, reverse=True):
        same_run = one.manifest.run == end.manifest.run
        if same_run and one.step <= until.get(one.record.stretch, -1):
            found.setdefault(one.step, one)
    found[end.step] = end
    return tuple(found[step] for step in sorted(found))
