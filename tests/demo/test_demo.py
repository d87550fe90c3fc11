"""The demonstration as a whole, as it is typed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile

import pytest
from typer.testing import CliRunner

from onetrainer_ema_select.cli import demo as verb
from onetrainer_ema_select.cli.app import app
from onetrainer_ema_select.demo import runner
from onetrainer_ema_select.errors import EmaSelectError

from .conftest import environment


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Its folder, which has a space in its name, and what it printed into a pipe."""
    folder = tmp_path_factory.mktemp("demo") / "my demo"
    done = subprocess.run(
        [sys.executable, "-m", "onetrainer_ema_select", "demo", "--output", str(folder)],
        env={**environment(), "COLUMNS": "80"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder, done.stdout


@pytest.mark.slow
class TestWhole:
    def test_every_step_is_told_with_its_command_and_the_plugins_sentence(self, told):
        _, text = told
        parts = re.split(r"(?m)^\d\. ", text)[1:]
        assert len(parts) == len(runner.STEPS)
        for step, part in zip(runner.STEPS, parts, strict=True):
            assert part.startswith(step.title)
            assert f"$ {runner.command_text(step)}" in part
        flat = [" ".join(part.split()) for part in parts]
        assert "[ema_select] Training starts from the model as configured" in flat[0]
        assert "its non-EMA weights were loaded, its EMA was parked" in flat[1]
        assert "the EMA parked at step 160 was taken up again" in flat[2]
        assert "its EMA weights were loaded" in flat[3]

    def test_table_names_every_model_that_is_there(self, told):
        folder, text = told
        table = text[text.index("What lies where") : text.index("(apart:")]
        models = sorted((folder / "standin").glob("*/*.safetensors")) + sorted(folder.rglob("save/*.safetensors"))
        assert len(models) == 9
        for path in models:
            line = re.search(rf"(?m)^{re.escape(path.name)} +(ema|non-ema) +\d+ .*$", table)
            assert line is not None, path.name
            pair = path.with_name(path.name.replace("-non-ema", ""))
            assert line[0].endswith("%") == (pair != path)
        assert len(re.findall(r"(?m)^\S+-backup-\S+ +(?:both|non-ema) ", table)) == 4
        assert "in standin/workspace/ema_select/parked:" in table

    def test_reads_well_in_80_columns(self, told):
        folder, text = told
        unbroken = ("  workspace/", str(folder), "$ ", "Creating Backup", "    --config-value")
        long = [line for line in text.splitlines() if len(line) > 80 and not line.startswith(unbroken)]
        assert [line for line in long if str(folder) not in line] == []

    def test_is_plain_ascii_without_colours(self, told):
        # the stream would take any glyph here; a Windows console would not
        _, text = told
        assert text.isascii()
        assert "\x1b" not in text

    def test_says_what_to_type_next(self, told):
        folder, text = told
        assert "onetrainer-ema-select enable ~/OneTrainer" in text
        assert f"Everything is in {folder}; the commands above work there." in text


class TestFolder:
    @pytest.fixture(autouse=True)
    def own_temporary(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(self, mocker, *arguments: str, **show):
        self.show = mocker.patch.object(verb, "show", **show)
        return CliRunner().invoke(app, ["demo", *arguments])

    def test_temporary_one_is_removed(self, mocker):
        result = self.run(mocker)
        assert result.exit_code == 0
        assert "removed now" in result.output
        assert not self.show.call_args.args[0].exists()

    def test_temporary_one_can_be_kept(self, mocker):
        result = self.run(mocker, "--keep")
        folder = self.show.call_args.args[0]
        assert folder.is_dir()
        assert str(folder) in result.output

    def test_named_one_is_made_absolute(self, mocker, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.run(mocker, "--output", "here")
        assert self.show.call_args.args[0] == tmp_path / "here"

    def test_temporary_one_is_removed_after_a_failure_too(self, mocker, tmp_path):
        result = self.run(mocker, side_effect=EmaSelectError("It failed. Do this."))
        assert isinstance(result.exception, EmaSelectError)
        assert list(tmp_path.iterdir()) == []

    def test_help_has_an_example(self):
        result = CliRunner().invoke(app, ["demo", "--help"])
        assert "Example: onetrainer-ema-select demo" in result.output

    def test_help_does_not_wait_for_torch(self):
        code = "import sys; from onetrainer_ema_select.cli.demo import demo; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
