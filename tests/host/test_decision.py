"""A post-hoc average is found, or refused, before anything is loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onetrainer_ema_select.errors import EmaSelectError, ResumeError, SettingsError
from onetrainer_ema_select.host.decision import Decision, decide
from onetrainer_ema_select.settings import EmaSelectSettings
from onetrainer_ema_select.workspace import SNAPSHOT_FOLDER

from ..backup_files import NAME, write_backup, write_snapshot

WEIGHTS = {"unet.a": torch.ones(2, 3)}
CHOSEN = {"enabled": True, "resume_weights": "POST_HOC", "resume_sigma_rel": "0.08"}


def decision(workspace: Path, **settings: Any) -> Decision:
    optimizer = SimpleNamespace(optimizer=None)
    config = SimpleNamespace(ema="CPU", workspace_dir=str(workspace), continue_last_backup=True, optimizer=optimizer)
    return decide(EmaSelectSettings(**{**CHOSEN, **settings}), config)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A backup of step 8 with tracks, and snapshots of steps 4 and 8, and of step 12."""
    root = tmp_path / "run"
    for step in (4, 8, 12):
        folder = root / SNAPSHOT_FOLDER / f"2026-08-19_11-00-{step:02d}-snapshot-{step}-1-0"
        write_snapshot(folder, {0.05: WEIGHTS, 0.1: WEIGHTS}, step=step)
    backup = write_backup(
        root / "backup" / NAME, {"unet/x.safetensors": {"a": torch.ones(2, 3)}}, averages=[torch.ones(2, 3)],
        names=["unet.a"],
    )  # fmt: skip
    manifest = backup / "ema_select" / "manifest.json"
    raw = json.loads(manifest.read_text(encoding="utf-8"))
    of_step_8 = root / SNAPSHOT_FOLDER / "2026-08-19_11-00-08-snapshot-8-1-0"
    raw["post_hoc"] = json.loads((of_step_8 / "manifest.json").read_text(encoding="utf-8"))["post_hoc"]
    for track in raw["post_hoc"]["tracks"]:
        place = f"ema_select/post_hoc/{track['file']}"
        (backup / place).parent.mkdir(exist_ok=True)
        (backup / place).write_bytes((of_step_8 / track["file"]).read_bytes())
        track["file"] = place
    manifest.write_text(json.dumps(raw), encoding="utf-8")
    return root


def test_it_is_made_of_what_led_to_the_backup(workspace: Path) -> None:
    found = decision(workspace)
    assert found.mixture is not None
    assert [one.step for one in found.mixture.line] == [4, 8]  # not of what came after it
    assert found.mixture.end.path == workspace / "backup" / NAME
    assert pickle.loads(pickle.dumps(found)) == found  # as it travels to the processes of other GPUs
    assert "That average is of sigma_rel 0.08 at step 8, from " in found.plan.sentence
    assert decision(workspace, resume_weights="EMA").mixture is None


def test_a_backup_elsewhere_brings_the_snapshots_of_its_own_workspace(workspace: Path, tmp_path: Path) -> None:
    moved = workspace.rename(tmp_path / "moved")
    (tmp_path / "another" / "backup").mkdir(parents=True)
    found = decision(tmp_path / "another", resume_backup=str(moved / "backup" / NAME))
    assert found.mixture is not None
    assert [one.step for one in found.mixture.line] == [4, 8]


def test_a_backup_without_tracks(workspace: Path) -> None:
    manifest = workspace / "backup" / NAME / "ema_select" / "manifest.json"
    raw = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(raw | {"post_hoc": None}), encoding="utf-8")
    with pytest.raises(ResumeError, match=r"is POST_HOC, but the average cannot be made .* holds no post-hoc tracks"):
        decision(workspace)


def test_a_damaged_snapshot(workspace: Path) -> None:
    for file in workspace.rglob("2026-08-19_11-00-04-snapshot-4-1-0/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(EmaSelectError, match=r"is cut short .*Or set ema_select\.resume_weights to NON_EMA or EMA"):
        decision(workspace, resume_sigma_rel="0.07")


def test_post_hoc_needs_a_length(workspace: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        decision(workspace, resume_sigma_rel="")
    assert (
        "- ema_select.resume_weights: found POST_HOC while ema_select.resume_sigma_rel is empty; the average to load "
        "needs a length; type for example --config-value ema_select.resume_sigma_rel=0.10"
    ) in str(refused.value)
