"""The report of a run of the stand-in: it reads what the plugin writes, and its commands do what they say."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from onetrainer_ema_select.report.commands import commands
from onetrainer_ema_select.report.data import RunData, gather
from onetrainer_ema_select.report.make import make_report
from onetrainer_ema_select.validation import read_history

from .conftest import environment

CONFIG: dict[str, Any] = {
    "training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS", "concepts": [], "epochs": 2,
    "samples": [{"prompt": "a <b>", "diffusion_steps": 2}, {"prompt": "二", "diffusion_steps": 2}],
    "sample_after": 5, "sample_after_unit": "STEP", "backup_after": 8, "backup_after_unit": "STEP",
    "validation": True, "validate_after": 5, "validate_after_unit": "STEP", "backup_before_save": True,
    "ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 1,
    "ema_select": {"enabled": True, "milestones": "1 epochs", "post_hoc_sigma_rels": "0.05, 0.10"},
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(run_jobs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report")
    places = {"workspace_dir": str(home / "run"), "output_model_destination": str(home / "model.safetensors")}
    run_jobs([{"name": "report", "config": CONFIG | places, "plugin": True}])
    return home / "run"


@pytest.fixture(scope="module")
def data(workspace: Path) -> RunData:
    return gather(workspace)


def test_everything_that_a_run_leaves_is_read(data: RunData, workspace: Path) -> None:
    history = read_history(workspace / "ema_select" / "validation.jsonl")
    assert [(one.step, one.ema, one.non_ema, one.error) for one in data.validations] == [
        (one.step, one.ema, one.non_ema, one.standard_error) for one in history
    ]
    assert [{"ema": "EMA", "non-ema": "NON_EMA"}[one.better] for one in data.validations] == [
        one.better.value for one in history if one.better
    ]
    looks = (workspace / "ema_select" / "drift.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in looks if "warning" not in json.loads(line)]
    assert [one.step for one in data.drift] == steps
    assert {one.sigma_rels for one in data.snapshots} == {(0.05, 0.1)}
    assert [(prompt.number, prompt.title) for prompt in data.prompts] == [(0, "a <b>"), (1, "二")]
    for prompt in data.prompts:
        assert [moment.step for moment in prompt.moments] == [0, 5, 10, 15]
        assert all(moment.ema and moment.non_ema for moment in prompt.moments)
    assert {point.kind for point in data.points} == {"backup", "milestone"}
    assert all(point.sets == ("non-ema", "ema") and point.sigma_rels == (0.05, 0.1) for point in data.points)


def test_its_page_lacks_nothing_but_a_real_tensorboard(workspace: Path, tmp_path: Path) -> None:
    made = make_report(workspace, output=tmp_path / "report.html")
    expected = ("validation", "concept0", "concept1", "distance", "decay", "length", "snapshots")
    assert made.charts == expected
    assert [text.partition(":")[0] for text in made.missing] == ["OneTrainer's training loss"]
    text = made.path.read_text(encoding="utf-8")
    assert "sigma_rel 0.05" in text
    assert "POST_HOC_" not in text


@pytest.mark.slow
def test_the_commands_of_a_point_can_be_typed(data: RunData, standin: Path) -> None:
    newest = data.points[0]
    lines = {command.title.en.split(" (")[0]: command.line for command in commands(newest, data)}
    written = ["Write the EMA weights as a model", "Make an EMA of another length"]
    for title in written:
        type_in(standin, lines[title])
    models = [
        load_file(standin / place)
        for place in sorted((standin / "models").glob(f"run-step{newest.step}-*.safetensors"))
    ]
    assert len(models) == 2
    assert models[0].keys() == models[1].keys()
    assert any(not models[0][name].equal(models[1][name]) for name in models[0])
    said = type_in(standin, lines["Train on from such an EMA"] + " --config-value epochs=3")
    assert f"Resumed from backup {newest.name}" in said


def type_in(folder: Path, line: str) -> str:
    """Run a command of this package as it stands in the page."""
    program, *words = shlex.split(line, posix=sys.platform != "win32")
    assert program == "onetrainer-ema-select"
    command = [sys.executable, "-m", "onetrainer_ema_select", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout
