from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from onetrainer_ema_select.host.window.background import Latest
from onetrainer_ema_select.host.window.guard import guarded


class Loop:
    """A toolkit's timer."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def call_after(self, widget: Any, delay_ms: int, func: Callable[[], None]) -> None:
        self.waiting.append(func)

    def run(self) -> None:
        until = time.monotonic() + 10
        while self.waiting:
            assert time.monotonic() < until
            self.waiting.pop(0)()
            time.sleep(0.001)


def test_only_the_last_request_is_done_after_the_one_under_way() -> None:
    loop, shown, done, gate = Loop(), [], [], threading.Event()
    latest: Latest[str] = Latest(loop, None, shown.append)

    def slow() -> str:
        gate.wait(10)
        return "slow"

    latest.ask(slow)
    for name in ("second", "third"):
        latest.ask(lambda name=name: done.append(name) or name)  # type: ignore[misc]
    assert latest.busy
    gate.set()
    loop.run()
    assert (shown, done) == (["third"], ["third"])
    assert not latest.busy


def test_a_failure_is_shown_and_the_next_request_is_done() -> None:
    loop, shown = Loop(), []
    latest: Latest[str] = Latest(loop, None, shown.append)
    latest.ask(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    loop.run()
    latest.ask(lambda: "well")
    loop.run()
    assert isinstance(shown[0], ZeroDivisionError)
    assert shown[1] == "well"


def test_a_guarded_action_shows_and_prints_its_failure(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []

    def fail() -> None:
        raise ValueError("broken")

    guarded(fail, shown.append)("what a toolkit passes")
    assert shown == ["ValueError: broken"]
    assert "ValueError: broken" in capsys.readouterr().out


def test_a_failure_that_cannot_even_be_shown_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise ValueError("broken")

    guarded(fail, fail)()
    assert capsys.readouterr().out.count("ValueError: broken") >= 2
