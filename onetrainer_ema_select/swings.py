"""Whether the live weights swing about their average rather than go somewhere with it."""

from __future__ import annotations

import math
import statistics
from collections import deque

from torch import Tensor

from onetrainer_ema_select.drift import Sample

LOOKS = 5
LIMIT = 4.0
# With more left of what it began with, the average has not yet come to move as fast as the weights.
_SETTLED = 0.05


class Swings:
    """Compares how far the live weights are from the average with how far the average has come.

    The average lags behind by its mean age T. Weights that move steadily are as far ahead of it as it moves in T:
    the ratio of the two distances is 1. For a random walk, which training in small steps resembles, it is
    ``sqrt(0.5 / 0.368)`` = 1.17; for an average over the whole run so far, 2 in both cases. Where the live weights
    jump about a place that they do not leave, the average stands still between them, and the ratio grows with the
    length: ``sqrt(T / 0.63)`` where each update is somewhere else. So a median of more than 4 is swinging, and an
    average shorter than about ten updates cannot show it. The median is over the looks in the last T, and over 5 at
    least: after a single jump the ratio is beyond 4 for some tenths of T only.

    The figures follow from ``average += (1 - b) * (live - average)`` with 1 - b = 1 / T: for steps of variance s, a
    walk is off by ``s * T / 2`` (squared), and the average moves by ``s * T / e`` (squared) in T.
    """

    def __init__(self) -> None:
        """Begin without any look."""
        self._averages: deque[tuple[int, Tensor]] = deque()
        self._ratios: deque[tuple[int, float]] = deque()
        self._since = 0.0

    def add(self, sample: Sample, *, step: int, mean_age: float, start_share: float | None) -> float | None:
        """Take in a look, and return the ratio of the two distances.

        Args:
            sample: Its averages are kept until they are older than is needed.
            step: Steps done; more than at the last look.
            mean_age: Of what the average holds, in steps.
            start_share: Share of what the average began with; None where that is long ago.

        Returns:
            None while the average has not moved or is too young to tell.
        """
        since = self._since = step - max(mean_age, 1.0)
        # Of those that lie far enough back the newest: the first is dropped only when the second does, too.
        while len(self._averages) > 1 and self._averages[1][0] <= since:
            self._averages.popleft()
        ratio = None
        settled = start_share is None or start_share <= _SETTLED
        if settled and self._averages and self._averages[0][0] <= since:
            moved = float((sample.ema - self._averages[0][1]).double().norm())
            if moved > 0.0:
                ratio = float((sample.live - sample.ema).double().norm()) / moved
                if math.isfinite(ratio):
                    self._ratios.append((step, ratio))
        while len(self._ratios) > LOOKS and self._ratios[1][0] <= since:
            self._ratios.popleft()
        self._averages.append((step, sample.ema))
        return ratio

    @property
    def swinging(self) -> float | None:
        """The median of the last ratios where it is beyond the limit, else None."""
        if len(self._ratios) < LOOKS or self._ratios[0][0] > self._since:
            return None
        median = statistics.median(ratio for _, ratio in self._ratios)
        return median if median > LIMIT else None
