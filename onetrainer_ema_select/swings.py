"""Whether the live weights swing about their average rather than go somewhere with it."""

from __future__ import annotations

import math
import statistics
from collections import deque

from torch import Tensor

from onetrainer_ema_select.drift import Sample

LOOKS = 5
LIMIT = 4.0


class Swings:
    """Compares how far the live weights are from the average with how far the average has come.

    The average lags behind by its mean age T. Weights that move steadily are as far ahead of it as it moves in T:
    the ratio of the two distances is 1. For a random walk, which training in small steps resembles, it is
    ``sqrt(0.5 / 0.368)`` = 1.17; for an average over the whole run so far, 2 in both cases. Where the live weights
    jump about a place that they do not leave, the average stands still between them, and the ratio grows with the
    length: ``sqrt(T / 0.63)`` where each update is somewhere else. So a median of more than 4 over several looks
    is swinging, and an average shorter than about ten updates cannot show it.

    The figures follow from ``average += (1 - b) * (live - average)`` with 1 - b = 1 / T: for steps of variance s, a
    walk is off by ``s * T / 2`` (squared), and the average moves by ``s * T / e`` (squared) in T.
    """

    def __init__(self) -> None:
        """Begin without any look."""
        self._averages: deque[tuple[int, Tensor]] = deque()
        self._ratios: deque[float] = deque(maxlen=LOOKS)

    def add(self, sample: Sample, *, step: int, mean_age: float) -> float | None:
        """Take in a look, and return the ratio of the two distances.

        Args:
            sample: Its averages are kept until they are older than is needed.
            step: Steps done; more than at the last look.
            mean_age: Of what the average holds, in steps.

        Returns:
            None while the average has not moved or is too young to tell.
        """
        since = step - max(mean_age, 1.0)
        # Of those that lie far enough back the newest: the first is dropped only when the second does, too.
        while len(self._averages) > 1 and self._averages[1][0] <= since:
            self._averages.popleft()
        ratio = None
        if self._averages and self._averages[0][0] <= since:
            moved = float((sample.ema - self._averages[0][1]).double().norm())
            if moved > 0.0:
                ratio = float((sample.live - sample.ema).double().norm()) / moved
                self._ratios.append(ratio)
        self._averages.append((step, sample.ema))
        return ratio

    @property
    def swinging(self) -> float | None:
        """The median of the last ratios where it is beyond the limit, else None."""
        if len(self._ratios) < LOOKS:
            return None
        median = statistics.median(self._ratios)
        return median if median > LIMIT and math.isfinite(median) else None
