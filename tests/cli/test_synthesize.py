"""The verb `synthesize`: what it refuses before OneTrainer is started, what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.export import ExportedSet, ExportResult
from onetrainer_ema_select.host.export import synthesize as module
from onetrainer_ema_select.host.export.messages import ExportOrder
from onetrainer_ema_select.workspace import SNAPSHOT_FOLDER

from ..backup_files import NAME, write_backup, write_snapshot
from .conftest import Command
from .test_json import check, documented

WEIGHTS = {"unet.a": torch.ones(2, 3)}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A run with snapshots at 10, 20 and 30 steps, and two backups."""
    root = tmp_path / "run"
    for place, step in enumerate((10, 20, 30)):
        folder = root / SNAPSHOT_FOLDER / f"2026-08-19_11-00-0{place}-snapshot-{step}-1-0"
        write_snapshot(folder, {0.05: WEIGHTS, 0.1: WEIGHTS}, step=step)
    for name in (NAME, NAME.replace("11-00-00-backup-8", "12-00-00-backup-28")):
        backup = write_backup(
            root / "backup" / name, {UNET: {"a": torch.ones(2, 3)}}, averages=[torch.ones(2, 3)], names=["unet.a"]
        )
    manifest = backup / "ema_select" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 28}), encoding="utf-8")
    return root


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ExportOrder]:
    """What would be carried out; OneTrainer is not started."""
    found: list[ExportOrder] = []

    def carry_out(order: ExportOrder, progress: object) -> ExportResult:
        found.append(order)
        return ExportResult(
            backup=order.backup, step=30, epoch=4, model_type="STABLE_DIFFUSION_15", training_method="FINE_TUNE",
            format="DIFFUSERS", dtype="FLOAT_32", how="through OneTrainer", notes=("a note",), free_bytes=7,
            sets=(ExportedSet(set=WeightSet.EMA, path=tmp_path / "m", files=(tmp_path / "m" / "x",), size_bytes=3,
                              tensors=2, weights=1, left_out=("a",), nonfinite=("b",)),),
            dry_run=order.action == "plan",
        )  # fmt: skip

    monkeypatch.setattr(module, "carry_out", carry_out)
    return found


def run(command: Command, workspace: Path, onetrainer: Path, *more: object, sigma_rel: str = "0.08") -> Any:
    return command(
        "synthesize", workspace, "--sigma-rel", sigma_rel, "--output", workspace.parent / "m", "--onetrainer",
        onetrainer, *more,
    )  # fmt: skip


def test_it_says_what_it_mixes_and_how_near_it_comes(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder]
) -> None:
    result = run(command, workspace, onetrainer)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Post-hoc EMA of sigma_rel 0.08 at step 30, from 3 of 3 snapshots; its profile is ")
    assert "off the one asked for (mean age " in result.out
    assert f"Wrote post-hoc EMA of sigma_rel 0.08: {workspace.parent / 'm'} (3 B)" in result.out
    [order] = orders
    # the backup of step 28 is nearer than that of step 8
    assert order.backup.name.endswith("12-00-00-backup-28-4-1")
    assert (order.sets, order.action) == ("ema", "export")
    assert order.mixture is not None
    assert sum(order.mixture.coefficients) == 1.0
    assert (order.mixture.step, order.mixture.run) == (30, "a-run")


def test_another_moment_another_backup_and_all_options(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder]
) -> None:
    backup = workspace / "backup" / NAME
    more = ("--at", "20", "--backup", backup, "--format", "DIFFUSERS", "--dtype", "NONE", "--dry-run", "--overwrite")
    more = (*more, "--rounding", "nearest")
    result = run(command, workspace, onetrainer, *more)
    assert "at step 20, from 2 of 2 snapshots" in result.out
    assert "Would write post-hoc EMA of sigma_rel 0.08" in result.out
    [order] = orders
    assert (order.backup, order.format, order.dtype, order.action) == (backup, "DIFFUSERS", "NONE", "plan")
    assert order.overwrite
    assert order.rounding == "nearest"


def test_a_length_out_of_reach_is_made_with_a_warning(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder]
) -> None:
    result = run(command, workspace, onetrainer, sigma_rel="0.01")
    assert result.code == 0
    assert "WARNING: The snapshots cannot give sigma_rel 0.01" in result.out
    assert "ask for that one or longer ones" in result.out
    assert orders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_snapshots_whose_rounding_a_length_multiplies(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder], dtype: torch.dtype
) -> None:
    said = "The snapshots are of 16 bits, and sigma_rel 0.02 multiplies their rounding by up to "
    assert said not in run(command, workspace, onetrainer, sigma_rel="0.02").out  # of 32 bits
    shutil.rmtree(workspace / SNAPSHOT_FOLDER)
    rounded = {"unet.a": torch.ones(2, 3, dtype=dtype)}
    for step in range(1, 21):
        folder = workspace / SNAPSHOT_FOLDER / f"2026-08-19_11-00-{step:02d}-snapshot-{step}-1-0"
        write_snapshot(folder, {0.05: rounded, 0.1: rounded}, step=step * 100)
    for harmless in ("0.05", "0.08"):
        result = run(command, workspace, onetrainer, sigma_rel=harmless)
        assert result.code == 0
        assert "WARNING" not in result.out
    report = json.loads(run(command, workspace, onetrainer, "--json", sigma_rel="0.02").out)
    warning = report["fit"]["warning"]
    amplified = sum(source["coefficient"] ** 2 for source in report["sources"]) ** 0.5
    assert amplified > 5
    assert f"{said}{amplified:.1f}. Ask for" in warning
    assert "Ask for a length nearer to 0.05, that of a track" in warning
    assert "ema_dtype FLOAT_32" in warning
    assert warning.startswith("The snapshots cannot give sigma_rel 0.02")  # both are said
    assert f"WARNING: {warning}\n" in run(command, workspace, onetrainer, sigma_rel="0.02").out


@pytest.mark.parametrize(
    ("sigma_rel", "said"),
    [
        ("0.5", '"0.5" is not from 0.005 to 0.28. Type for example --sigma-rel 0.10'),
        ("long", '"long" is not a number such as 0.05'),
        ("0.05,0.1", 'one length is needed, "0.05,0.1" was found'),
    ],
)
def test_a_length_that_is_none(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder], sigma_rel: str, said: str
) -> None:
    result = run(command, workspace, onetrainer, sigma_rel=sigma_rel)
    assert result.code == 2
    assert said in " ".join(result.err.replace("│", " ").split())
    assert not orders


def test_without_snapshots_or_without_a_backup(
    command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder]
) -> None:
    nothing = run(command, workspace.parent / "home", onetrainer)
    assert nothing.code == 1
    assert "There are no snapshots of post-hoc tracks in" in nothing.err
    gone = run(command, workspace.parent / "gone", onetrainer)
    assert gone.code == 1
    assert "There is no folder" in gone.err
    for folder in (workspace / "backup").iterdir():
        manifest = folder / "ema_select" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"run": "another"}), encoding="utf-8")
    other = run(command, workspace, onetrainer)
    assert other.code == 1
    assert "but no backup of their run to take the rest of the model from" in other.err
    assert f"{NAME}: of another run" in other.err
    assert "--backup PATH" in other.err
    assert not orders


def test_json(command: Command, workspace: Path, onetrainer: Path, orders: list[ExportOrder]) -> None:
    report = json.loads(run(command, workspace, onetrainer, "--json").out)
    assert report["sets"][0]["set"] == "POST_HOC"
    assert report["at"].endswith("2026-08-19_11-00-02-snapshot-30-1-0")
    assert [one["step"] for one in report["snapshots"]] == [10, 20, 30]
    assert sum(one["coefficient"] for one in report["sources"]) == pytest.approx(1.0)
    check([report], documented("export") | documented("synthesize"))
