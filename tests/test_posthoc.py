from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onetrainer_ema_select.errors import EmaSelectError, PostHocError
from onetrainer_ema_select.posthoc import (
    Fit,
    Profile,
    gamma_from_sigma_rel,
    power_decay,
    sigma_rel_from_gamma,
    solve,
)
from onetrainer_ema_select.sigma_rel import LONGEST, SHORTEST, parse_sigma_rels

Floats = NDArray[np.float64]

# -- lengths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    # The two tracks of section 3.2 of the paper, by their lengths and by their exponents.
    [(0.05, 16.97), (0.10, 6.94)],
)
def test_the_papers_lengths(sigma_rel: float, gamma: float) -> None:
    assert round(gamma_from_sigma_rel(sigma_rel), 2) == gamma
    assert round(sigma_rel_from_gamma(gamma), 3) == sigma_rel


def test_the_mean_of_everything_has_the_greatest_length() -> None:
    assert sigma_rel_from_gamma(0) == pytest.approx(1 / math.sqrt(12), rel=1e-15)
    assert gamma_from_sigma_rel(math.sqrt(1 / 12)) == pytest.approx(0, abs=1e-9)


@given(st.floats(1e-6, 0.2886))
def test_the_exponent_gives_the_length_back(sigma_rel: float) -> None:
    assert sigma_rel_from_gamma(gamma_from_sigma_rel(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [SHORTEST, 0.03, 0.05, 0.1, 0.2, LONGEST])
def test_the_exponent_is_the_root_of_the_cubic(sigma_rel: float) -> None:
    # (gamma + 2) ** 2 * (gamma + 3) * sigma_rel ** 2 = gamma + 1, multiplied out; numpy finds the roots its own way.
    t = sigma_rel**-2
    assert gamma_from_sigma_rel(sigma_rel) == pytest.approx(max(np.roots([1, 7, 16 - t, 12 - t]).real), rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.2888, 1.0, math.nan, math.inf])
def test_a_length_that_no_average_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(PostHocError, match=r"more than 0 and at most 0\.2887.*Name one from 0\.005 to 0\.28"):
        gamma_from_sigma_rel(sigma_rel)
    assert issubclass(PostHocError, ValueError) and issubclass(PostHocError, EmaSelectError)


@pytest.mark.parametrize("gamma", [-1.0, -3.0, math.nan])
def test_an_exponent_of_no_average_is_refused(gamma: float) -> None:
    with pytest.raises(PostHocError, match="more than -1"):
        sigma_rel_from_gamma(gamma)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_the_length_is_the_standard_deviation_of_the_profile(sigma_rel: float) -> None:
    gamma = gamma_from_sigma_rel(sigma_rel)
    times, weights = quadrature(1.0)
    density = weights * (gamma + 1) * times**gamma
    mean = (density * times).sum()
    assert density.sum() == pytest.approx(1, rel=1e-8)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-8)
    assert math.sqrt((density * (times - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-8)


def quadrature(end: float, *, pieces: int = 200) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights for the integral from 0 to `end`."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.linspace(0, end, pieces + 1)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


# -- updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 7, 10])
@pytest.mark.parametrize("gamma", [0.7, 6.94, 16.97, 190.0])
def test_decays_give_every_update_its_stretch_of_the_profile(gamma: float, interval: int) -> None:
    times = np.arange(interval, 301, interval)
    shares = np.zeros(len(times))
    for place, (before, now) in enumerate(itertools.pairwise([0, *times])):
        decay = power_decay(before, now, gamma)
        shares *= decay
        shares[place] += 1 - decay
    end = times[-1]
    expected = ((times / end) ** (gamma + 1)) - (((times - interval) / end) ** (gamma + 1))
    np.testing.assert_allclose(shares, expected, rtol=1e-9, atol=1e-300)
    assert shares.sum() == pytest.approx(1, rel=1e-12)


def test_the_first_update_keeps_nothing_and_none_keeps_everything() -> None:
    assert power_decay(0, 5, 6.94) == 0
    assert power_decay(5, 5, 6.94) == 1


@pytest.mark.parametrize(("previous", "now"), [(2, 1), (0, 0), (-1, 1), (math.nan, 1)])
def test_time_does_not_run_backwards(previous: float, now: float) -> None:
    with pytest.raises(PostHocError, match="time has to go on"):
        power_decay(previous, now, 6.94)


# -- what is typed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.05, 0.10", (0.05, 0.1)),
        ("0.10,0.05 , .1", (0.05, 0.1)),
        ("", ()),
        (" , ", ()),
        ("\uff10\uff0e05\uff0c0.1", (0.05, 0.1)),
        ("0.2; 0.005、0.28", (0.005, 0.2, 0.28)),
    ],
)
def test_lengths_are_read(text: str, found: tuple[float, ...]) -> None:
    assert parse_sigma_rels(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abc", '"abc" is not a number such as 0.05'),
        ("0.05 0.10", '"0.05 0.10" is not a number such as 0.05'),
        ("5%", '"5%" is not a number such as 0.05'),
        ("1e-2", '"1e-2" is not a number such as 0.05'),
        ("nan", '"nan" is not a number such as 0.05'),
        ("0,05", '"0" is not from 0.005 to 0.28, "05" is not from 0.005 to 0.28'),
        ("0.29, 0.05, 0.001", '"0.29" is not from 0.005 to 0.28, "0.001" is not from 0.005 to 0.28'),
        ("-0.05", '"-0.05" is not from 0.005 to 0.28'),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_sigma_rels(text)
    assert str(caught.value) == said


# -- the paper's own problem, with its closed form -----------------------------------------------------------


def inner_product(a: Profile, b: Profile) -> float:
    """The integral of two profiles' product (Karras et al. 2024, appendix C).

    Up to the earlier end m the product is (ga + 1) (gb + 1) s ** (ga + gb) / (ta ** (ga + 1) tb ** (gb + 1)); its
    integral, with m ** (ga + gb + 1) spread over the two fractions so that nothing overflows, is this.
    """
    m = min(a.time, b.time)
    shares = (m / a.time) ** (a.gamma + 1) * (m / b.time) ** (b.gamma + 1)
    return (a.gamma + 1) * (b.gamma + 1) / ((a.gamma + b.gamma + 1) * m) * shares


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Profile(0.05, 100), Profile(0.05, 100)),
        (Profile(0.05, 100), Profile(0.10, 100)),
        (Profile(0.05, 80), Profile(0.10, 100)),
        (Profile(0.10, 80), Profile(0.05, 100)),
        (Profile(0.25, 3), Profile(0.01, 100)),
    ],
)
def test_the_closed_form_is_the_integral(a: Profile, b: Profile) -> None:
    times, weights = quadrature(min(a.time, b.time))
    product = weights.copy()
    for one in (a, b):
        product *= (one.gamma + 1) / one.time * (times / one.time) ** one.gamma
    assert inner_product(a, b) == pytest.approx(product.sum(), rel=1e-8)


def paper_solution(snapshots: Sequence[Profile], target: Profile) -> tuple[Floats, float]:
    """Algorithm 3 with the sum fixed by a Lagrange multiplier, and the error of it, from inner products alone."""
    gram = np.array([[inner_product(a, b) for b in snapshots] for a in snapshots])
    right = np.array([inner_product(a, target) for a in snapshots])
    ones = np.ones((len(snapshots), 1))
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    found = np.linalg.solve(system, np.append(right, 1))[:-1]
    square = found @ gram @ found - 2 * found @ right + inner_product(target, target)
    return found, math.sqrt(max(square, 0) / inner_product(target, target))


def every(step: float, end: float, sigma_rels: Sequence[float] = (0.05, 0.10), *, interval: float = 0.0):
    times = np.arange(step, end * (1 + 1e-9), step)
    return [Profile(sigma_rel, float(t), interval) for t in times for sigma_rel in sigma_rels]


@pytest.mark.parametrize("sigma_rel", [0.03, 0.08, 0.15, 0.2])
def test_tracks_that_are_updated_all_the_time_give_the_papers_solution(sigma_rel: float) -> None:
    snapshots, target = every(10, 80), Profile(sigma_rel, 80)
    expected, error = paper_solution(snapshots, target)
    fit = solve(snapshots, target)
    assert fit.error == pytest.approx(error, rel=0.03, abs=1e-4)
    np.testing.assert_allclose(fit.coefficients, expected, atol=0.02)


def test_all_lengths_in_use_come_out_of_the_papers_two_tracks() -> None:
    snapshots = every(2, 100)
    errors = {s: solve(snapshots, Profile(s, 100)).error for s in (0.03, 0.05, 0.07, 0.10, 0.15, 0.20)}
    assert all(error < 0.006 for error in errors.values()), errors
    assert errors[0.05] == errors[0.10] == 0


# -- the solution on real trajectories -----------------------------------------------------------------------


def power_ema(weights: Floats, times: Floats, sigma_rel: float, *, first: Floats | None = None, begun_at: float = 0):
    """The power-function EMA by its sum, in float64: weights [updates, n]; `first` stands for what was before."""
    gamma = gamma_from_sigma_rel(sigma_rel)
    edges = np.concatenate([[begun_at], times]) / times[-1]
    shares = np.diff(edges ** (gamma + 1))
    rest = edges[0] ** (gamma + 1)
    return shares @ weights + (rest * first if first is not None else 0)


def trajectory(kind: str, steps: int, *, seed: int, size: int = 64) -> Floats:
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(size=(steps, size)), axis=0)
    if kind == "walk":
        return walk
    if kind == "drift":
        return walk + 0.5 * np.arange(1, steps + 1)[:, None] * rng.normal(size=size)
    if kind == "settled":  # noise around where a decaying movement has come to rest
        decay = np.exp(-np.arange(steps) / (0.1 * steps))[:, None]
        return decay * rng.normal(size=size) * 3 + rng.normal(size=(steps, size)) * 0.1
    raise ValueError(kind)


def synthesis_error(fit: Fit, snapshots: Sequence[Profile], weights: Floats, times: Floats, sigma_rel: float) -> float:
    """Distance of the mixture from the exact average, as a share of what separates that from the last weights."""
    mixed = np.zeros(weights.shape[1])
    for coefficient, one in zip(fit.coefficients, snapshots, strict=True):
        here = times <= one.time * (1 + 1e-9)
        mixed += coefficient * power_ema(weights[here], times[here], one.sigma_rel)
    wanted = power_ema(weights, times, sigma_rel)
    return float(np.linalg.norm(mixed - wanted) / np.linalg.norm(wanted - weights[-1]))


@pytest.mark.parametrize("kind", ["walk", "drift", "settled"])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.08, 0.10, 0.15])
@pytest.mark.parametrize(("steps", "step", "bound"), [(48, 4, 0.05), (5000, 100, 0.01)])
def test_mixtures_of_snapshots_are_the_exact_average(
    steps: int, step: int, bound: float, sigma_rel: float, kind: str
) -> None:
    times = np.arange(1, steps + 1, dtype=np.float64)
    snapshots = every(step, steps, interval=1)
    fit = solve(snapshots, Profile(sigma_rel, steps))
    assert fit.reachable and fit.warning == ""
    for seed in range(3):
        weights = trajectory(kind, steps, seed=seed)
        assert synthesis_error(fit, snapshots, weights, times, sigma_rel) <= bound


@pytest.mark.parametrize("sigma_rel", [0.02, 0.03, 0.20, 0.25, 0.28])
@pytest.mark.parametrize(("steps", "step"), [(48, 4), (1000, 100), (5000, 100)])
def test_what_is_called_reachable_is_near_the_exact_average(steps: int, step: int, sigma_rel: float) -> None:
    times = np.arange(1, steps + 1, dtype=np.float64)
    snapshots = every(step, steps, interval=1)
    fit = solve(snapshots, Profile(sigma_rel, steps))
    assert fit.reachable == (fit.warning == "") == (fit.error <= 0.05)
    if fit.reachable:
        for kind in ("walk", "drift", "settled"):
            assert synthesis_error(fit, snapshots, trajectory(kind, steps, seed=1), times, sigma_rel) <= 0.05


@pytest.mark.parametrize("interval", [4, 10])
def test_tracks_that_are_updated_seldom_give_the_average_of_their_updates(interval: int) -> None:
    times = np.arange(interval, 481, interval, dtype=np.float64)
    snapshots = every(40, 480, interval=interval)
    for sigma_rel in (0.05, 0.08, 0.15):
        fit = solve(snapshots, Profile(sigma_rel, 480))
        for kind in ("walk", "settled"):
            weights = trajectory(kind, 480, seed=1)[times.astype(int) - 1]
            assert synthesis_error(fit, snapshots, weights, times, sigma_rel) <= 0.01


def test_the_grid_of_updates_is_used_where_profiles_are_as_narrow_as_the_interval() -> None:
    # Twelve updates, each with a snapshot: every mixture of updates can be had, so nothing is left of the error.
    snapshots = every(4, 48, interval=4)
    for sigma_rel in (0.08, 0.15, 0.25):
        assert solve(snapshots, Profile(sigma_rel, 48)).error < 1e-3
        assert paper_solution(snapshots, Profile(sigma_rel, 48))[1] > 3e-3


def test_the_unit_of_time_does_not_matter() -> None:
    one, many = every(4, 48, interval=1), every(4 * 32, 48 * 32, interval=32)
    first, second = solve(one, Profile(0.08, 48)), solve(many, Profile(0.08, 48 * 32))
    np.testing.assert_allclose(first.coefficients, second.coefficients, atol=1e-9)
    assert second.achieved.mean_age == pytest.approx(32 * first.achieved.mean_age, rel=1e-6)


def test_a_million_steps_are_solved_as_well() -> None:
    snapshots = every(20_000, 1_000_000, interval=1)
    fit = solve(snapshots, Profile(0.08, 1_000_000))
    assert fit.error == pytest.approx(solve(every(100, 5000, interval=1), Profile(0.08, 5000)).error, rel=0.1)
    assert fit.achieved.mean_age == pytest.approx(1_000_000 / (gamma_from_sigma_rel(0.08) + 2), rel=1e-3)


# -- what a solution is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.08, 0.25])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_coefficients_sum_to_exactly_one_in_any_order(sigma_rel: float, count: int) -> None:
    snapshots = every(1, count, interval=0.25)
    found = solve(snapshots, Profile(sigma_rel, count)).coefficients
    assert len(found) == len(snapshots)
    assert sum(found) == sum(reversed(found)) == sum(sorted(found)) == math.fsum(found) == 1.0


def test_a_snapshot_of_the_wanted_length_is_all_that_is_needed() -> None:
    snapshots = every(100, 5000, interval=1)
    fit = solve(snapshots, Profile(0.10, 3000))
    assert [(one.time, c) for one, c in zip(snapshots, fit.coefficients, strict=True) if c] == [(3000, 1.0)]
    assert fit.error == 0
    assert fit.amplification == 1


def test_the_amplification_of_rounding_is_that_of_independent_numbers() -> None:
    fit = solve(every(4, 48, interval=1), Profile(0.03, 48))
    noise = np.random.default_rng(0).normal(size=(len(fit.coefficients), 20_000))
    assert np.std(np.array(fit.coefficients) @ noise) == pytest.approx(fit.amplification, rel=0.03)
    assert fit.amplification > 2


def test_snapshots_after_the_wanted_time_are_left_out() -> None:
    snapshots = every(10, 100, interval=1)
    fit = solve(snapshots, Profile(0.08, 60))
    assert all(c == 0 for one, c in zip(snapshots, fit.coefficients, strict=True) if one.time > 60)
    alone = solve([one for one in snapshots if one.time <= 60], Profile(0.08, 60))
    assert fit.coefficients[: len(alone.coefficients)] == alone.coefficients


def test_the_order_of_the_snapshots_does_not_matter() -> None:
    snapshots = every(10, 100, interval=1)
    forwards, backwards = solve(snapshots, Profile(0.08, 100)), solve(snapshots[::-1], Profile(0.08, 100))
    np.testing.assert_allclose(forwards.coefficients, backwards.coefficients[::-1], atol=1e-9)


def test_the_same_snapshot_twice_and_nearly_the_same_lengths_do_no_harm() -> None:
    snapshots = [*every(10, 100, interval=1), *every(10, 100, interval=1)]
    fit = solve(snapshots, Profile(0.08, 100))
    assert fit.error <= solve(every(10, 100, interval=1), Profile(0.08, 100)).error * 1.01
    near = every(10, 100, (0.05, 0.0501), interval=1)
    assert max(map(abs, solve(near, Profile(0.10, 100)).coefficients)) < 1000


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15])
def test_a_profile_is_described_by_its_mean_age_and_width(sigma_rel: float) -> None:
    fit = solve(every(10, 1000, interval=0), Profile(sigma_rel, 1000))
    gamma = gamma_from_sigma_rel(sigma_rel)
    assert fit.requested.mean_age == pytest.approx(1000 / (gamma + 2), rel=1e-3)
    assert fit.requested.width == pytest.approx(1000 * sigma_rel, rel=1e-3)
    assert fit.achieved.mean_age == pytest.approx(fit.requested.mean_age, rel=1e-2)
    assert fit.achieved.width == pytest.approx(fit.requested.width, rel=1e-2)


def test_no_snapshot_up_to_that_time_is_an_error() -> None:
    with pytest.raises(PostHocError, match=r"no snapshot up to the time 5 among 20\. Name a later one"):
        solve(every(10, 100), Profile(0.08, 5))
    with pytest.raises(PostHocError, match="among 0"):
        solve([], Profile(0.08, 5))


# -- what cannot be had --------------------------------------------------------------------------------------


def test_a_length_shorter_than_the_shortest_track_is_warned_of() -> None:
    fit = solve(every(100, 1000, interval=1), Profile(0.02, 1000))
    assert not fit.reachable and fit.error > 0.1
    assert "cannot give sigma_rel 0.02" in fit.warning
    assert "shorter than the shortest track, 0.05: ask for that one or longer ones" in fit.warning


def test_a_length_longer_than_the_longest_track_needs_old_snapshots() -> None:
    assert solve(every(100, 5000, interval=1), Profile(0.20, 5000)).reachable
    fit = solve(every(100, 5000, interval=1)[-4:], Profile(0.20, 5000))
    assert not fit.reachable
    assert "longer than the longest track, 0.1, and the snapshots reach back too little" in fit.warning


def test_a_time_without_a_snapshot_is_warned_of() -> None:
    fit = solve(every(100, 5000, interval=1), Profile(0.05, 5090))
    assert not fit.reachable
    assert "The newest snapshot up to the time 5,090 is of 5,000: ask for that time." in fit.warning


def test_a_single_snapshot_gives_only_its_own_length() -> None:
    snapshots = [Profile(s, 5000, 1) for s in (0.05, 0.25)]
    fit = solve(snapshots, Profile(0.12, 5000))
    assert not fit.reachable
    assert "There are too few snapshots (2): ask for the length of a track, 0.05 or 0.25." in fit.warning


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15])
def test_tracks_that_began_late_take_the_first_weights_for_all_before(sigma_rel: float) -> None:
    begun_at, end = 200.0, 1000
    times = np.arange(begun_at + 1, end + 1)
    snapshots = [Profile(s, float(t), 1, begun_at) for t in range(250, end + 1, 50) for s in (0.05, 0.10)]
    fit = solve(snapshots, Profile(sigma_rel, end))
    assert fit.reachable
    walk = trajectory("walk", end, seed=4)
    first, weights = walk[int(begun_at) - 1], walk[int(begun_at) :]
    mixed = np.zeros(walk.shape[1])
    for coefficient, one in zip(fit.coefficients, snapshots, strict=True):
        here = times <= one.time
        mixed += coefficient * power_ema(weights[here], times[here], one.sigma_rel, first=first, begun_at=begun_at)
    wanted = power_ema(weights, times, sigma_rel, first=first, begun_at=begun_at)
    assert np.linalg.norm(mixed - wanted) <= 0.02 * np.linalg.norm(wanted - walk[-1])


def test_it_is_said_when_much_of_the_average_lies_before_the_tracks() -> None:
    snapshots = [Profile(s, float(t), 1, 800.0) for t in range(810, 1001, 10) for s in (0.05, 0.10)]
    fit = solve(snapshots, Profile(0.15, 1000))
    assert "The tracks began at the time 800; 36% of this average lies before that" in fit.warning
    assert "tracks began" not in solve(snapshots, Profile(0.05, 1000)).warning


def test_a_snapshot_of_the_moment_a_track_began_is_its_first_weights() -> None:
    snapshots = [Profile(0.10, 500.0, 1, 500.0), Profile(0.10, 600.0, 1, 500.0)]
    fit = solve(snapshots, Profile(0.10, 600))
    assert fit.coefficients == (0.0, 1.0)
