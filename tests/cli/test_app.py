"""The command as a whole: help, usage, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onetrainer_ema_select import __version__

Command = Callable[..., "tuple[int, str, str]"]

VERBS = ["enable", "disable", "doctor", "train", "list", "inspect", "compare", "demo"]


def test_help_names_every_verb(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for verb in VERBS:
        assert f" {verb} " in out
    assert "Try: onetrainer-ema-select demo" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(command: Command, verb: str) -> None:
    code, out, err = command(verb, "--help")
    assert (code, err) == (0, "")
    assert f"Example: onetrainer-ema-select {verb}" in out


def test_version(command: Command) -> None:
    assert command("--version") == (0, f"onetrainer-ema-select {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nothing"], ["list"], ["list", "--nothing"], ["train"], ["enable", "a", "b"]])
def test_wrong_usage(command: Command, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: onetrainer-ema-select" in err


def test_an_error_is_its_message_and_nothing_else(command: Command, tmp_path: Path) -> None:
    assert command("enable", tmp_path) == (
        1,
        "",
        f"{tmp_path} (the folder given) is not OneTrainer: it has no scripts/train.py beside modules/. "
        "Give the folder that holds OneTrainer's scripts and modules.\n",
    )


def test_a_folder_named_in_two_ways(command: Command, onetrainer: Path, tmp_path: Path) -> None:
    code, _, err = command("doctor", onetrainer, "--onetrainer", tmp_path)
    assert code == 2
    assert f"DIR is {onetrainer} and --onetrainer is {tmp_path}: give one of them." in " ".join(
        err.replace("│", " ").split()
    )
