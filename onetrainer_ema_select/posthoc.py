"""Post-hoc EMA: which mixture of snapshots is an EMA of a length that was never kept. Pure arithmetic, no torch.

A power-function EMA at time t holds the weights of time s in the share of Karras et al. 2024 (arXiv 2312.02696,
section 3.1)::

    p(s) = (gamma + 1) * s ** gamma / t ** (gamma + 1),    0 < s <= t

Its width, as a standard deviation divided by t, is called sigma_rel and names the length. Tracks of two lengths,
kept from time to time as snapshots, are mixed so that their shares come as near as possible to those of any other
length (section 3.2 and appendix C). Time is counted in whatever unit the caller likes, from the run's beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onetrainer_ema_select.errors import PostHocError
from onetrainer_ema_select.sigma_rel import LONGEST, SHORTEST

_LIMIT: Final = math.sqrt(1 / 12)
# Cells of the grid to the width of the shortest profile. With 16 the fit's error is right to a hundredth of itself.
_CELLS_PER_WIDTH: Final = 16
_MOST_CELLS: Final = 20_000
# Mixtures that the profiles hardly show are left out of the solution: they would only amplify the rounding of the
# snapshots, as coefficients of thousands for two tracks of nearly the same length.
_CONDITION: Final = 1e-6
# A coefficient below this moves no float32 weight, and its snapshot need not be read.
_NEGLIGIBLE: Final = 1e-8
# Coefficients are multiples of this, so that their sum is exact in any order.
_GRAIN: Final = 2.0**-40
_GOOD_ENOUGH: Final = 0.05
_MUCH: Final = 0.05


def sigma_rel_from_gamma(gamma: float) -> float:
    """Return the relative width of a power-function EMA (Karras et al. 2024, arXiv 2312.02696, section 3.1).

    It is the standard deviation of the profile divided by its end::

        sigma_rel = sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))

    Args:
        gamma: The exponent, more than -1.

    Raises:
        PostHocError: (a ValueError) If it is not.
    """
    if not gamma > -1:
        raise PostHocError(f"The exponent {gamma} was found; it has to be more than -1. Name a larger one.")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent of a power-function EMA of this relative width: the inverse of `sigma_rel_from_gamma`.

    From 0 on the width falls as the exponent rises, so halving the interval finds it to the last digit.

    Args:
        sigma_rel: More than 0 and at most sqrt(1/12), which is the mean of everything.

    Raises:
        PostHocError: (a ValueError) If there is no such exponent.
    """
    if not 0 < sigma_rel <= _LIMIT:
        raise PostHocError(
            f"The length sigma_rel {sigma_rel} was found; it has to be more than 0 and at most {_LIMIT:.4f}, which is "
            f"the plain mean of all steps. Name one from {SHORTEST} to {LONGEST}.",
            expected=f"{SHORTEST} to {LONGEST}",
            found=str(sigma_rel),
        )
    low, high = 0.0, 1 / sigma_rel  # sigma_rel < 1 / (gamma + 2)
    while low < (middle := (low + high) / 2) < high:
        if sigma_rel_from_gamma(middle) > sigma_rel:
            low = middle
        else:
            high = middle
    return low if sigma_rel_from_gamma(low) == sigma_rel else high


def power_decay(previous: float, time: float, gamma: float) -> float:
    """Return what an update at `time` keeps of a power-function EMA that was updated last at `previous`.

    The new weights stand for all the time since then: their share is the integral of the profile from `previous` to
    `time`, 1 - (previous / time) ** (gamma + 1). For updates one apart this is the beta of Karras et al. 2024
    (arXiv 2312.02696, section 3.1).

    Args:
        previous: Time of the last update, 0 for none: then nothing is kept.
        time: Time of this one, not before that and more than 0.
        gamma: The exponent.

    Raises:
        PostHocError: (a ValueError) If time runs backwards.
    """
    if not 0 <= previous <= time or time <= 0:
        raise PostHocError(
            f"An update at the time {time} after one at {previous} was asked for; time has to go on from 0. "
            "Please report this."
        )
    return math.pow(previous / time, gamma + 1)


@dataclass(frozen=True)
class Profile:
    """In which share a power-function EMA holds the weights of each time: of a snapshot, or of one that is wanted.

    Attributes:
        sigma_rel: Its length.
        time: When its track was last updated (not: when the snapshot was written).
        interval: Time from one update of the track to the next; 0 for one that is updated all the time.
        begun_at: When the track began. The weights of that moment stand for all the time before it.
    """

    sigma_rel: float
    time: float
    interval: float = 0.0
    begun_at: float = 0.0

    @property
    def gamma(self) -> float:
        """The exponent."""
        return gamma_from_sigma_rel(self.sigma_rel)

    def masses(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shares that fall to each cell of a grid, exactly; they sum to 1 if it ends at `time` or later.

        Args:
            edges: [cells + 1], rising from 0; `begun_at` and `time` are among them.
        """
        so_far = np.where(edges < self.begun_at, 0.0, np.minimum(edges / self.time, 1.0) ** (self.gamma + 1))
        return np.diff(so_far)


@dataclass(frozen=True)
class Description:
    """A profile in two numbers, in the caller's unit of time.

    Attributes:
        mean_age: How long before the end the weights in it are from, on average; time / (gamma + 2) for a whole one.
        width: Their standard deviation; sigma_rel * time for a whole one.
    """

    mean_age: float
    width: float


@dataclass(frozen=True)
class Fit:
    """A mixture of snapshots, and how near it comes.

    Attributes:
        coefficients: One for each snapshot, in their order; they sum to exactly 1. Some are negative, and 0 where a
            snapshot is not needed.
        error: Distance between the wanted and the achieved profile, as a share of the wanted one (both as root of
            the integral of the square).
        requested: The wanted profile.
        achieved: The mixture's.
        reachable: Whether the error is small: at most 0.05, with which the weights of trajectories of all kinds were
            off by at most 0.05 of what separates them from the last ones.
        warning: What is wrong and what to do, in full sentences; empty if nothing is.
        amplification: How many times the independent rounding of one snapshot (to 16 bits, say) the mixture's is.
    """

    coefficients: tuple[float, ...]
    error: float
    requested: Description
    achieved: Description
    reachable: bool
    warning: str = ""
    amplification: float = 1.0


def solve(snapshots: Sequence[Profile], target: Profile) -> Fit:
    """Find the mixture of snapshots whose profile is nearest to the wanted one, in least squares.

    This is the problem of Karras et al. 2024 (arXiv 2312.02696, appendix C, algorithm 3), with two differences: the
    coefficients sum to one, and the profiles are compared as the tracks really are, cell by cell between their
    updates, where the paper's closed form takes them to be updated all the time. Where updates are many, some share
    a cell, so it takes a fraction of a second for any run.

    Args:
        snapshots: In any order. Those later than the target's time get the coefficient 0.
        target: The wanted length and time; its `interval` and `begun_at` are not looked at.

    Raises:
        PostHocError: If there is no snapshot up to that time.
    """
    usable = [place for place, one in enumerate(snapshots) if 0 < one.time <= target.time * (1 + 1e-12)]
    if not usable:
        raise PostHocError(
            f"There is no snapshot up to the time {target.time:,.6g} among {len(snapshots)}. Name a later one."
        )
    chosen = [snapshots[place] for place in usable]
    edges = _grid(chosen, target)
    widths = np.diff(edges)
    if min(one.begun_at for one in chosen) > 0 and len(widths) > 1:
        # The first cell holds one set of weights, like the others, however long it stands for.
        widths[0] = widths[1]
    scale = 1 / np.sqrt(widths)
    wanted = Profile(target.sigma_rel, target.time).masses(edges)
    masses = np.stack([one.masses(edges) for one in chosen], axis=1)
    found = _least_squares(masses * scale[:, None], wanted * scale, _newest(chosen, target))
    achieved = masses @ found
    error = float(np.linalg.norm((achieved - wanted) * scale) / np.linalg.norm(wanted * scale))
    coefficients = [0.0] * len(snapshots)
    for place, coefficient in zip(usable, found.tolist(), strict=True):
        coefficients[place] = coefficient
    return Fit(
        tuple(coefficients),
        error,
        _describe(wanted, edges, target.time),
        _describe(achieved, edges, target.time),
        error <= _GOOD_ENOUGH,
        _warning(chosen, target, error),
        float(np.linalg.norm(found)),
    )


def _newest(chosen: Sequence[Profile], target: Profile) -> int:
    """The one of the newest whose length is nearest to the wanted one: it takes what the others leave of the 1."""
    return max(range(len(chosen)), key=lambda i: (chosen[i].time, -abs(chosen[i].sigma_rel - target.sigma_rel)))


def _grid(chosen: Sequence[Profile], target: Profile) -> NDArray[np.float64]:
    """Edges of cells from 0 to the wanted time: at updates, all of them unless they lie closer than matters."""
    begin = min(one.begun_at for one in chosen)
    breaks = sorted({begin, target.time, *(one.time for one in chosen), *(one.begun_at for one in chosen)} - {0.0})
    interval = min(one.interval for one in chosen)
    width = min(target.sigma_rel, *(one.sigma_rel for one in chosen)) / _CELLS_PER_WIDTH
    most = max(_MOST_CELLS // len(breaks), 1)
    edges = [np.zeros(1)]
    before = 0.0
    for end in breaks:
        span = end - before
        if end <= begin:
            steps = 1.0
        elif interval > 0:
            # From the end back, as updates have to do with snapshots; the rest is one shorter cell.
            together = max(math.floor(width * end / interval), math.ceil(span / interval / most), 1)
            steps = max(span / (interval * together), 1.0)
        else:
            steps = min(math.ceil(span / (width * end)), most)
        backwards = np.arange(math.ceil(steps - 1e-6)) / steps
        edges.append((end - span * backwards)[::-1])
        before = end
    return np.concatenate(edges)


def _least_squares(profiles: NDArray[np.float64], wanted: NDArray[np.float64], reference: int) -> NDArray[np.float64]:
    """Coefficients that sum to 1 and make `profiles @ coefficients` as near as possible to `wanted`.

    The reference's one is expressed by the others, which leaves an ordinary problem. It is solved from the profiles
    themselves, not their inner products, whose condition is the square of this.
    """
    others = np.delete(np.arange(profiles.shape[1]), reference)
    differences = profiles[:, others] - profiles[:, [reference]]
    lengths = np.linalg.norm(differences, axis=0)
    lengths[lengths == 0] = 1.0  # the same profile twice: one of them will do
    solution, *_ = np.linalg.lstsq(differences / lengths, wanted - profiles[:, reference], rcond=_CONDITION)
    solution = solution / lengths
    solution[np.abs(solution) < _NEGLIGIBLE] = 0.0
    coefficients = np.zeros(profiles.shape[1])
    coefficients[others] = np.round(solution / _GRAIN) * _GRAIN
    coefficients[reference] = 1.0 - coefficients.sum()
    return coefficients


def _describe(masses: NDArray[np.float64], edges: NDArray[np.float64], time: float) -> Description:
    """Mean age and width of a profile that is even within each cell."""
    ages = time - (edges[1:] + edges[:-1]) / 2
    mean = float(masses @ ages)
    variance = float(masses @ ((ages - mean) ** 2 + np.diff(edges) ** 2 / 12))
    return Description(mean, math.sqrt(max(variance, 0.0)))


def _warning(chosen: Sequence[Profile], target: Profile, error: float) -> str:
    """What a user should know of a mixture, in full sentences."""
    sentences: list[str] = []
    if error > _GOOD_ENOUGH:
        sentences.append(
            f"The snapshots cannot give sigma_rel {target.sigma_rel:g}: the mixture's profile is off by "
            f"{error:.0%}. {' '.join(_reasons(chosen, target))}"
        )
    begin = min(one.begun_at for one in chosen)
    missing = (begin / target.time) ** (target.gamma + 1)
    if missing > _MUCH:
        sentences.append(
            f"The tracks began at the time {begin:,.6g}; {missing:.0%} of this average lies before that, and the "
            "weights of that moment stand in for it. Name a shorter length to leave it out."
        )
    return " ".join(sentences)


def _reasons(chosen: Iterable[Profile], target: Profile) -> list[str]:
    """Why a length cannot be had, a sentence each, with what to do."""
    chosen = list(chosen)
    lengths = sorted({one.sigma_rel for one in chosen})
    newest = max(one.time for one in chosen)
    reasons: list[str] = []
    if newest < target.time * (1 - 1e-9):
        reasons.append(f"The newest snapshot up to the time {target.time:,.6g} is of {newest:,.6g}: ask for that time.")
    if target.sigma_rel < lengths[0]:
        reasons.append(f"It is shorter than the shortest track, {lengths[0]:g}: ask for that one or longer ones.")
    elif target.sigma_rel > lengths[-1]:
        reasons.append(
            f"It is longer than the longest track, {lengths[-1]:g}, and the snapshots reach back too little or are "
            "too far apart for it: ask for a shorter one."
        )
    if not reasons:
        reasons.append(
            f"There are too few snapshots ({len(chosen)}): ask for the length of a track, "
            f"{' or '.join(f'{length:g}' for length in lengths)}."
        )
    return reasons
