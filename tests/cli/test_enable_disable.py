"""`enable` and `disable`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onetrainer_ema_select.host.dropin import DROPIN_TEXT
from onetrainer_ema_select.origin import install_source

Command = Callable[..., "tuple[int, str, str]"]

HOW = (
    "The plugin stays off until a run's config turns it on:\n"
    '  "ema_select": {"enabled": true}\n'
    "in the config JSON, or on the command line of scripts/train.py:\n"
    "  --config-value ema_select.enabled=true\n"
)


@pytest.fixture
def dropin(onetrainer: Path) -> Path:
    return onetrainer / "modules" / "modelSetup" / "ema_select_dropin.py"


def test_enable_twice_disable_twice(command: Command, onetrainer: Path, dropin: Path) -> None:
    assert command("enable", onetrainer) == (0, f"Enabled: {dropin}\n{HOW}", "")
    assert dropin.read_text(encoding="utf-8") == DROPIN_TEXT
    assert command("enable", "--onetrainer", onetrainer) == (0, f"Enabled already, renewed: {dropin}\n{HOW}", "")
    assert command("disable", onetrainer) == (0, f"Disabled: {dropin} is removed.\n", "")
    assert not dropin.exists()
    assert command("disable", "--onetrainer", onetrainer) == (
        0,
        f"Nothing to do: the plugin was not enabled, there is no {dropin}.\n",
        "",
    )


def test_the_current_folder_is_enough(
    command: Command, onetrainer: Path, dropin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(onetrainer / "scripts")
    assert command("enable")[0] == 0
    assert dropin.is_file()


def test_enable_tells_that_the_package_is_in_another_python(command: Command, onetrainer: Path, dropin: Path) -> None:
    python = onetrainer / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert command("enable", onetrainer) == (
        0,
        f"Enabled: {dropin}\n"
        "OneTrainer has a Python of its own, and the plugin is not installed there yet:\n"
        f'  "{python}" -m pip install {install_source()}\n' + HOW,
        "",
    )


def test_a_foreign_file_is_left_alone(command: Command, onetrainer: Path, dropin: Path) -> None:
    dropin.write_text("mine = 1\n", encoding="utf-8")
    assert command("enable", onetrainer) == (
        1,
        "",
        f"{dropin} exists and is not the plugin's file. Nothing was changed. Move it away and run enable again.\n",
    )
    assert command("disable", onetrainer) == (
        1,
        "",
        f"{dropin} is not the plugin's file, so it stays. Look at it, and delete it yourself if it may go.\n",
    )
    assert dropin.read_text(encoding="utf-8") == "mine = 1\n"
