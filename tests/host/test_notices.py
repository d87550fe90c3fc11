from __future__ import annotations

from collections.abc import Iterator

import pytest

from onetrainer_ema_select.host import notices
from onetrainer_ema_select.host.report import Reporter


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    notices.take()
    yield
    notices.take()


def test_texts_are_taken_once_and_not_doubled() -> None:
    notices.leave(["a", "b"])
    notices.leave(["a"])
    assert notices.take() == ("a", "b")
    assert notices.take() == ()


def test_the_problems_of_a_run_and_an_error_are_left_for_the_window() -> None:
    shown: list[str] = []
    reporter = Reporter(shown.append)
    reporter.problem("The disk is full.")
    assert notices.take() == ()
    reporter.repeat_problems()
    reporter.show(ValueError("wrong key"))
    assert notices.take() == ("The disk is full.", "wrong key")
    assert shown == ["ema_select: The disk is full.", "wrong key"]
