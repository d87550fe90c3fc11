"""A post-hoc EMA of a length that was never kept: which mixture of a run's snapshots gives it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onetrainer_ema_select.errors import PostHocError
from onetrainer_ema_select.integrity import read_safetensors_header, safetensors_problem
from onetrainer_ema_select.posthoc import Fit, Profile, solve
from onetrainer_ema_select.snapshots import Snapshot, line_to

# Lengths between those of the tracks stay below it, whatever the number of snapshots.
_MOST_AMPLIFIED: Final = 2.0


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
