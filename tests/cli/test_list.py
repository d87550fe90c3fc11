"""`list`: the text, to the letter, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

from onetrainer_ema_select.checksums import write_checksums
from onetrainer_ema_select.manifest import Manifest, write_manifest
from onetrainer_ema_select.workspace import SNAPSHOT_FOLDER

from ..backup_files import write_snapshot

Command = Callable[..., "tuple[int, str, str]"]

OLD = "2026-08-19_10-00-00-backup-4-2-0"
NEW = "2026-08-19_11-00-00-backup-8-4-0"
SAVE = "2026-08-19_10-30-00-save-6-3-0"


@pytest.fixture
def workspace(tmp_path: Path, make_backup: Callable[..., Path]) -> Path:
    """One whole backup, one cut short, a stray folder, a pair of saves, a parked average; sizes made even."""
    root = tmp_path / "workspace"
    old = make_backup(root, OLD, ema=False)
    new = make_backup(root, NEW, step=8, epoch=4)
    (new / "optimizer" / "optimizer.pt").unlink()
    (root / "backup" / "stray").mkdir()
    manifest = {
        "kind": "backup",
        "plugin_version": "0.1.0",
        "run": "r",
        "step": 4,
        "epoch": 2,
        "epoch_step": 0,
        "parameters": [],
        "parked": [{"name": "parked-ema", "step": 2}],
    }
    parked = root / "ema_select" / "parked" / "parked-ema"
    for folder, extra in ((old / "ema_select", {}), (parked, {"kind": "parked", "step": 2})):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({**manifest, **extra}), encoding="utf-8")
    (root / "save").mkdir()
    for name, weight_set in ((f"{SAVE}.safetensors", "EMA"), (f"{SAVE}-non-ema.safetensors", "NON_EMA")):
        marks = {"ema_select.set": weight_set, "ema_select.step": "6", "ema_select.epoch": "3"}
        if weight_set == "EMA":
            marks["ema_select.milestone"] = "3 epochs"
        save_file({"a": torch.zeros(2)}, root / "save" / name, metadata=marks)
    for folder, size in ((old, 1234567), (new, 7654321), (parked, 99949)):
        missing = size - sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        (folder / "padding.bin").write_bytes(b"x" * missing)
    return root


def test_text(command: Command, workspace: Path) -> None:
    sizes = [(workspace / "save" / f"{SAVE}{end}.safetensors").stat().st_size for end in ("", "-non-ema")]
    ema, other = (f"{size} B" for size in sizes)
    code, out, err = command("list", workspace)
    assert (code, err) == (0, "")
    report, said = out.split('\n"Continue')
    assert report == (
        "Backups, newest first\n"
        "    step epoch     size  sets                 name\n"
        "       -     -      0 B  -                    stray\n"
        "         stray folder, ignored\n"
        f"       8     4   7.7 MB  non-ema, ema         {NEW}\n"
        "         NOT COMPLETE: optimizer/optimizer.pt is missing\n"
        f"       4     2   1.2 MB  non-ema, parked ema  {OLD}\n"
        "         leg: fresh start\n"
        "         parked: parked-ema (stopped at step 2)\n"
        "\n"
        "Saves\n"
        "    step epoch     size  sets\n"
        f"       6     3 {ema:>8}  ema\n"
        f"         {SAVE}.safetensors\n"
        "         milestone: 3 epochs\n"
        f"       6     3 {other:>8}  non-ema\n"
        f"         {SAVE}-non-ema.safetensors\n"
        "         partner of the one above\n"
        "\n"
        "Parked EMA, to be taken up again by a run with EMA on\n"
        "    step epoch     size  sets  name\n"
        "       2     -  99.9 kB  ema   parked-ema\n"
    )
    assert said.startswith(f' last backup" would load, with the plugin:\n  {OLD}\nPlain OneTrainer would try: stray\n')
    assert " ".join(said.split()).endswith(
        f"Skipped {workspace / 'backup' / 'stray'}: stray folder, its name does not begin with a backup's time. "
        f"Skipped {workspace / 'backup' / NEW}: optimizer/optimizer.pt is missing."
    )


def test_json(command: Command, workspace: Path) -> None:
    code, out, err = command("list", workspace, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["schema"], report["workspace"]) == (1, str(workspace))
    assert [backup["name"] for backup in report["backups"]] == ["stray", NEW, OLD]
    assert report["backups"][1] == {
        "name": NEW,
        "path": str(workspace / "backup" / NEW),
        "complete": False,
        "reason": "optimizer/optimizer.pt is missing",
        "step": 8,
        "epoch": 4,
        "sets": ["non-ema", "ema"],
        "size_bytes": 7654321,
        "leg": "",
        "parked": [],
        "milestone": "",
        "half_life": None,
        "length_warnings": [],
        "validation": None,
    }
    assert report["backups"][2]["parked"] == ["parked-ema (stopped at step 2)"]
    assert report["saves"][1]["partner"] == str(workspace / "save" / f"{SAVE}.safetensors")
    assert report["milestones"] == []
    assert (report["plain_continue"], report["our_continue"]) == ("stray", OLD)
    assert len(report["skipped"]) == 2


def test_both_would_load_the_same(command: Command, tmp_path: Path, make_backup: Callable[..., Path]) -> None:
    make_backup(tmp_path / "workspace", NEW)
    _, out, _ = command("list", tmp_path / "workspace")
    assert "         made without the plugin\n" in out
    assert out.endswith(f'\n"Continue last backup" would load, with and without the plugin:\n  {NEW}\n')


def test_nothing_there(command: Command, tmp_path: Path) -> None:
    code, out, err = command("list", tmp_path / "home")
    assert (code, err) == (0, "")
    nothing, said = out.split("\n\n")
    assert " ".join(nothing.split()) == f"No backups and no saves in {tmp_path / 'home'}."
    assert said == '"Continue last backup" would find nothing and start anew.\n'


def test_no_such_folder(command: Command, tmp_path: Path) -> None:
    assert command("list", tmp_path / "gone") == (
        1,
        "",
        f"There is no folder {tmp_path / 'gone'}. "
        "Give a run's workspace, the folder that workspace_dir names in its config.\n",
    )


def test_verify(command: Command, tmp_path: Path, make_backup: Callable[..., Path]) -> None:
    root = tmp_path / "workspace"
    old, new = make_backup(root, OLD), make_backup(root, NEW, step=8)
    for backup in (old, new):
        (backup / "ema_select").mkdir()
    write_checksums(new)
    (root / "save").mkdir()
    save_file({"a": torch.zeros(1)}, root / "save" / "x.safetensors")
    code, out, _ = command("list", root, "--verify")
    assert code == 0
    assert out.count("         verified by checksums\n") == 1
    assert out.count("         readable throughout; it holds no checksums\n") == 2

    save_file({"weight": torch.zeros(4, 2)}, new / "lora" / "lora.safetensors")
    code, out, _ = command("list", root, "--verify")
    assert code == 1
    assert "DAMAGED: lora/lora.safetensors has another checksum than when it was written" in " ".join(out.split())
    code, out, _ = command("list", root, "--verify", "--json")
    assert code == 1
    assert json.loads(out)["verified"][str(new)] == {
        "problem": "lora/lora.safetensors has another checksum than when it was written",
        "checksums": True,
        "files": 4,
    }
    code, out, _ = command("list", root)
    assert (code, "DAMAGED" in out, "verified" in out) == (0, False, False)


def test_a_pinned_backup_names_its_milestone(
    command: Command, tmp_path: Path, make_backup: Callable[..., Path]
) -> None:
    pinned = make_backup(tmp_path / "run" / "ema_select" / "milestones", f"{NEW}-10-epochs")
    manifest = Manifest(
        kind="backup",
        plugin_version="1",
        run="a",
        step=8,
        epoch=4,
        epoch_step=0,
        parameters=(),
        milestones=("10 epochs",),
    )
    write_manifest(manifest, pinned / "ema_select")
    _, out, _ = command("list", tmp_path / "run")
    assert "Milestones, newest first" in out
    assert "         milestone: 10 epochs\n" in out


def test_a_set_without_its_partner_is_listed_as_such(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "save").mkdir(parents=True)
    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "run" / "save" / "x.safetensors",
        metadata={"ema_select.set": "EMA", "ema_select.sets": "EMA, NON_EMA", "ema_select.step": "4"},
    )
    _, out, _ = command("list", tmp_path / "run")
    assert "         without its partner: non-ema is not there\n" in out


def test_every_line_fits_80_columns(command: Command, tmp_path: Path, make_backup: Callable[..., Path]) -> None:
    # Chinese takes two columns a character; there are spaces in the path, and more legs than usual
    root = tmp_path / "我的 训练 with a name that is far longer than anybody would want to read" / "工作区"
    leg = {
        "id": "a",
        "choices": {"resume_weights": "EMA", "resume_backup": "10 epochs", "resume_optimizer": "RESET"},
        "began_from": "2026-08-19_10-00-00-backup-4-2-0-10-epochs-and-a-name-that-somebody-has-made-longer",
        "began_at_step": 400,
    }
    manifest = {"kind": "backup", "plugin_version": "1", "run": "r", "step": 4, "epoch": 2, "epoch_step": 0}
    names = [f"2026-08-19_1{number}-00-00-backup-400-2-0-ema-{'长' * 20}" for number in range(5)]
    for number, name in enumerate(names):
        backup = make_backup(root, f"2026-08-19_1{number}-00-00-backup-{number}00000-20000-0", step=number * 100000)
        parked = [{"name": name, "step": 1}]
        (backup / "ema_select").mkdir()
        (backup / "ema_select" / "manifest.json").write_text(
            json.dumps({**manifest, "parameters": [], "leg": leg, "parked": parked, "milestones": ["1 epochs"] * 9}),
            encoding="utf-8",
        )
    (root / "backup" / ("陌生的文件夹" * 8)).mkdir()
    (root / "save").mkdir()
    for end, weight_set in (("", "EMA"), ("-non-ema", "NON_EMA")):
        marks = {"ema_select.set": weight_set, "ema_select.run": "r", "ema_select.milestone": "every 50 steps, " * 9}
        for stem in ("人像" * 15, "a model"):
            save_file({"a": torch.zeros(1)}, root / "save" / f"{stem}{end}.safetensors", metadata=marks)
    code, out, _ = command("list", root, "--verify")
    assert code == 0
    wide = [line for line in out.splitlines() if cell_len(line) > 80]
    whole = [str(root), *(path.name for path in root.rglob("*")), leg["began_from"], *names]
    # nothing but one path or name, which cannot be broken, and what is glued to it
    assert wide
    assert [line for line in wide if not line.strip().startswith(tuple(whole))] == []
    assert out.count("partner of the one above") == 2
    assert "人像" * 15 + "-non-ema.safetensors\n" in out
    assert "step epoch     size  sets" in out


def test_snapshots_are_told_together_and_damaged_ones_alone(command: Command, tmp_path: Path) -> None:
    place = tmp_path / "run" / SNAPSHOT_FOLDER
    weights = {"a": torch.ones(3)}
    for step in range(1, 4):
        write_snapshot(
            place / f"2026-01-02_03-04-0{step}-snapshot-{step}-0-0", {0.05: weights, 0.1: weights}, step=step
        )
    out = command("list", tmp_path / "run")[1]
    assert "Snapshots for post-hoc EMA: 3, " in out
    assert "sigma_rel 0.05, 0.1, of the\n  steps 1, 2, 3." in out
    file = place / "2026-01-02_03-04-02-snapshot-2-0-0" / "sigma_rel-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    out = command("list", tmp_path / "run")[1]
    assert "steps 1, 3." in out
    assert "DAMAGED: 2026-01-02_03-04-02-snapshot-2-0-0: sigma_rel-0.1.safetensors is cut" in out
    for step in range(4, 16):
        write_snapshot(place / f"2026-01-02_03-05-{step}-snapshot-{step}-0-0", {0.05: weights}, step=step)
    assert "of the steps 1 to 15." in " ".join(command("list", tmp_path / "run")[1].split())
