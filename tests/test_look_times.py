"""When the sets are looked at, with clocks of several speeds."""

from __future__ import annotations

from onetrainer_ema_select.look_times import FREE_SECONDS, SHARE, LookTimes


def looks(*, run_steps: int | None, steps: int, a_step: float, a_look: float, interval: int = 1) -> list[int]:
    """The steps at which is looked, when steps and looks take so many seconds."""
    now, times, found = 100.0, LookTimes(now=100.0), []
    for step in range(1, steps + 1):
        now += a_step
        if step % interval == 0 and times.is_due(step, now=now):
            now += a_look
            times.looked(step, run_steps=run_steps, seconds=a_look)
            found.append(step)
    return found


def test_a_short_run_is_looked_at_at_every_update() -> None:
    assert looks(run_steps=40, steps=40, a_step=0.1, a_look=0.01) == list(range(1, 41))
    assert looks(run_steps=40, steps=40, a_step=0.1, a_look=0.01, interval=5) == list(range(5, 41, 5))


def test_a_long_run_has_some_two_hundred_looks_at_steps_that_are_fixed() -> None:
    fast, slow = (looks(run_steps=10_000, steps=10_000, a_step=speed, a_look=0.005) for speed in (0.001, 60.0))
    assert fast == slow == list(range(1, 10_001, 50))


def test_looks_that_take_long_are_left_out() -> None:
    found = looks(run_steps=10_000, steps=10_000, a_step=0.5, a_look=3.0)
    assert 1 < len(found) < 200
    assert len(found) * 3.0 <= FREE_SECONDS + SHARE * (10_000 * 0.5 + len(found) * 3.0)
    # spread over the run, not spent at its beginning
    assert found[0] == 1
    assert found[-1] > 9000


def test_one_look_that_takes_longer_than_the_run_is_the_only_one() -> None:
    assert looks(run_steps=100, steps=100, a_step=0.1, a_look=30.0) == [1]


def test_looks_become_rarer_where_the_length_is_not_known() -> None:
    found = looks(run_steps=None, steps=10_000, a_step=1.0, a_look=0.001)
    assert found[:20] == list(range(1, 21))
    assert 100 < len(found) < 220
