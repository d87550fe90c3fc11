"""Real runs that are killed or interrupted at random moments, then listed, resumed and finished.

`EMA_SELECT_CRASHES_REAL` sets how many moments are tried of each kind.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.checksums import verify_backup, verify_model
from onetrainer_ema_select.workspace import SaveView, WorkspaceView, scan_workspace

from .bench import configs
from .bench.recording import difference, same_bits
from .bench.scenario import Scenario, steps
from .bench.workers import Bench

MOMENTS = int(os.environ.get("EMA_SELECT_CRASHES_REAL", "1"))
SCHEDULE = steps(2, save_every=2, backup_every=2, backup_at_end=True)
SECTION = {"milestones": "3 steps, 6 steps"}


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> WorkspaceView:
    """The same run to its end, with a save at every step besides."""
    scenario = Scenario(bench, "undisturbed")
    everything = steps(2, save_every=1, backup_every=1, backup_at_end=True)
    recording = scenario.finish(schedule=everything, ema_select=SECTION)
    return scan_workspace(recording.workspace)


@pytest.fixture(scope="module")
def seconds(bench: Bench, undisturbed: WorkspaceView) -> float:
    """How long such a run takes, the loading of the model included."""
    begin = time.monotonic()
    Scenario(bench, "timed").finish(schedule=SCHEDULE, ema_select=SECTION)
    return time.monotonic() - begin


def lora(backup: Path) -> dict[str, Tensor]:
    return load_file(backup / "lora" / "lora.safetensors")


def average(backup: Path) -> list[Tensor]:
    return list(torch.load(backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"])


def cut_inside_a_step(workspace: Path, undisturbed: WorkspaceView) -> bool:
    """Whether Ctrl-C hit OneTrainer between its optimizer's work and its count of it.

    It then backs up, as this step, weights that have gone on already. Their average must be one of a step all the
    same: of this one, or of the next.
    """
    view = scan_workspace(workspace)
    backups = {backup.step or 0: backup.path for backup in undisturbed.backups}
    newest = max(view.backups, key=lambda backup: backup.step or 0, default=None)
    if newest is None or difference(lora(newest.path), lora(backups[newest.step or 0])) == 0.0:
        return False
    step = newest.step or 0
    assert any(same_bits(average(newest.path), average(backups[near])) for near in (step, step + 1) if near in backups)
    return True


def assert_whole(workspace: Path, undisturbed: WorkspaceView, *, same: bool = True) -> list[SaveView]:
    """All that is listed is whole, and what the undisturbed run had at that step; returns saves without a partner."""
    view = scan_workspace(workspace)
    backups = {backup.step: backup.path for backup in undisturbed.backups}
    for backup in (*view.backups, *view.milestones):
        assert backup.complete, backup.reason
        assert verify_backup(backup.path).problem == ""
        assert not same or difference(lora(backup.path), lora(backups[backup.step])) == 0.0
    saves = {(save.step, save.set): save.path for save in undisturbed.saves}
    for save in view.saves:
        assert verify_model(save.path).problem == ""
        assert not same or difference(load_file(save.path), load_file(saves[save.step, save.set])) == 0.0
    return [save for save in view.saves if save.partner is None]


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_run_that_ends_at_any_moment(bench: Bench, undisturbed: WorkspaceView, seconds: float, kind: str) -> None:
    generator = random.Random(kind)
    for number in range(MOMENTS):
        scenario = Scenario(bench, f"{kind}-{number}")
        moment = generator.uniform(0.0, seconds)
        configs.write_json(scenario.run / "signal.json", {"signal": getattr(signal, kind), "after": moment})
        try:
            scenario.start(schedule=SCHEDULE, ema_select=SECTION, hook="signal_later").results()
        except RuntimeError as error:
            assert "the worker died" in str(error)
        workspace = scenario.run / "workspace"
        same = True
        if workspace.is_dir():
            same = kind != "SIGINT" or not cut_inside_a_step(workspace, undisturbed)
            lonely = assert_whole(workspace, undisturbed, same=same)
            assert len(lonely) <= 1, moment
            assert all(save.missing for save in lonely)
        assert_made_good(scenario, undisturbed, same=same)


def assert_made_good(scenario: Scenario, undisturbed: WorkspaceView, *, same: bool) -> None:
    """Started again with the same command, the run comes to the undisturbed end."""
    done = scenario.resume(schedule=SCHEDULE, ema_select=SECTION).results()[0].require()
    assert "PROBLEM" not in done.output
    assert len(assert_whole(done.workspace, undisturbed, same=same)) <= 1
    finals = [path for path in done.output_folder.iterdir() if path.suffix == ".safetensors"]
    assert len(finals) == 2
    saves = {save.set: save.path for save in undisturbed.saves if save.step == 7}
    assert set(saves) == {"ema", "non-ema"}
    assert all(verify_model(path).problem == "" for path in finals)
    milestones = {save.milestone for save in scan_workspace(done.workspace).saves if save.partner}
    assert {"3 steps", "6 steps"} <= milestones
    for folder in (done.workspace, done.output_folder):
        assert not [path for path in folder.rglob("*") if "staging" in path.name or path.suffix == ".tmp"]
