"""Trajectories made up to swing, and others that only look as if; what is said of each."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onetrainer_ema_select.average_age import AverageAge
from onetrainer_ema_select.drift import Sample
from onetrainer_ema_select.schedule import warmup_decay
from onetrainer_ema_select.swings import LIMIT, LOOKS, Swings

SIZE, STEPS = 400, 600
Live = Callable[[int, Tensor], Tensor]

GENERATOR = torch.Generator()


def noise() -> Tensor:
    return torch.randn(SIZE, generator=GENERATOR, dtype=torch.float64)


def constant(decay: float) -> Callable[[int], float]:
    return lambda step: decay


def warm_up(decay: float) -> Callable[[int], float]:
    return lambda step: warmup_decay(step - 1, decay)


def whole_run(step: int) -> float:
    return (step - 1) / step


def followed(live_at: Live, decay: Callable[[int], float], *, every: int) -> tuple[list[float], list[int]]:
    """The ratios of all looks, and the steps at which swinging was seen."""
    GENERATOR.manual_seed(1)
    live = torch.zeros(SIZE, dtype=torch.float64)
    average = live.clone()
    age, swings = AverageAge(start_share=1.0, mean_age=0.0, at_step=0), Swings()
    ratios, seen = [], []
    for step in range(1, STEPS + 1):
        live = live_at(step, live)
        average += (1 - decay(step)) * (live - average)
        age.advance(decay(step), step=step)
        if step % every == 0:
            taken = Sample(average.clone(), live.clone(), 0)
            ratio = swings.add(taken, step=step, mean_age=age.mean_age, start_share=age.start_share)
            ratios += [] if ratio is None else [ratio]
            seen += [] if swings.swinging is None else [step]
    return ratios, seen


DIRECTION = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
STEADY: dict[str, Live] = {
    "drift": lambda step, live: live + DIRECTION,
    "random walk": lambda step, live: live + noise(),
    "walk and drift": lambda step, live: live + noise() + 0.3 * DIRECTION,
    "slowing down": lambda step, live: live + (1 - step / STEPS) * (DIRECTION + noise()),
    "coming to rest": lambda step, live: live + 0.02 * (100 * DIRECTION - live) + 0.1 * DIRECTION,
    "standing still": lambda step, live: live,
    "one jump": lambda step, live: live + DIRECTION * (300 if step == 300 else 1),
}
SWINGING: dict[str, Live] = {
    # gradient descent on a parabola with nearly twice the largest learning rate that is of use: overshoots
    "overshooting": lambda step, live: -0.999 * live + (DIRECTION * 10 if step == 1 else 0),
    "noise about a place": lambda step, live: DIRECTION + noise(),
    "two places in turn, drifting slowly": lambda step, live: (-1) ** step * 30 * DIRECTION + 0.02 * step * DIRECTION,
}
DECAYS = {"constant": constant(0.98), "warm-up": warm_up(0.9999), "whole run": whole_run}


@pytest.mark.parametrize("every", [1, 7, 50])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", STEADY)
def test_steady_training_is_not_called_swinging(kind: str, decay: str, every: int) -> None:
    _, seen = followed(STEADY[kind], DECAYS[decay], every=every)
    assert seen == []


@pytest.mark.parametrize("every", [1, 7, 50])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", SWINGING)
def test_swinging_is_seen(kind: str, decay: str, every: int) -> None:
    _, seen = followed(SWINGING[kind], DECAYS[decay], every=every)
    assert seen


@pytest.mark.parametrize(
    ("kind", "expected"), [("drift", 1.0), ("random walk", math.sqrt(0.5 * math.e)), ("noise about a place", None)]
)
def test_the_ratios_are_those_of_the_formulas(kind: str, expected: float | None) -> None:
    """As the docstring has them, at a mean age of 49 and looks at every step."""
    ratios, _ = followed((STEADY | SWINGING)[kind], constant(0.98), every=1)
    settled = sorted(ratios[len(ratios) // 2 :])
    expected = expected or math.sqrt(49 / (1 - 1 / math.e))
    assert settled[len(settled) // 2] == pytest.approx(expected, rel=0.05)


def test_a_short_average_shows_no_swings() -> None:
    _, seen = followed(SWINGING["noise about a place"], constant(0.8), every=1)
    assert seen == []


def test_few_looks_prove_nothing_and_the_weights_of_a_wreck_are_no_swing() -> None:
    swings, still = Swings(), torch.zeros(3)
    for step in range(1, LOOKS + 2):
        assert swings.swinging is None
        live = torch.full((3,), 100.0)
        ratio = swings.add(Sample(still + step, live, 0), step=step, mean_age=1.0, start_share=None)
        assert (ratio is None) == (step == 1)
    assert swings.swinging is not None
    assert swings.swinging > LIMIT
    broken = Swings()
    for step in range(1, 20):
        broken.add(Sample(still + step, still * math.nan, 0), step=step, mean_age=1.0, start_share=None)
    assert broken.swinging is None


def test_no_more_averages_are_kept_than_are_needed() -> None:
    swings = Swings()
    for step in range(1, 1000):
        swings.add(Sample(torch.zeros(3), torch.zeros(3), 0), step=step, mean_age=20.0, start_share=0.0)
    assert len(swings._averages) == 21
