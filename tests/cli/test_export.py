"""The verb `export`: what it refuses before OneTrainer is started, what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.cli.export import print_result
from onetrainer_ema_select.host.export import ExportedSet, ExportResult
from onetrainer_ema_select.host.export import launch as launch_module

from ..backup_files import park
from ..conftest import MakeBackup
from .conftest import Command
from .test_json import documented

NAME = "2026-01-02_03-04-05-backup-4-2-0"


def no_path(backup: Path) -> Path:
    return backup.with_name("gone")


def a_file(backup: Path) -> Path:
    return backup / "meta.json"


def empty(backup: Path) -> Path:
    folder = backup.parents[2] / "empty"
    folder.mkdir()
    return folder


def workspace(backup: Path) -> Path:
    return backup.parents[1]


def cut_short(backup: Path) -> Path:
    (backup / "meta.json").unlink()
    return backup


def cut_weights(backup: Path) -> Path:
    file = backup / "lora" / "lora.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    return backup


def cut_average(backup: Path) -> Path:
    file = backup / "ema" / "ema.pt"
    file.write_bytes(file.read_bytes()[:200])
    return backup


def average_of_something_else(backup: Path) -> Path:
    torch.save([1, 2, 3], backup / "ema" / "ema.pt")
    return backup


def bad_manifest(backup: Path) -> Path:
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text("{", encoding="utf-8")
    return backup


def no_weights(backup: Path) -> Path:
    shutil.rmtree(backup / "lora")
    return backup


def no_average(backup: Path) -> Path:
    shutil.rmtree(backup / "ema")
    return backup


CASES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "nothing there": (no_path, ("gone",)),
    "a file": (a_file, ("meta.json",)),
    "an empty folder": (empty, ("empty",)),
    "the workspace": (workspace, (NAME,)),
    "half a backup": (cut_short, ("meta.json, which is written last, is missing",)),
    "weights cut short": (cut_weights, ("lora.safetensors", "is cut short")),
    "average cut short": (cut_average, ("ema.pt",)),
    "average of something else": (average_of_something_else, ("ema.pt",)),
    "a manifest that is none": (bad_manifest, ("manifest.json cannot be read",)),
    "no weights": (no_weights, ("there is no model in it",)),
    "no average": (no_average, ("does not hold the ema set, only: non-ema", "EMA was off", "--set non-ema")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_backup_is_refused_at_once(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path, case: str
) -> None:
    change, parts = CASES[case]
    path = change(make_backup(tmp_path / "workspace", NAME))
    result = command("export", path, "--output", tmp_path / "out" / "m.safetensors", "--onetrainer", onetrainer)
    assert result.code == 1
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "\n\n" not in result.err.strip()
    for part in parts:
        assert part in result.err
    assert not (tmp_path / "out").exists()


def test_a_parked_ema(command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path) -> None:
    backup = make_backup(tmp_path / "workspace", NAME)
    parked = park(tmp_path / "workspace" / "ema_select" / "parked" / f"{NAME}-ema", {"unet.a": torch.ones(2)})
    arguments = ("export", parked, "--output", tmp_path / "m.safetensors", "--onetrainer", onetrainer)
    result = command(*arguments)
    assert result.code == 1
    assert "is a parked EMA: averages without the rest of a model." in result.err
    assert f"The backup that it was taken from is there: export that one, {backup}" in result.err
    shutil.rmtree(backup)
    assert f"taken from, {NAME}, if you still have it; or take it up in a run" in command(*arguments).err


def test_no_onetrainer(command: Command, make_backup: MakeBackup, tmp_path: Path) -> None:
    result = command("export", make_backup(tmp_path / "w", NAME), "--output", tmp_path / "m.safetensors")
    assert result.code == 1
    assert "OneTrainer was not found" in result.err
    assert "--onetrainer DIR" in result.err


def test_a_config_that_is_not_there(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path
) -> None:
    result = command(
        "export", make_backup(tmp_path / "w", NAME), "-o", tmp_path / "m", "--onetrainer", onetrainer,
        "--config", tmp_path / "no.json", "--set", "non-ema",
    )  # fmt: skip
    assert result.code == 1
    assert "There is no config file" in result.err
    assert "--config" in result.err


@pytest.mark.parametrize("arguments", [("--set", "best"), (), ("--nonsense",)])
def test_wrong_usage(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    output = ("--output", tmp_path / "m") if arguments else ()
    result = command("export", make_backup(tmp_path / "w", NAME), *output, *arguments, "--onetrainer", onetrainer)
    assert result.code == 2


def test_a_onetrainer_that_cannot_start(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path
) -> None:
    backup = make_backup(tmp_path / "w", NAME)
    result = command("export", backup, "-o", tmp_path / "m.safetensors", "--set", "non-ema", "--onetrainer", onetrainer)
    assert result.code == 1
    assert "OneTrainer's process failed: " in result.err
    log = Path(result.err.split("What it printed is in ")[1].split(".log")[0] + ".log")
    assert "Traceback" in log.read_text(encoding="utf-8")
    log.unlink()


def result_of(tmp_path: Path, *, dry_run: bool) -> ExportResult:
    path = tmp_path / "m.safetensors"
    return ExportResult(
        backup=tmp_path / NAME,
        step=4,
        epoch=2,
        model_type="STABLE_CASCADE_1",
        training_method="FINE_TUNE",
        format="LEGACY_SAFETENSORS",
        dtype="NONE",
        sets=(
            ExportedSet(
                set=WeightSet.EMA,
                path=path,
                files=() if dry_run else (path / "stage_c.safetensors", tmp_path / "m.yaml"),
                size_bytes=2_000_000_000,
                tensors=0 if dry_run else 12,
            ),
        ),
        how="through OneTrainer's loader and setup",
        free_bytes=5_000_000_000,
        notes=("look here.",),
        dry_run=dry_run,
    )


def test_what_is_printed(tmp_path: Path) -> None:
    lines: list[str] = []
    print_result(result_of(tmp_path, dry_run=False), echo=lines.append)
    assert lines == [
        "STABLE_CASCADE_1 FINE_TUNE, step 4, epoch 2: LEGACY_SAFETENSORS, the weights' own dtype, through "
        "OneTrainer's loader and setup.",
        f"Wrote ema: {tmp_path / 'm.safetensors'} (2.0 GB)",
        f"  and {tmp_path / 'm.yaml'}",
        "12 tensors were read back and are what was to be written.",
        "Note: look here.",
    ]
    lines.clear()
    print_result(result_of(tmp_path, dry_run=True), echo=lines.append)
    assert lines[1:3] == [
        f"Would write ema: {tmp_path / 'm.safetensors'} (about 2.0 GB)",
        "Free there: 5.0 GB. Nothing was written.",
    ]


def test_what_onetrainer_does_not_have_is_wrong_usage_too(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = launch_module.Event(kind="error", text="--format X is none. Choose one of: Y.", error="UsageError")

    def refuse(*_: object) -> None:
        raise launch_module._as_error(event, tmp_path / "log")

    monkeypatch.setattr(launch_module, "_last_event", refuse)
    arguments = ("-o", tmp_path / "m", "--set", "non-ema", "--onetrainer", onetrainer, "--format", "X")
    result = command("export", make_backup(tmp_path / "w", NAME), *arguments)
    assert result.code == 2
    assert "--format X is none. Choose one of: Y." in result.err


def test_every_key_of_the_json_is_documented() -> None:
    own = set(ExportResult.model_fields) | {"schema"}
    assert set(documented("export")) == own | {f"sets[].{key}" for key in ExportedSet.model_fields}


def test_json(
    command: Command, onetrainer: Path, make_backup: MakeBackup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = launch_module.Event(kind="result", result=result_of(tmp_path, dry_run=False))
    monkeypatch.setattr(launch_module, "_last_event", lambda order, kind, progress: done)
    backup = make_backup(tmp_path / "w", NAME)
    result = command(
        "export", backup, "-o", tmp_path / "m", "--set", "non-ema", "--onetrainer", onetrainer, "--json"
    )  # fmt: skip
    assert result.code == 0
    report = json.loads(result.out)
    assert report["schema"] == 1
    assert report["sets"][0]["set"] == "EMA"
    assert report["sets"][0]["path"] == str(tmp_path / "m.safetensors")
