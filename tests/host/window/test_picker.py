from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from onetrainer_ema_select.host.window import picker
from onetrainer_ema_select.workspace import BackupView, scan_workspace

from ...backup_files import NAME, tensors, write_backup


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """One whole backup with two sets, a newer one that was cut short, and a folder of somebody else's."""
    (weights,) = tensors((3, 2))
    folder = tmp_path / "workspace" / "backup"
    write_backup(folder / NAME, {"unet/model.safetensors": {"a": weights}}, averages=[weights], names=["unet.a"])
    cut = folder / NAME.replace("8-4-1", "9-4-2")
    cut.mkdir()
    (cut / "meta.json").write_text(json.dumps({"train_progress": {}}), encoding="utf-8")
    (folder / "mine").mkdir()
    return tmp_path / "workspace"


def test_whole_backups_come_first_and_folders_of_others_not_at_all(workspace: Path) -> None:
    whole, cut = picker.entries(workspace)
    assert whole.label == f"backup | step 8, epoch 4 | ema and non-ema | {NAME}"
    assert whole.complete
    assert "It is the newest." in whole.detail
    assert cut.label == f"NOT COMPLETE | {NAME.replace('8-4-1', '9-4-2')}"
    assert not cut.complete
    assert cut.detail.startswith("Neither OneTrainer nor the plugin can resume from it: ")


@pytest.mark.parametrize("make", [False, True])
def test_a_workspace_without_backups_says_so(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    (entry,) = picker.entries(folder)
    assert (entry.label, entry.backup, entry.complete) == ("no backups in this workspace", None, False)
    said = f"OneTrainer has written none to {folder} yet." if make else f"The folder {folder} does not exist yet."
    assert entry.detail == said


def test_a_milestone_is_called_by_its_name(workspace: Path) -> None:
    backup = next(each for each in scan_workspace(workspace).backups if each.complete)
    pinned = dataclasses.replace(backup, milestone="10 epochs")
    assert picker.label(pinned).startswith("milestone 10 epochs | step 8")


@pytest.mark.parametrize(
    ("destination", "weight_set", "suggested"),
    [
        ("models/cat.safetensors", "ema", "models/cat-step8-ema.safetensors"),
        ("models/cat.safetensors", "non-ema", "models/cat-step8-non-ema.safetensors"),
        ("models/cat", "both", "models/cat-step8"),
        ("", "ema", "models/model-step8-ema.safetensors"),
    ],
)
def test_the_suggested_output_never_is_the_runs_own(
    workspace: Path, destination: str, weight_set: str, suggested: str
) -> None:
    backup = next(each for each in scan_workspace(workspace).backups if each.complete)
    assert Path(picker.suggested_output(destination, backup, weight_set)) == Path(suggested)
    folder = picker.suggested_output(destination, backup, weight_set, folder=True)
    assert Path(folder) == Path(suggested.removesuffix(".safetensors"))


def test_a_backup_that_is_deleted_while_the_list_is_made_is_left_out(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = picker.view_backup

    def vanishing(folder: Path, *, pinned: bool) -> BackupView:
        if "9-4-2" in folder.name:
            raise FileNotFoundError(folder)
        return view(folder, pinned=pinned)

    monkeypatch.setattr(picker, "view_backup", vanishing)
    (entry,) = picker.entries(workspace)
    assert entry.complete
