from __future__ import annotations

import io
import sys

import pytest
from pytest_mock import MockerFixture
from tqdm import tqdm

from onetrainer_ema_select.host.report import Reporter


def broken_status(_: str) -> None:
    raise RuntimeError("the window is gone")


def test_a_line_is_printed_with_the_plugins_name(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(lambda _: None).say("Saving ema")
    assert capsys.readouterr().out == "[ema_select] Saving ema\n"


@pytest.mark.parametrize(
    ("encoding", "seen"), [("cp1252", "Modèle ??/?"), ("cp936", "Modèle 模型/?"), ("ascii", "Mod?le ??/?")]
)
def test_a_console_that_cannot_show_a_character_shows_the_rest(
    monkeypatch: pytest.MonkeyPatch, encoding: str, seen: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True, newline="\n"))
    reporter = Reporter(lambda _: None)
    reporter.say("Modèle 模型/🎨")
    reporter.problem("Modèle 模型/🎨")
    assert raw.getvalue().decode(encoding) == f"[ema_select] {seen}\n[ema_select] PROBLEM: {seen}\n"


def test_a_problem_is_printed_with_its_cause_and_again_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    reporter = Reporter(shown.append)
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        reporter.problem("The ema set could not be saved.", error)
    out = capsys.readouterr().out
    message = "The ema set could not be saved. Cause: OSError: [Errno 28] No space left on device"
    assert "Traceback (most recent call last):" in out
    assert out.endswith(f"[ema_select] PROBLEM: {message}\n")
    reporter.problem("Another one.")
    assert capsys.readouterr().out == "[ema_select] PROBLEM: Another one.\n"
    assert shown == []

    reporter.repeat_problems()
    assert capsys.readouterr().out == (
        f"[ema_select] 2 problem(s) in this run:\n[ema_select] - {message}\n[ema_select] - Another one.\n"
    )
    assert shown == ["ema_select: Another one."]


def test_without_problems_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(broken_status)
    reporter.repeat_problems()
    assert capsys.readouterr().out == ""


def test_a_window_that_is_gone_ends_nothing() -> None:
    reporter = Reporter(broken_status)
    reporter.status("text")
    reporter.problem("A problem.")
    reporter.repeat_problems()


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), ValueError("I/O on closed file"), UnicodeEncodeError("cp1252", "模", 0, 1, "no")]
)
def test_a_console_that_refuses_ends_nothing(mocker: MockerFixture, error: Exception) -> None:
    mocker.patch.object(tqdm, "write", side_effect=error)
    reporter = Reporter(lambda _: None)
    reporter.say("text")
    reporter.problem("A problem.", RuntimeError("cause"))
    reporter.repeat_problems()
    assert reporter.problems == ["A problem. Cause: RuntimeError: cause"]
