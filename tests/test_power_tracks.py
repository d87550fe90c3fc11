from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onetrainer_ema_select import power_tracks as module
from onetrainer_ema_select.averaging import Averager
from onetrainer_ema_select.errors import PostHocError, TrackError
from onetrainer_ema_select.length import Pace
from onetrainer_ema_select.posthoc import Profile, gamma_from_sigma_rel
from onetrainer_ema_select.power_tracks import PowerTracks
from onetrainer_ema_select.tracks import WeightTracks

SIGMA_RELS = (0.05, 0.10)
SHAPES = {"matrix": (6, 7), "bias": (5,), "scale": ()}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def walk(live: dict[str, nn.Parameter], step: int) -> None:
    """One step of a training that depends on nothing but its number."""
    generator = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for parameter in live.values():
            parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))


def tracks(live: dict[str, nn.Parameter], **options) -> PowerTracks:
    return PowerTracks(live.items(), **{"sigma_rels": SIGMA_RELS, "device": "cpu", **options})


def exact(history: list[tuple[float, dict[str, Tensor]]], sigma_rel: float, name: str, *, begun_at: float = 0.0):
    """The power-function EMA by its sum, in float64: each weights count for the time since the ones before them."""
    exponent = gamma_from_sigma_rel(sigma_rel) + 1
    end = history[-1][0]
    total, before = torch.zeros(SHAPES[name], dtype=torch.float64), 0.0
    for time, weights in history:
        total += ((time / end) ** exponent - (before / end) ** exponent) * weights[name].double()
        before = time
    assert not begun_at or history[0][0] == begun_at
    return total


def copy(live: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in live.items()}


@pytest.mark.parametrize("interval", [1, 4, 10])
@pytest.mark.parametrize("images", [1, 24])
def test_every_track_is_the_exact_average_whatever_the_interval(interval: int, images: int) -> None:
    # Ten steps apart, ema-pytorch's weight, which is always that of one step, makes 0.246 out of 0.05.
    live = parameters()
    power = tracks(live, interval=interval)
    history = []
    for step in range(60):
        walk(live, step)
        if power.due(step):
            power.step((step + 1) * images)
            history.append(((step + 1) * images, copy(live)))
    assert (power.updates, power.time) == (60 // interval, 60 * images)
    for sigma_rel, averages in power.sets().items():
        for name, average in averages.items():
            wanted = exact(history, sigma_rel, name)
            torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-6)


def test_updates_at_any_times_are_weighted_by_the_time_between_them() -> None:
    live, history = parameters(), []
    power = tracks(live)
    for step, time in enumerate([3, 4, 9, 10, 30, 31.5]):
        walk(live, step)
        power.step(time)
        history.append((time, copy(live)))
    for sigma_rel in SIGMA_RELS:
        found = power.sets()[sigma_rel]["matrix"].double()
        torch.testing.assert_close(found, exact(history, sigma_rel, "matrix"), rtol=1e-5, atol=1e-6)


def test_a_track_that_begins_late_keeps_the_first_weights_for_the_time_before() -> None:
    live = parameters()
    power = tracks(live, time=20.0)
    history = [(20.0, copy(live))]
    for step in range(20, 40):
        walk(live, step)
        power.step(step + 1)
        history.append((step + 1.0, copy(live)))
    assert power.begun_at == {0.05: 20.0, 0.10: 20.0}
    assert power.profile(0.10, interval_time=1.0) == Profile(0.10, 40.0, 1.0, 20.0)
    for sigma_rel in SIGMA_RELS:
        found = power.sets()[sigma_rel]["matrix"].double()
        torch.testing.assert_close(found, exact(history, sigma_rel, "matrix", begun_at=20.0), rtol=1e-5, atol=1e-6)


def test_the_same_time_again_and_an_earlier_one_change_nothing() -> None:
    live = parameters()
    power = tracks(live)
    power.step(1)
    walk(live, 1)
    power.step(2)
    before = {s: {n: t.clone() for n, t in averages.items()} for s, averages in power.sets().items()}
    walk(live, 2)
    power.step(2)
    assert power.pending(2) is None
    # a run that was ended right after an update, and goes on with a smaller batch
    power.step(1)
    assert power.pending(1) is None
    assert (power.updates, power.time) == (2, 2)
    assert all(torch.equal(power.sets()[s][n], t) for s, averages in before.items() for n, t in averages.items())


def test_before_the_first_update_the_sets_are_what_the_parameters_were() -> None:
    live = parameters()
    start = copy(live)
    power = tracks(live)
    walk(live, 0)
    assert all(torch.equal(average, start[name]) for name, average in power.sets()[0.05].items())
    power.step(1)
    assert all(torch.equal(average, live[name]) for name, average in power.sets()[0.05].items())


@pytest.mark.parametrize("dtype", [torch.float32, None])
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    dtype: torch.dtype | None, parameter_dtype: torch.dtype
) -> None:
    live = parameters(parameter_dtype)
    whole = tracks(live, interval=3, dtype=dtype)
    for step in range(30):
        walk(live, step)
        if whole.due(step):
            whole.step(step + 1)

    live = parameters(parameter_dtype)
    power = tracks(live, interval=3, dtype=dtype)
    for step in range(30):
        walk(live, step)
        if power.due(step):
            power.step(step + 1)
        if step in (7, 11):  # between two updates, and right after one
            saved = {s: {n: t.clone() for n, t in averages.items()} for s, averages in power.sets().items()}
            power = tracks(
                live,
                interval=3,
                dtype=dtype,
                initial=saved,
                begun_at=power.begun_at,
                time=power.time,
                updates=power.updates,
            )
            assert saved == {0.05: {}, 0.10: {}}
    assert (power.time, power.updates) == (whole.time, whole.updates)
    for sigma_rel, averages in whole.sets().items():
        for name, average in averages.items():
            assert torch.equal(power.sets()[sigma_rel][name], average)


def test_a_length_that_is_new_on_resume_begins_then() -> None:
    live = parameters()
    power = tracks(live, sigma_rels=(0.05,))
    power.step(10)
    walk(live, 1)
    again = tracks(live, initial={0.05: dict(power.sets()[0.05])}, begun_at={0.05: 0.0}, time=10.0, updates=1)
    assert again.begun_at == {0.05: 0.0, 0.10: 10.0}
    assert torch.equal(again.sets()[0.10]["matrix"], live["matrix"])
    assert not torch.equal(again.sets()[0.05]["matrix"], live["matrix"])


def test_a_saved_set_is_kept_without_a_copy_but_never_as_the_live_weight() -> None:
    live = parameters()
    saved = torch.zeros(6, 7)
    power = tracks(live, sigma_rels=(0.05,), initial={0.05: {"matrix": saved, "bias": live["bias"].detach()}})
    assert power.sets()[0.05]["matrix"].data_ptr() == saved.data_ptr()
    assert power.sets()[0.05]["bias"].data_ptr() != live["bias"].data_ptr()


def test_what_does_not_train_has_no_average_until_it_does() -> None:
    live = parameters()
    live["matrix"].requires_grad_(False)
    live["count"] = nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    power = tracks(live)
    power.step(1)
    assert set(power.sets()[0.05]) == {"bias", "scale"}
    assert power.nbytes == 2 * 4 * 6
    live["matrix"].requires_grad_(True)
    walk({"matrix": live["matrix"]}, 3)
    power.step(2)
    assert all(torch.equal(averages["matrix"], live["matrix"]) for averages in power.sets().values())


@pytest.mark.parametrize("together", [False, True], ids=["alone", "beside"])
def test_a_weight_that_stops_training_goes_on_being_averaged(together: bool) -> None:
    """A text encoder that is trained for the first epochs only: its last weights count more and more."""
    live = parameters()
    ordinary = beside(live, interval=1) if together else None
    power = ordinary.beside if ordinary is not None else tracks(live)
    history = []
    for step in range(1, 41):
        if step > 8:
            live["bias"].requires_grad_(False)
        walk({name: weight for name, weight in live.items() if weight.requires_grad}, step)
        if ordinary is not None:
            ordinary.step(live.values(), step - 1)
        else:
            power.step(float(step))
        history.append((power.time, copy(live)))
    for sigma_rel in SIGMA_RELS:
        for name in SHAPES:
            expected = exact(history, sigma_rel, name)
            assert torch.allclose(power.sets()[sigma_rel][name].double(), expected, atol=1e-6), (sigma_rel, name)
    if ordinary is not None:  # as OneTrainer's own EMA, which leaves it alone from then on
        frozen = ordinary.average("bias").clone()
        ordinary.step(live.values(), 40)
        assert torch.equal(ordinary.average("bias"), frozen)


def test_a_new_length_holds_what_has_stopped_training_too() -> None:
    live = parameters()
    first = tracks(live, sigma_rels=(0.05,))
    first.step(1.0)
    live["bias"].requires_grad_(False)
    saved = {0.05: {name: average.clone() for name, average in first.sets()[0.05].items()}}
    power = tracks(live, initial=saved, time=1.0, updates=1, begun_at={0.05: 0.0})
    assert [set(averages) for averages in power.sets().values()] == [set(SHAPES)] * 2


def test_a_failure_of_the_power_tracks_does_not_keep_the_average_from_moving() -> None:
    live = parameters()
    ordinary, alone = beside(live, interval=1), beside(live, interval=1)
    alone.beside = None

    def broken(step: int) -> float:
        raise PostHocError(f"no time at {step}")

    ordinary.beside._time_of = broken
    walk(live, 1)
    alone.step(live.values(), 0)
    with pytest.raises(PostHocError, match="no time at 0"):
        ordinary.step(live.values(), 0)
    assert ordinary.updates == 1
    assert all(torch.equal(ordinary.average(name), alone.average(name)) for name in SHAPES)


def test_16_bit_tracks_round_at_random_each_in_its_own_way_and_leave_the_global_state_alone() -> None:
    live = {"weights": nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))}
    power = tracks(live, sigma_rels=(0.1000, 0.1001), dtype=None, time=1000.0)
    with torch.no_grad():
        live["weights"].fill_(1.125)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for step in range(1001, 1101):
        power.step(step)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    one, two = (averages["weights"].double() for averages in power.sets().values())
    exponent = gamma_from_sigma_rel(0.1) + 1
    assert one.mean().item() == pytest.approx(1.125 - 0.125 * (1000 / 1100) ** exponent, rel=1e-3)
    assert not torch.equal(one, two)


def test_parameters_are_read_once_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    live, calls = parameters(), []
    original = Averager.update_several

    def counted(self, lists, read, **options) -> None:
        calls.append((len(lists), len(read)))
        original(self, lists, read, **options)

    monkeypatch.setattr(Averager, "update_several", counted)
    before = copy(live)
    tracks(live).step(1)
    assert calls == [(2, 3)]
    assert all(torch.equal(live[name], value) for name, value in before.items())


def test_names_shapes_lengths_and_times_that_cannot_be() -> None:
    live = parameters()
    with pytest.raises(TrackError, match="Two parameters have the name 'matrix'"):
        PowerTracks([*live.items(), ("matrix", live["bias"])], sigma_rels=(0.05,), device="cpu")
    with pytest.raises(TrackError, match=r"saved power-function average of 'matrix' has the shape \(2,\).*RESTART"):
        tracks(live, initial={0.05: {"matrix": torch.zeros(2)}})
    with pytest.raises(PostHocError, match="Name one from"):
        tracks(live, sigma_rels=(0.5,))
    with pytest.raises(PostHocError, match=r"sigma_rel 0\.05 began at 3 and was last updated at 2"):
        tracks(live, sigma_rels=(0.05,), initial={0.05: {}}, begun_at=3.0, time=2.0)
    with pytest.raises(PostHocError, match="257 lengths were asked for, at most 256"):
        tracks({}, sigma_rels=[0.01 + n / 10_000 for n in range(257)])


# -- beside the ordinary average -----------------------------------------------------------------------------


def beside(live: dict[str, nn.Parameter], *, interval: int, **options) -> WeightTracks:
    ordinary = WeightTracks(live.items(), decay=0.9, device="cpu", **options)
    ordinary.beside = tracks(live, interval=interval, time_of=lambda step: 8.0 * (step + 1), dtype=ordinary.dtype)
    return ordinary


@pytest.mark.parametrize("dtype", [torch.float32, None])
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("intervals", [(1, 1), (1, 4), (4, 1), (2, 3)])
def test_one_pass_makes_the_same_averages_as_two(
    intervals: tuple[int, int], parameter_dtype: torch.dtype, dtype: torch.dtype | None
) -> None:
    live = parameters(parameter_dtype)
    together = beside(live, interval=intervals[1], dtype=dtype, update_step_interval=intervals[0])
    ordinary = WeightTracks(live.items(), decay=0.9, device="cpu", dtype=dtype, update_step_interval=intervals[0])
    power = tracks(live, interval=intervals[1], dtype=dtype)
    for step in range(13):
        walk(live, step)
        together.step(live.values(), step)
        ordinary.step(live.values(), step)
        if power.due(step):
            power.step(8.0 * (step + 1))
    assert (together.updates, together.beside.updates) == (ordinary.updates, power.updates)
    assert (together.updates, power.time) == (13 // intervals[0], 13 // intervals[1] * intervals[1] * 8)
    for (name, found), (_, wanted) in zip(together.averages(), ordinary.averages(), strict=True):
        assert torch.equal(found, wanted)
        for sigma_rel in SIGMA_RELS:
            assert torch.equal(together.beside.sets()[sigma_rel][name], power.sets()[sigma_rel][name])


def test_the_pass_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    live, calls = parameters(), []
    monkeypatch.setattr(Averager, "update_several", lambda self, lists, read, **options: calls.append(len(lists)))
    together = beside(live, interval=2)
    together.step(live.values(), 0)
    together.step(live.values(), 1)
    assert calls == [1, 3]


def test_the_live_weights_are_averaged_also_where_the_ordinary_average_is_shown() -> None:
    live = parameters()
    together = beside(live, interval=1, update_step_interval=5)
    walk(live, 0)
    now = copy(live)
    together.show_ema()
    together.step(live.values(), 0)
    assert all(torch.equal(average, now[name]) for name, average in together.beside.sets()[0.05].items())


def test_a_half_life_goes_on_only_when_the_ordinary_average_is_moved() -> None:
    live = parameters()
    pace = Pace(lambda: 10.0, interval=2, accumulation=1, at_step=0, age=0.0)
    together = beside(live, interval=1, update_step_interval=2, pace=pace)
    together.step(live.values(), 0)
    assert (pace.at_step, together.beside.time) == (0, 8.0)
    together.step(live.values(), 1)
    assert (pace.at_step, together.beside.time) == (2, 16.0)


def test_a_weight_that_begins_to_train_begins_in_all_averages() -> None:
    live = parameters()
    live["matrix"].requires_grad_(False)
    together = beside(live, interval=1)
    together.step(live.values(), 0)
    assert together.average("matrix") is None
    live["matrix"].requires_grad_(True)
    walk(live, 1)
    together.step(live.values(), 1)
    assert torch.equal(together.average("matrix"), live["matrix"])
    assert torch.equal(together.beside.sets()[0.05]["matrix"], live["matrix"])


def test_without_a_time_the_ordinary_tracks_move_alone() -> None:
    live = parameters()
    ordinary = WeightTracks(live.items(), decay=0.9, device="cpu")
    ordinary.beside = tracks(live)
    ordinary.step(live.values(), 0)
    assert (ordinary.updates, ordinary.beside.updates) == (1, 0)


def test_seeds_of_two_updates_and_of_two_tracks_never_meet() -> None:
    live = parameters()
    power = tracks(live)
    seen: list[int] = []
    for time in range(1, 6):
        update = power.pending(time)
        seen += update.seeds
        power.step(time)
    assert len(set(seen)) == 10
    assert min(seen) >= module._SEED_OFFSET > 2**40
