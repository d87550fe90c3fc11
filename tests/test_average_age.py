"""What an average holds, against the weights of its steps written out one by one."""

from __future__ import annotations

import math

import pytest

from onetrainer_ema_select.average_age import (
    AverageAge,
    later_share,
    power_half_life,
    settled_age,
    young_half_life,
)
from onetrainer_ema_select.schedule import warmup_decay


def written_out(decays: dict[int, float]) -> dict[int, float]:
    """Each step's weight in the average after updates with these decays, 0 for what it began with."""
    weights = {0: 1.0}
    for step, decay in decays.items():
        weights = {earlier: decay * weight for earlier, weight in weights.items()}
        weights[step] = 1 - decay
    return weights


@pytest.mark.parametrize("interval", [1, 5])
@pytest.mark.parametrize("limit", [0.5, 0.99, 0.9999])
def test_the_share_of_the_start_and_the_mean_age_are_those_of_the_written_out_weights(
    interval: int, limit: float
) -> None:
    decays = {step: warmup_decay(step - 1, limit) for step in range(interval, 201, interval)}
    age = AverageAge(start_share=1.0, mean_age=0.0, at_step=0)
    for step, decay in decays.items():
        age.advance(decay, step=step)
    weights, last = written_out(decays), max(decays)
    assert age.start_share == pytest.approx(weights[0], rel=1e-12)
    assert age.mean_age == pytest.approx(sum(weight * (last - step) for step, weight in weights.items()), rel=1e-12)


def test_an_average_from_elsewhere_has_an_unknown_start() -> None:
    age = AverageAge(start_share=None, mean_age=99.0, at_step=100)
    age.advance(0.5, step=101)
    assert (age.start_share, age.mean_age, age.at_step) == (None, 50.0, 101)


def test_the_age_settles_where_it_is_said_to() -> None:
    age = AverageAge(start_share=1.0, mean_age=0.0, at_step=0)
    for step in range(5, 5001, 5):
        age.advance(0.9, step=step)
    assert age.mean_age == pytest.approx(settled_age(0.9, 5)) == pytest.approx(45.0)
    assert settled_age(1.0, 5) == math.inf


@pytest.mark.parametrize("age", [1e-3, 0.5, 1.0, 3.0, 40.0])
def test_half_of_a_young_average_is_of_its_half_life(age: float) -> None:
    # weights 2 ** -a for a from 0 to the age; in half-lives, 1,000,000 of them
    count, half_life = 1_000_000, 800.0
    weights = [2.0 ** -(age * (place + 0.5) / count) for place in range(count)]
    half, total, place = 0.0, sum(weights), 0
    while half < total / 2:
        half += weights[place]
        place += 1
    assert young_half_life(half_life, age) == pytest.approx(half_life * age * place / count, rel=1e-4)


def test_an_old_average_has_its_whole_half_life() -> None:
    assert young_half_life(800.0, None) == 800.0
    assert young_half_life(800.0, 0.0) == 0.0


def test_a_share_later_on_is_the_product_of_the_decays_to_come() -> None:
    share = later_share(0.9, decay=0.9999, updates=range(90_000, 91_000), at_least=0.5)
    assert share == pytest.approx(0.9 * math.prod(min((1 + k) / (10 + k), 0.9999) for k in range(90_000, 91_000)))
    assert 0.0 < later_share(0.9, decay=0.5, updates=range(10**9), at_least=0.5) < 0.5


@pytest.mark.parametrize("gamma", [0.5, 6.94, 16.97])
def test_half_of_a_power_function_average_is_of_its_half_life(gamma: float) -> None:
    count = 100_000
    weights = [((place + 0.5) / count) ** gamma for place in range(count)]
    half, total, place = 0.0, sum(weights), count
    while half < total / 2:
        place -= 1
        half += weights[place]
    assert power_half_life(gamma, 500.0) == pytest.approx(500.0 * (count - place) / count, rel=1e-3)
