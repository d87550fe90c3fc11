"""What an average is made of by now: how much of its beginning, and how old the rest. Pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from onetrainer_ema_select.schedule import warmup_decay

START_LEFT: Final = 0.5
"""A share of what an average began with that is too much at the end of a run."""


class AverageAge:
    """Follows an average from update to update.

    An update with the decay b keeps b of all that the average holds and adds 1 - b of the weights as they are
    (Karras et al. 2024, arXiv 2312.02696, equation 1). So what it began with has the product of all decays left as
    its share, and the mean age of what it holds becomes ``b * (age + steps since the last update)``.

    Attributes:
        start_share: Share of what the average began with, 0 to 1; None where that is not known.
        mean_age: Steps that the weights in it are old on average, the beginning counted as weights of its time.
        at_step: Steps done at its last update.
    """

    def __init__(self, *, start_share: float | None, mean_age: float, at_step: int) -> None:
        """Begin, or go on."""
        self.start_share = start_share
        self.mean_age = mean_age
        self.at_step = at_step

    def advance(self, decay: float, *, step: int) -> None:
        """Note an update with this decay when so many steps were done."""
        if self.start_share is not None:
            self.start_share *= decay
        self.mean_age = decay * (self.mean_age + max(step - self.at_step, 0))
        self.at_step = step


def settled_age(decay: float, steps_per_update: int) -> float:
    """Return the mean age that an average of a constant decay comes to: ``b / (1 - b)`` updates, in steps."""
    return decay / (1.0 - decay) * steps_per_update if decay < 1.0 else math.inf


def young_half_life(half_life: float, age: float | None) -> float:
    """Return the half-life that an average which began with nothing has by now.

    After t half-lives its weights are ``2 ** -a`` for a from 0 to t. The younger half of them by weight is the last
    ``1 - log2(1 + 2 ** -t)`` half-lives: nothing at first, half of the run so far while t is small, 1 in the end.

    Args:
        half_life: What it comes to, in any unit.
        age: Its age t in half-lives; None for endlessly old.
    """
    return half_life if age is None else half_life * (1.0 - math.log2(1.0 + 2.0**-age))


def power_half_life(gamma: float, time: float) -> float:
    """Return the half-life of a power-function average at a time, in the unit of the time.

    The weights of time s count ``s ** gamma`` (Karras et al. 2024, arXiv 2312.02696, equation 2). The half of them by
    weight that is younger is the last ``1 - 2 ** (-1 / (gamma + 1))`` of the time: it grows with the run.
    """
    return time * (1.0 - math.pow(2.0, -1.0 / (gamma + 1.0)))


def later_share(share: float, *, decay: float, updates: Iterable[int], at_least: float) -> float:
    """Return what is left of a share after further updates with OneTrainer's decay.

    Args:
        share: What there is now.
        decay: The decay that the warm-up rises to.
        updates: Optimizer steps (0-based) of the updates to come.
        at_least: The counting ends as soon as less is left, with a share below it.
    """
    for optimization_step in updates:
        share *= warmup_decay(optimization_step, decay)
        if share < at_least:
            break
    return share
