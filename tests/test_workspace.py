"""What lies in a workspace, and what would be continued from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.workspace import newest_complete_backup, scan_workspace

OLD = "2026-08-19_10-00-00-backup-4-2-0"
NEW = "2026-08-19_11-00-00-backup-8-4-0"

MakeBackup = Callable[..., Path]


def add_manifest(folder: Path, **fields: object) -> None:
    manifest = {
        "kind": "backup",
        "plugin_version": "0.1.0",
        "run": "r",
        "step": 8,
        "epoch": 4,
        "epoch_step": 0,
        "parameters": [],
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def add_save(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = {f"ema_select.{key}": value for key, value in metadata.items()}
    save_file({"a": torch.zeros(2)}, path, metadata=marks or None)
    return path


def test_newest_of_two(tmp_path: Path, make_backup: MakeBackup) -> None:
    make_backup(tmp_path, OLD)
    new = make_backup(tmp_path, NEW)
    assert newest_complete_backup(tmp_path) == (new, ())


def test_cut_short_and_stray_folders_are_passed_over_with_a_sentence(tmp_path: Path, make_backup: MakeBackup) -> None:
    old = make_backup(tmp_path, OLD)
    new = make_backup(tmp_path, NEW)
    (new / "meta.json").unlink()
    stray = tmp_path / "backup" / "my copy"
    shutil.copytree(old, stray)
    (tmp_path / "backup" / "notes.txt").touch()
    assert newest_complete_backup(tmp_path) == (
        old,
        (
            f"Skipped {stray}: stray folder, its name does not begin with a backup's time.",
            f"Skipped {new}: meta.json, which is written last, is missing: it was cut short.",
        ),
    )


def test_older_ones_are_not_looked_at(tmp_path: Path, make_backup: MakeBackup) -> None:
    old = make_backup(tmp_path, OLD)
    new = make_backup(tmp_path, NEW)
    (old / "meta.json").unlink()
    assert newest_complete_backup(tmp_path) == (new, ())


def test_no_backup(tmp_path: Path, make_backup: MakeBackup) -> None:
    assert newest_complete_backup(tmp_path) == (None, ())
    only = make_backup(tmp_path, OLD)
    (only / "meta.json").unlink()
    found, skipped = newest_complete_backup(tmp_path)
    assert found is None
    assert len(skipped) == 1


def test_no_such_workspace(tmp_path: Path) -> None:
    with pytest.raises(EmaSelectError) as caught:
        scan_workspace(tmp_path / "gone")
    assert str(caught.value) == (
        f"There is no folder {tmp_path / 'gone'}. "
        "Give a run's workspace, the folder that workspace_dir names in its config."
    )


def test_an_empty_workspace(tmp_path: Path) -> None:
    view = scan_workspace(tmp_path)
    assert (view.backups, view.milestones, view.saves, view.parked) == ((), (), (), ())
    assert (view.plain_continue, view.our_continue, view.skipped) == (None, None, ())


def test_backups_without_the_plugin(tmp_path: Path, make_backup: MakeBackup) -> None:
    make_backup(tmp_path, OLD, ema=False)
    new = make_backup(tmp_path, NEW, step=8, epoch=4)
    view = scan_workspace(tmp_path)
    newer, older = view.backups
    assert (newer.name, newer.path, newer.complete, newer.reason) == (NEW, new, True, "")
    assert (newer.step, newer.epoch, newer.sets, newer.leg) == (8, 4, ("non-ema", "ema"), "")
    assert newer.size_bytes == sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
    assert (older.name, older.step, older.epoch, older.sets) == (OLD, 4, 2, ("non-ema",))
    assert (view.plain_continue, view.our_continue) == (NEW, NEW)


def test_what_the_manifest_says(tmp_path: Path, make_backup: MakeBackup) -> None:
    backup = make_backup(tmp_path, NEW, ema=False)
    leg = {
        "choices": {"resume_weights": "EMA", "resume_backup": "", "resume_optimizer": "RESET"},
        "began_from": OLD,
        "began_at_step": 4,
    }
    add_manifest(backup / "ema_select", leg=leg, parked=[{"name": "x-ema", "step": 4}])
    (view,) = scan_workspace(tmp_path).backups
    assert view.sets == ("non-ema",)
    assert view.leg == f"from {OLD} at step 4 with resume_weights=EMA, resume_optimizer=RESET"
    assert view.parked == ("x-ema (stopped at step 4)",)
    add_manifest(backup / "ema_select")
    (view,) = scan_workspace(tmp_path).backups
    assert (view.leg, view.parked) == ("fresh start", ())


def test_an_unreadable_manifest_is_told(tmp_path: Path, make_backup: MakeBackup) -> None:
    backup = make_backup(tmp_path, NEW)
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text("{", encoding="utf-8")
    (view,) = scan_workspace(tmp_path).backups
    assert view.complete
    assert view.reason.startswith(f"{backup / 'ema_select' / 'manifest.json'} cannot be read: ")
    assert view.sets == ("non-ema", "ema")


def test_incomplete_and_stray(tmp_path: Path, make_backup: MakeBackup) -> None:
    old = make_backup(tmp_path, OLD)
    (old / "optimizer" / "optimizer.pt").unlink()
    (tmp_path / "backup" / "stray").mkdir()
    view = scan_workspace(tmp_path)
    stray, cut = view.backups
    assert (stray.name, stray.complete, stray.reason, stray.step) == ("stray", False, "stray folder, ignored", None)
    assert (cut.name, cut.complete, cut.reason) == (OLD, False, "optimizer/optimizer.pt is missing")
    assert (cut.step, cut.sets) == (4, ("non-ema", "ema"))
    assert (view.plain_continue, view.our_continue) == ("stray", None)
    assert len(view.skipped) == 2


def test_pinned_backups_may_have_any_name(tmp_path: Path, make_backup: MakeBackup) -> None:
    make_backup(tmp_path / "ema_select" / "milestones", "10 epochs")
    view = scan_workspace(tmp_path)
    assert [(one.name, one.complete, one.reason) for one in view.milestones] == [("10 epochs", True, "")]
    assert view.backups == ()


def test_saves_in_pairs(tmp_path: Path) -> None:
    base = "run-2026-08-19_10-00-00-save-4-2-0"
    ema = add_save(tmp_path / "save" / f"{base}.safetensors", set="EMA", step="4", epoch="2", milestone="2 epochs")
    other = add_save(tmp_path / "save" / f"{base}-non-ema.safetensors", set="NON_EMA", step="4", epoch="2")
    first, second = scan_workspace(tmp_path).saves
    assert (first.path, first.set, first.step, first.epoch) == (ema, "ema", 4, 2)
    assert (first.milestone, first.partner) == ("2 epochs", other)
    assert (second.path, second.set, second.milestone, second.partner) == (other, "non-ema", None, ema)


@pytest.mark.parametrize("change", [{"step": "8"}, {"run": "another"}, {"set": "EMA"}])
def test_two_sets_of_different_moments_are_no_pair(tmp_path: Path, change: dict[str, str]) -> None:
    marks = {"run": "a", "step": "4", "sets": "EMA, NON_EMA"}
    add_save(tmp_path / "save" / "x.safetensors", **{**marks, "set": "EMA"})
    add_save(tmp_path / "save" / "x-non-ema.safetensors", **{**marks, "set": "NON_EMA", **change})
    first, second = scan_workspace(tmp_path).saves
    assert (first.partner, second.partner) == (None, None)
    assert first.missing == "non-ema"


def test_a_set_whose_partner_is_missing_says_which(tmp_path: Path) -> None:
    add_save(tmp_path / "save" / "x.safetensors", set="EMA", run="a", step="4", sets="EMA, NON_EMA")
    add_save(tmp_path / "save" / "y.safetensors", set="EMA", run="a", step="8", sets="EMA")
    first, second = scan_workspace(tmp_path).saves
    assert (first.missing, second.missing) == ("non-ema", "")


def test_the_final_output_in_its_second_place_is_listed(tmp_path: Path) -> None:
    place = add_save(tmp_path / "ema_select" / "output" / "model.safetensors", set="EMA", run="a", step="4")
    assert [save.path for save in scan_workspace(tmp_path).saves] == [place]


def test_saves_without_the_plugin(tmp_path: Path) -> None:
    add_save(tmp_path / "save" / "a-2026-08-19_10-00-00-save-12-3-1.safetensors")
    torch.save({"a": 1}, tmp_path / "save" / "b.ckpt")
    (tmp_path / "save" / "broken.safetensors").write_bytes(b"xx")
    first, second, third = scan_workspace(tmp_path).saves
    assert (first.set, first.step, first.epoch, first.milestone, first.partner) == ("", 12, 3, None, None)
    assert (second.path.name, second.set, second.step, second.epoch) == ("b.ckpt", "", None, None)
    assert (third.path.name, third.set, third.step, third.size_bytes) == ("broken.safetensors", "", None, 2)


def test_a_folder_save_and_what_lies_beside_it(tmp_path: Path) -> None:
    # Stable Cascade: a folder whose name ends like a file's
    folder = tmp_path / "save" / "2026-08-19_10-00-00-save-4-2-0.safetensors"
    stage = add_save(folder / "stage_c.safetensors")
    marks = {"ema_select.set": "EMA", "ema_select.step": "5", "ema_select.epoch": "2"}
    (folder / "ema_select.json").write_text(json.dumps(marks), encoding="utf-8")
    embedding = add_save(tmp_path / "save" / f"{folder.name}_embeddings" / "x.safetensors")
    yaml = tmp_path / "save" / "2026-08-19_10-00-00-save-4-2-0.yaml"
    yaml.write_text("a: 1\n", encoding="utf-8")
    (tmp_path / "save" / ".hidden").mkdir()
    (save,) = scan_workspace(tmp_path).saves
    assert (save.path, save.set, save.step, save.epoch) == (folder, "ema", 5, 2)
    files = (stage, folder / "ema_select.json", embedding, yaml)
    assert save.size_bytes == sum(file.stat().st_size for file in files)


def test_parked(tmp_path: Path) -> None:
    folder = tmp_path / "ema_select" / "parked" / f"{OLD}-ema"
    add_manifest(folder, kind="parked", step=4)
    (one,) = scan_workspace(tmp_path).parked
    assert (one.path, one.step) == (folder, 4)
    assert one.size_bytes == (folder / "manifest.json").stat().st_size
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    assert scan_workspace(tmp_path).parked[0].step is None
