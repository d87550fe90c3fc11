"""The file that `enable` puts into OneTrainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host import dropin


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TRAIN_CONFIG = "class TrainConfig:\n    @staticmethod\n    def default_values(): pass\n"


def run_dropin(file: Path, *, package: str | None) -> subprocess.CompletedProcess[str]:
    """Import the file as OneTrainer does, in a Python that has `package` as onetrainer_ema_select.host, or none."""
    search = file.parent / "search"
    search.mkdir(exist_ok=True)
    # what the file wraps where the plugin cannot be armed
    for module, text in (("BaseConfig", "class BaseConfig: pass"), ("TrainConfig", TRAIN_CONFIG)):
        place = search / "modules" / "util" / "config" / f"{module}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    if package is not None:
        host = search / "onetrainer_ema_select" / "host"
        host.mkdir(parents=True)
        (host.parent / "__init__.py").touch()
        (host / "__init__.py").write_text(package, encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(search)!r}, {str(file.parent)!r}]; import ema_select_dropin; print('on')"
    # -I -S: neither this checkout nor the installed package may be found
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)


def test_enable_adds_one_file_and_disable_leaves_nothing(onetrainer: Path) -> None:
    before = files_in(onetrainer)
    path = dropin.enable(onetrainer)
    assert path == onetrainer / "modules" / "modelSetup" / "ema_select_dropin.py"
    after = files_in(onetrainer)
    assert set(after) - set(before) == {str(Path("modules", "modelSetup", "ema_select_dropin.py"))}
    assert path.read_text(encoding="utf-8").splitlines()[0] == (
        "# Written by `onetrainer-ema-select enable`; `onetrainer-ema-select disable` removes it."
    )
    (path.parent / "__pycache__").mkdir()
    (path.parent / "__pycache__" / "ema_select_dropin.cpython-311.pyc").touch()
    assert dropin.disable(onetrainer)
    assert files_in(onetrainer) == before
    assert not dropin.disable(onetrainer)


def test_enabled_and_current(onetrainer: Path) -> None:
    assert not dropin.is_enabled(onetrainer)
    path = dropin.enable(onetrainer)
    assert dropin.is_enabled(onetrainer)
    assert dropin.is_current(onetrainer)
    path.write_text(f"{dropin.FIRST_LINE}\r\npass\r\n", encoding="utf-8")
    assert dropin.is_enabled(onetrainer)
    assert not dropin.is_current(onetrainer)
    assert dropin.enable(onetrainer) == path
    assert dropin.is_current(onetrainer)
    assert dropin.enable(onetrainer) == path


def test_a_foreign_file_stays(onetrainer: Path) -> None:
    path = dropin.dropin_path(onetrainer)
    path.write_text("mine = 1\n", encoding="utf-8")
    with pytest.raises(EmaSelectError) as caught:
        dropin.enable(onetrainer)
    assert str(caught.value) == (
        f"{path} exists and is not the plugin's file. Nothing was changed. Move it away and run enable again."
    )
    with pytest.raises(EmaSelectError) as caught:
        dropin.disable(onetrainer)
    assert str(caught.value) == (
        f"{path} is not the plugin's file, so it stays. Look at it, and delete it yourself if it may go."
    )
    assert path.read_text(encoding="utf-8") == "mine = 1\n"
    assert not dropin.is_enabled(onetrainer)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(onetrainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dropin.enable(onetrainer)
    path.write_text(f"{dropin.FIRST_LINE}\nold\n", encoding="utf-8")
    before = files_in(onetrainer)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EmaSelectError) as caught:
        dropin.enable(onetrainer)
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device. "
        "Nothing was changed. Run enable as the user that owns the OneTrainer folder."
    )
    assert files_in(onetrainer) == before


def test_the_file_arms_the_plugin(onetrainer: Path) -> None:
    ran = run_dropin(dropin.enable(onetrainer), package="def arm():\n    print('armed')\n")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("armed\non\n", "", 0)


def test_the_file_is_harmless_without_the_package(onetrainer: Path) -> None:
    path = dropin.enable(onetrainer)
    ran = run_dropin(path, package=None)
    assert (ran.stdout, ran.returncode) == ("on\n", 0)
    assert ran.stderr == (
        f"OneTrainer runs WITHOUT onetrainer-ema-select, it is not installed in {sys.executable}. "
        f"Install it there, or delete {path}\n"
    )


def test_the_file_is_harmless_with_another_version(onetrainer: Path) -> None:
    ran = run_dropin(dropin.enable(onetrainer), package="")
    assert (ran.stdout, ran.returncode) == ("on\n", 0)
    assert ran.stderr.startswith(
        "OneTrainer runs WITHOUT onetrainer-ema-select, ImportError: cannot import name 'arm' from "
    )
    assert ran.stderr.endswith(" For the details run: onetrainer-ema-select doctor\n")
    assert ran.stderr.count("\n") == 1


def test_the_file_is_harmless_when_arming_fails(onetrainer: Path) -> None:
    package = "def arm():\n    raise ValueError('first\\nsecond')\n"
    ran = run_dropin(dropin.enable(onetrainer), package=package)
    assert (ran.stdout, ran.returncode) == ("on\n", 0)
    assert ran.stderr == (
        "OneTrainer runs WITHOUT onetrainer-ema-select, ValueError: first second. "
        "For the details run: onetrainer-ema-select doctor\n"
    )


def test_the_file_says_so_where_it_cannot_watch_this_onetrainer(onetrainer: Path) -> None:
    path = dropin.enable(onetrainer)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import ema_select_dropin; print('on')"
    command = [sys.executable, "-I", "-S", "-c", code, str(path.parent)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("on\n", 0)
    assert ran.stderr.splitlines()[1:] == [
        "A run that asks for it will not be stopped: ModuleNotFoundError No module named 'modules'"
    ]


def test_configs_are_made_where_the_file_does_not_understand_them(onetrainer: Path) -> None:
    path = dropin.enable(onetrainer)
    run_dropin(path, package=None)  # lays out the modules
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import ema_select_dropin\n"
        "from modules.util.config.TrainConfig import TrainConfig\n"
        "print(TrainConfig.default_values(), TrainConfig.default_values())"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(path.parent / "search"), str(path.parent)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("None None\n", 0)
    assert ran.stderr.splitlines()[1:] == [
        "A run that asks for it will not be stopped: ModuleNotFoundError No module named 'modules.trainer'"
    ]


def test_the_file_is_plain_ascii() -> None:
    # a Windows console in a legacy code page must be able to print it
    assert dropin.DROPIN_TEXT.isascii()
    assert dropin.DROPIN_TEXT.startswith(f"{dropin.FIRST_LINE}\n")
