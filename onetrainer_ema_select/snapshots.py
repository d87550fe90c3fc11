"""Snapshots of post-hoc tracks: which there are, which led to a moment, and which mixture of them gives a length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onetrainer_ema_select.errors import ManifestError, PostHocError
from onetrainer_ema_select.integrity import read_safetensors_header, safetensors_problem
from onetrainer_ema_select.manifest import FOLDER, Manifest, PostHocRecord, PowerTrackRecord, read_manifest
from onetrainer_ema_select.posthoc import Fit, Profile, solve
from onetrainer_ema_select.workspace import BACKUP_FOLDER, MILESTONE_FOLDER, SNAPSHOT_FOLDER, folders_in, pinned_backups

STATE_FOLDER = Path(FOLDER, "post_hoc")
"""Of a backup: the tracks as they were then, from which a resumed run goes on."""

# Lengths between those of the tracks stay below it, whatever the number of snapshots.
_MOST_AMPLIFIED: Final = 2.0

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


@dataclass(frozen=True)
class Source:
    """One file of a mixture, and its share in it; shares may be negative."""

    file: Path
    coefficient: float
    sigma_rel: float
    step: int


@dataclass(frozen=True)
class Mixture:
    """An average of a length that was never kept, as a mixture of snapshots.

    Attributes:
        sigma_rel: Its length.
        end: The moment it is of.
        line: All snapshots up to then, the earliest first.
        sources: The files that are mixed.
        fit: How near the mixture comes.
        notes: What was left out, for people.
    """

    sigma_rel: float
    end: Snapshot
    line: tuple[Snapshot, ...]
    sources: tuple[Source, ...]
    fit: Fit
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What it is made of, and how near it comes to what was asked for."""
        used = len({source.step for source in self.sources})
        asked, got = self.fit.requested, self.fit.achieved
        return (
            f"sigma_rel {self.sigma_rel:g} at step {self.end.step}, from {used} of {len(self.line)} snapshots; its "
            f"profile is {self.fit.error:.2%} off the one asked for (mean age {got.mean_age:,.4g} images for "
            f"{asked.mean_age:,.4g}, width {got.width:,.4g} for {asked.width:,.4g})"
        )


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


def mix(end: Snapshot, snapshots: Iterable[Snapshot], *, sigma_rel: float) -> Mixture:
    """Find the mixture of snapshots that gives a length at a moment.

    Args:
        end: The moment.
        snapshots: All of the workspace.
        sigma_rel: The length.

    Raises:
        PostHocError: A snapshot is damaged.
    """
    line, notes, weights = [], [], _weights(end)
    for one in line_to(end, snapshots):
        if not (found := _weights(one)) or not weights or found == weights:
            line.append(one)
        else:
            notes.append(f"The snapshot of step {one.step} was left out: it is of other weights than step {end.step}.")
    tracks = [(one, track) for one in line for track in one.record.tracks if one.record.time > 0]
    if not tracks or end.record.time <= 0:
        raise PostHocError(
            f"The tracks of step {end.step} have not been updated yet, so there is nothing to mix. Name a later step.",
            path=end.path,
        )
    profiles = [
        Profile(track.sigma_rel, one.record.time, interval=one.record.interval, begun_at=track.begun_at)
        for one, track in tracks
    ]
    fit = solve(profiles, Profile(sigma_rel, end.record.time))
    sources = tuple(
        Source(one.file(track), coefficient, track.sigma_rel, one.step)
        for (one, track), coefficient in zip(tracks, fit.coefficients, strict=True)
        if coefficient != 0
    )
    for source in sources:
        if problem := safetensors_problem(source.file):
            raise PostHocError(
                f"The snapshot {source.file} {problem}. Bring back a whole copy, or delete its folder to go on "
                "without it: how near the rest comes is said then.",
                path=source.file,
            )
    warning = " ".join(filter(None, (fit.warning, _rounding_warning(sigma_rel, sources))))
    return Mixture(sigma_rel, end, tuple(line), sources, dataclasses.replace(fit, warning=warning), notes=tuple(notes))


def _rounding_warning(sigma_rel: float, sources: Sequence[Source]) -> str:
    """What to know of a mixture that is made of the small differences of large shares of 16-bit files.

    Roundings of different files add up as their squares where they are independent: where the weights move by more
    than the rounding between snapshots. Otherwise they are partly the same, and less comes of them.
    """
    if math.hypot(*(source.coefficient for source in sources)) <= _MOST_AMPLIFIED:
        return ""
    amplified = math.hypot(*(source.coefficient for source in sources if _of_16_bits(source.file)))
    if amplified <= _MOST_AMPLIFIED:
        return ""
    nearest = min((source.sigma_rel for source in sources), key=lambda one: abs(one - sigma_rel))
    return (
        f"The snapshots are of 16 bits, and sigma_rel {sigma_rel:g} multiplies their rounding by up to "
        f"{amplified:,.1f}. Ask for a length nearer to {nearest:g}, that of a track, and keep the tracks in 32 bits in "
        "the next run (ema_dtype FLOAT_32)."
    )


def _of_16_bits(file: Path) -> bool:
    entries = read_safetensors_header(file).values()
    return any(isinstance(entry, dict) and entry.get("dtype") in ("BF16", "F16") for entry in entries)


def _weights(snapshot: Snapshot) -> frozenset[tuple[str, str]]:
    """Names and shapes in the first of its files; a damaged one has none, and is named when it is needed."""
    try:
        header = read_safetensors_header(snapshot.file(snapshot.record.tracks[0]))
    except (OSError, ValueError, IndexError):
        return frozenset()
    entries = {name: entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)}
    return frozenset((name, str(entry.get("shape"))) for name, entry in entries.items())
