"""The paired t-test against closed forms, printed tables and a numeric integral."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean, stdev

import pytest

from onetrainer_ema_select.paired import chance, paired_difference, two_sided_t

# Two-sided critical values as tables print them: degrees of freedom, p = 0.05, p = 0.01.
TABLE = [
    (1, 12.7062, 63.6567),
    (2, 4.3027, 9.9248),
    (3, 3.1824, 5.8409),
    (4, 2.7764, 4.6041),
    (5, 2.5706, 4.0321),
    (9, 2.2622, 3.2498),
    (10, 2.2281, 3.1693),
    (30, 2.0423, 2.7500),
    (120, 1.9799, 2.6174),
]


@pytest.mark.parametrize(("degrees", "five", "one"), TABLE)
def test_the_critical_values_of_the_tables(degrees: int, five: float, one: float) -> None:
    assert two_sided_t(five, degrees) == pytest.approx(0.05, rel=1e-4)
    assert two_sided_t(-one, degrees) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 2.5, 7.0])
def test_the_closed_forms_of_one_and_two_degrees(t: float) -> None:
    assert two_sided_t(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-14)
    assert two_sided_t(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-14)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 19, 50])
@pytest.mark.parametrize("t", [0.3, 1.7, 3.0])
def test_the_integral_of_the_density(t: float, degrees: int) -> None:
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)

    def density(x: float) -> float:
        return math.exp(log_scale - (degrees + 1) / 2 * math.log1p(x * x / degrees))

    steps = 2000  # Simpson's rule
    width = t / steps
    inside = density(0) + density(t) + sum((4 if k % 2 else 2) * density(k * width) for k in range(1, steps))
    assert two_sided_t(t, degrees) == pytest.approx(1 - 2 * inside * width / 3, abs=1e-11)


def test_many_degrees_are_the_normal_distribution() -> None:
    assert two_sided_t(1.959964, 100_000) == pytest.approx(0.05, abs=1e-5)
    assert two_sided_t(2.5, 10_001) == pytest.approx(2 * NormalDist().cdf(-2.5), abs=2e-5)


def test_scipy_says_the_same() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(0)
    for count in (2, 3, 10, 57):
        first = [generator.gauss(1, 1) for _ in range(count)]
        second = [value + generator.gauss(0.1, 0.3) for value in first]
        ours = paired_difference(first, second)
        assert ours.standard_error is not None
        assert chance(ours.mean, ours.standard_error, count) == pytest.approx(
            stats.ttest_rel(first, second).pvalue, rel=1e-9
        )


def test_the_mean_and_its_standard_error() -> None:
    first, second = [3.0, 1.0, 4.0, 1.5], [2.5, 1.25, 3.0, 1.0]
    differences = [0.5, -0.25, 1.0, 0.5]
    found = paired_difference(first, second)
    assert found.mean == fmean(differences)
    assert found.standard_error == pytest.approx(stdev(differences) / 2, rel=1e-14)


def test_one_pair_has_no_standard_error() -> None:
    assert paired_difference([2.0], [1.5]) == paired_difference([1.0], [0.5])
    assert paired_difference([2.0], [1.5]).standard_error is None


def test_pairs_that_all_differ_alike_are_no_chance() -> None:
    assert chance(0.5, 0.0, 2) == 0.0
    assert chance(0.0, 0.0, 2) == 1.0


def test_numbers_at_the_end_of_the_range() -> None:
    found = paired_difference([1e308, 0.0], [0.0, 1e308])
    assert found.mean == 0.0
    assert found.standard_error is None or math.isfinite(found.standard_error)


def test_the_test_is_right_as_often_as_it_says() -> None:
    """Of 2000 comparisons of sets that are equally good, a hundredth comes out below 0.01, a tenth below 0.1."""
    generator = random.Random(5)
    below = {0.01: 0, 0.1: 0}
    for _ in range(2000):
        differences = [generator.gauss(0, 1) for _ in range(6)]
        found = paired_difference(differences, [0.0] * 6)
        assert found.standard_error is not None
        probability = chance(found.mean, found.standard_error, 6)
        for bound in below:
            below[bound] += probability < bound
    assert 8 <= below[0.01] <= 34
    assert 160 <= below[0.1] <= 240
