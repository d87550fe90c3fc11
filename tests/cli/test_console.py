"""Every verb on a console that cannot show all characters, as Windows has it in a legacy code page."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onetrainer_ema_select.cli.app import app, main
from onetrainer_ema_select.demo.standin_copy import copy_standin

MakeBackup = Callable[..., Path]

#: Of it, cp1252 shows the first word, cp936 all but the last character.
NAME = "Modèle 模型 🎨"


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs a verb with both streams in an encoding, strictly, and returns the exit code and all that was shown."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("ONETRAINER_DIR", "PYTHONUTF8"):
        monkeypatch.delenv(name, raising=False)

    def run(encoding: str, *arguments: object) -> tuple[int, str]:
        raw = [io.BytesIO(), io.BytesIO()]
        for name, buffer in zip(("stdout", "stderr"), raw, strict=True):
            stream = io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=True)
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "argv", ["onetrainer-ema-select", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = "".join(buffer.getvalue().decode(encoding) for buffer in raw)
        return int(left.value.code or 0), shown

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "cp936"])
def test_reports_and_errors(
    console: Callable[..., tuple[int, str]], make_backup: MakeBackup, tmp_path: Path, encoding: str
) -> None:
    host = copy_standin(tmp_path / NAME)
    workspace = tmp_path / f"{NAME} run"
    backup = make_backup(workspace, f"2026-01-01_00-00-00-backup-4-2-0 {NAME}")
    replaced = NAME.encode(encoding, "replace").decode(encoding)
    assert replaced != NAME
    for code, arguments in (
        (0, ["enable", host]),
        (0, ["doctor", host]),
        (0, ["doctor", host, "--json"]),
        (0, ["list", workspace]),
        (0, ["list", workspace, "--json"]),
        (0, ["inspect", backup]),
        (0, ["compare", backup, backup, "--set-a", "non-ema", "--set-b", "non-ema"]),
        (0, ["disable", host]),
        (1, ["inspect", tmp_path / NAME / "nothing"]),
        (1, ["export", tmp_path / NAME, "--set", "ema", "--output", tmp_path / "out.safetensors"]),
        (2, ["train", "--config-path", tmp_path / NAME / "nothing.json", "--onetrainer", host]),
    ):
        found, shown = console(encoding, *arguments)
        assert found == code, shown
        assert "Traceback" not in shown
        if arguments[-1] == "--json":
            # a path is whole, or the program that reads this would look for another one
            assert NAME in json.dumps(json.loads(shown), ensure_ascii=False)
        else:
            assert "?" in shown, arguments


@pytest.mark.parametrize("encoding", ["cp1252", "cp936"])
def test_help(console: Callable[..., tuple[int, str]], encoding: str) -> None:
    for command in app.registered_commands:
        code, shown = console(encoding, command.name, "--help")
        assert (code, f"onetrainer-ema-select {command.name}" in shown) == (0, True)
