"""The demonstration's parts, without its runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onetrainer_ema_select.demo import runner
from onetrainer_ema_select.demo.results import collect, distance
from onetrainer_ema_select.demo.standin_copy import SOURCE, copy_standin
from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.settings import parse_settings

OFF = runner.STEPS[1]


class TestCopy:
    def test_copies_everything_but_what_python_compiled(self, tmp_path):
        copy = copy_standin(tmp_path / "a" / "b")
        files = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
        assert files == {
            path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        }
        assert Path("scripts/train.py") in files

    def test_does_not_write_into_a_folder_that_exists(self, tmp_path):
        with pytest.raises(FileExistsError):
            copy_standin(tmp_path)


class TestPrepare:
    def test_config_is_json_with_settings_that_pass(self, tmp_path):
        runner.prepare(tmp_path / "new")
        config = json.loads((tmp_path / "new" / "run.json").read_text(encoding="utf-8"))
        assert parse_settings(config["ema_select"]).enabled

    def test_an_empty_folder_will_do(self, tmp_path):
        runner.prepare(tmp_path)
        assert (tmp_path / "standin" / "scripts" / "train.py").is_file()

    def test_a_folder_with_files_is_left_alone(self, tmp_path):
        (tmp_path / "mine.txt").touch()
        with pytest.raises(EmaSelectError, match=r"is not empty.*demo --output DIR"):
            runner.prepare(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(EmaSelectError, match=r"cannot write to .*demo --output DIR"):
            runner.prepare(tmp_path / "file" / "below")


class TestCommand:
    def test_every_line_of_it_fits_a_terminal(self, mocker):
        mocker.patch.object(shutil, "which", return_value="/usr/bin/onetrainer-ema-select")
        for step in runner.STEPS:
            assert all(len(line) < 78 for line in runner.command_text(step, windows=False).splitlines())

    def test_on_windows_it_is_one_line(self, mocker):
        mocker.patch.object(shutil, "which", return_value="x")
        assert runner.command_text(OFF, windows=True) == (
            "onetrainer-ema-select train --onetrainer standin --config-path run.json --config-value "
            "continue_last_backup=true --config-value epochs=30 --config-value ema=OFF --config-value "
            "output_model_destination=models/2.safetensors"
        )

    def test_says_the_same_on_every_system(self):
        one, many = (runner.command_text(OFF, windows=windows).split() for windows in (True, False))
        assert [word for word in many if word != "\\"] == one

    def test_names_this_python_where_the_command_is_not_on_the_path(self, mocker):
        mocker.patch.object(shutil, "which", return_value=None)
        mocker.patch.object(sys, "executable", "C:\\My Python\\python.exe")
        command = runner.command_text(OFF, windows=True)
        assert command.startswith('"C:\\My Python\\python.exe" -m onetrainer_ema_select train ')

    def test_its_words_are_the_arguments_that_are_run(self, mocker):
        mocker.patch.object(shutil, "which", return_value="x")
        for step in runner.STEPS:
            assert runner.command_text(step, windows=True).split()[1:] == step.arguments


class TestOutput:
    def test_bars_and_cursor_movements_are_left_out(self):
        bars = "\repoch:   0%|   | 0/3\nstep:  50%|#  | 4/8, loss=0.1\x1b[A  \r  \r"
        assert runner.clean_lines(f"{bars}\x1b[A[ema_select] One.\r\n\nSaving models/1\n{bars}") == [
            "[ema_select] One.",
            "Saving models/1",
        ]

    def test_a_failing_run_is_told_with_the_end_of_its_output(self, tmp_path):
        runner.prepare(tmp_path)
        (tmp_path / "run.json").write_text('{"ema_select": {"enabled": true, "save_sets": "BOHT"}, "concepts": [], '
                                           '"samples": []}')  # fmt: skip
        with pytest.raises(EmaSelectError, match=r"exit code 1\b") as caught:
            runner.run_step(runner.STEPS[0], tmp_path)
        assert "BOHT" in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    def test_ctrl_c_waits_for_the_run_to_end(self, tmp_path, mocker):
        process = mocker.Mock()
        process.communicate.side_effect = [KeyboardInterrupt, (b"", None)]
        mocker.patch.object(subprocess, "Popen", return_value=process)
        with pytest.raises(KeyboardInterrupt):
            runner.run_step(runner.STEPS[0], tmp_path)
        assert process.communicate.call_count == 2


class TestResults:
    def test_distance_is_relative_to_the_first(self, tmp_path):
        save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, tmp_path / "1")
        save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([3.0])}, tmp_path / "2")
        assert distance(tmp_path / "1", tmp_path / "2") == pytest.approx(0.2)
        assert distance(tmp_path / "1", tmp_path / "1") == 0

    def test_runs_that_left_nothing_are_not_told_of(self, tmp_path):
        (tmp_path / "standin" / "workspace").mkdir(parents=True)
        with pytest.raises(EmaSelectError, match=r"0 different pairs of sets instead of 4"):
            collect(tmp_path)
