"""Runs that end at any moment: nothing that was complete is lost, nothing half is left, and the run can be finished.

`EMA_SELECT_CRASHES` sets how many moments are tried of each kind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.checksums import verify_backup, verify_model
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host.dropin import enable
from onetrainer_ema_select.workspace import SaveView, scan_workspace, size_of

from .conftest import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="crashes are made with fork and signals")

MOMENTS = int(os.environ.get("EMA_SELECT_CRASHES", "6"))
FORKS = Path(__file__).with_name("forks.py")
CONFIG: dict[str, Any] = {
    "training_method": "FINE_TUNE",
    "output_model_format": "LEGACY_SAFETENSORS",
    "concepts": [],
    "samples": [],
    "epochs": 3,
    "ema": "CPU",
    "ema_decay": 0.9,
    "ema_update_step_interval": 1,
    "backup_after_unit": "STEP",
    "save_every_unit": "STEP",
    "backup_before_save": True,
    "continue_last_backup": False,
    "ema_select": {"enabled": True, "milestones": "9 steps, 2 epochs", "resume_backup": ""},
}


class Runs:
    """Trains in one folder of the stand-in, one run after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_standin(folder)
        enable(self.folder)
        self.process = subprocess.Popen(
            [sys.executable, str(FORKS)],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def train(
        self,
        workspace: Path,
        *,
        kill: int = 0,
        after: float = 0.0,
        live: Path | None = None,
        notes: Path | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """One run; `kill` is sent `after` seconds, the live weights at the end are written to `live`."""
        output = workspace.with_name(f"{workspace.name}-models") / "model.safetensors"
        config = {**CONFIG, "workspace_dir": str(workspace), "output_model_destination": str(output), **changes}
        path = (notes or workspace.parent) / f"{workspace.name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(
            json.dumps({"config": str(path), "signal": kill, "after": after, "live": str(live or "")}) + "\n"
        )
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that forks has died"
        return dict(json.loads(answer))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("crash") / "One Trainer")
    yield made
    made.close()


class Reference:
    """A run that nothing disturbs: every step's backup and both sets, and how long such a run takes."""

    def __init__(self, runs: Runs, folder: Path) -> None:
        live = folder.with_name("live.pt")
        done = runs.train(folder, live=live, backup_after=1, save_every=1)
        assert done["status"] == 0, done["output"]
        self.live: list[Tensor] = torch.load(live, weights_only=True)
        view = scan_workspace(folder)
        self.backups = {backup.step: tensors_of_backup(backup.path) for backup in view.backups}
        self.saves = {(save.step, save.set): load_file(save.path) for save in view.saves}
        output = folder.with_name(f"{folder.name}-models")
        for name, weight_set in (("model", "ema"), ("model-non-ema", "non-ema")):
            final = load_file(output / f"{name}.safetensors")
            self.last = max(step for step, _ in self.saves)
            self.saves.setdefault((24, weight_set), final)
        self.final = {weight_set: self.saves[24, weight_set] for weight_set in ("ema", "non-ema")}
        shutil.rmtree(folder)
        folder.mkdir()
        busy = runs.train(folder, backup_after=2, save_every=2)
        assert busy["status"] == 0
        self.size = size_of(folder)
        self.seconds = float(busy["seconds"])


@pytest.fixture(scope="module")
def reference(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(runs, tmp_path_factory.mktemp("reference") / "run")


def tensors_of_backup(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a backup: weights, optimizer, average."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": tensor for name, tensor in load_file(path).items()}
    for name in ("optimizer/optimizer.pt", "ema/ema.pt"):
        leaves: list[tuple[str, Tensor]] = []
        flatten(torch.load(folder / name, weights_only=True), name, leaves)
        found |= dict(leaves)
    return found


def flatten(value: Any, name: str, leaves: list[tuple[str, Tensor]]) -> None:
    if isinstance(value, Tensor):
        leaves.append((name, value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            flatten(inner, f"{name}.{key}", leaves)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            flatten(inner, f"{name}.{number}", leaves)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def cut_inside_a_step(workspace: Path, reference: Reference) -> bool:
    """Whether Ctrl-C hit the host between its optimizer's work and its count of it.

    It then backs up, as this step, weights that have gone on already. Their average must be one of a step all the
    same: of this one, or of the next.
    """
    backups = scan_workspace(workspace).backups if workspace.is_dir() else ()
    if not backups:
        return False
    # Not by the names: of the same second, that of step 8 is the greater one than that of step 10.
    newest = max(backups, key=lambda backup: backup.step or 0)
    step, found = newest.step or 0, tensors_of_backup(newest.path)
    if equal(found, reference.backups[step]):
        return False

    def average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name.startswith("ema/")}

    near = [average(reference.backups[each]) for each in (step, step + 1) if each in reference.backups]
    assert any(equal(average(found), one) for one in near)
    return True


def assert_whole(workspace: Path, reference: Reference, *, same: bool = True) -> tuple[SaveView, ...]:
    """All that is listed is whole and what the undisturbed run had at that step; returns saves without a partner."""
    if not workspace.is_dir():
        return ()
    view = scan_workspace(workspace)
    for backup in (*view.backups, *view.milestones):
        assert backup.complete, (backup.name, backup.reason)
        assert verify_backup(backup.path).problem == ""
        tensors = tensors_of_backup(backup.path)
        assert not same or equal(tensors, reference.backups[backup.step])
    for save in view.saves:
        assert verify_model(save.path).problem == ""
        tensors = load_file(save.path)
        assert not same or equal(tensors, reference.saves[save.step, save.set])
        assert (save.partner is None) == bool(save.missing)
    return tuple(save for save in view.saves if save.partner is None)


def assert_final(workspace: Path, reference: Reference, step: int) -> None:
    output = workspace.with_name(f"{workspace.name}-models")
    for name, weight_set in (("model", "ema"), ("model-non-ema", "non-ema")):
        assert equal(load_file(output / f"{name}.safetensors"), reference.saves[step, weight_set])


def assert_nothing_unfinished(workspace: Path) -> None:
    output = workspace.with_name(f"{workspace.name}-models")
    places = [path for folder in (workspace, output) if folder.is_dir() for path in folder.rglob("*")]
    assert [path for path in places if "staging" in path.name or path.suffix in (".tmp", ".shared")] == []


def moments(reference: Reference, seed: int, share: float = 1.05) -> list[float]:
    """Random moments over a whole run, its start and its end included."""
    generator = random.Random(seed)
    return [generator.uniform(0.0, share * reference.seconds) for _ in range(MOMENTS)]


def finish(runs: Runs, reference: Reference, workspace: Path, *, same: bool = True) -> None:
    """Started again with the same command, the run comes to the undisturbed end."""
    done = runs.train(workspace, backup_after=2, save_every=2, continue_last_backup=True)
    assert done["status"] == 0, done["output"]
    assert "PROBLEM" not in done["output"]
    if same:
        assert_final(workspace, reference, 24)
    lonely = assert_whole(workspace, reference, same=same)
    assert len(lonely) <= 1
    assert_nothing_unfinished(workspace)
    milestones = [save.milestone for save in scan_workspace(workspace).saves if save.partner and save.milestone]
    assert {"9 steps", "2 epochs"} <= set(milestones)
    assert len(scan_workspace(workspace).milestones) >= 2
    shutil.rmtree(workspace)
    shutil.rmtree(workspace.with_name(f"{workspace.name}-models"))


@pytest.mark.slow
def test_killed_at_any_moment(runs: Runs, reference: Reference, tmp_path: Path) -> None:
    for number, moment in enumerate(moments(reference, seed=11)):
        workspace = tmp_path / f"kill-{number}"
        runs.train(workspace, kill=signal.SIGKILL, after=moment, backup_after=2, save_every=2)
        lonely = assert_whole(workspace, reference)
        assert len(lonely) <= 1, moment
        finish(runs, reference, workspace)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_interrupted_at_any_moment(runs: Runs, reference: Reference, tmp_path: Path, kind: str) -> None:
    for number, moment in enumerate(moments(reference, seed=23)):
        workspace = tmp_path / f"{kind}-{number}"
        done = runs.train(workspace, kill=getattr(signal, kind), after=moment, backup_after=2, save_every=2)
        same = kind != "SIGINT" or not cut_inside_a_step(workspace, reference)
        lonely = assert_whole(workspace, reference, same=same)
        assert len(lonely) <= 1, moment
        output = workspace.with_name(f"{workspace.name}-models")
        for path in sorted(output.glob("*.safetensors")) if output.is_dir() else []:
            # OneTrainer writes its final output also where it was interrupted: both sets, of one step.
            assert verify_model(path).problem == ""
        if same and kind == "SIGINT" and done["status"] == 0 and output.is_dir() and any(output.iterdir()):
            assert_final(workspace, reference, max(b.step or 0 for b in scan_workspace(workspace).backups))
        finish(runs, reference, workspace, same=same)


# -- a disk that is full ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Makes a disk of so many bytes at a place, one at a time."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def make(size: int) -> Path:
        nonlocal mounted
        if mounted:
            subprocess.run(["umount", place], check=True)
            mounted = False
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.decode().strip()}")
        mounted = True
        return place

    yield make
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="a disk of its own is made with mount")
@pytest.mark.parametrize("output_too", [True, False])
def test_a_disk_that_fills_at_any_byte(
    runs: Runs, reference: Reference, tmp_path: Path, small_disk: Any, output_too: bool
) -> None:
    generator = random.Random(5)
    whole = reference.size + (reference.size // 10 if output_too else 0)
    for number in range(MOMENTS):
        size = int(whole * (0.02 + 0.98 * (number + generator.random()) / MOMENTS))
        disk = small_disk(size)
        workspace = disk / "run"
        place = (disk if output_too else tmp_path) / "run-models" / "model.safetensors"
        live = tmp_path / "live.pt"
        live.unlink(missing_ok=True)
        done = runs.train(
            workspace,
            live=live,
            notes=tmp_path,
            backup_after=2,
            save_every=2,
            output_model_destination=str(place),
        )
        assert live.is_file(), (size, done["output"])
        # Training came to its end, with the weights of an undisturbed run.
        for first, second in zip(torch.load(live, weights_only=True), reference.live, strict=True):
            assert torch.equal(first, second)
        assert_whole(workspace, reference)
        assert_nothing_unfinished(workspace)
        finals = [place, place.with_name("model-non-ema.safetensors")]
        there = [path.is_file() and verify_model(path).problem == "" for path in finals]
        assert [path.exists() for path in finals] == there
        backups = [backup.step for backup in scan_workspace(workspace).backups]
        pinned = scan_workspace(workspace).milestones
        complete = all(there) and 24 in backups and len(pinned) == 2
        assert (done["status"] == 0) == complete, (size, there, backups, done["output"])
        if not complete:
            assert done["status"] == 1
            assert "No space left on device" in done["output"]
            assert "not everything that was asked for is on the disk" in done["output"]
            assert "problem(s) in this run:" in done["output"]
        shutil.rmtree(place.parent, ignore_errors=True)
