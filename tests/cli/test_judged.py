"""What `list` and `inspect` say of backups whose sets were judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len

from onetrainer_ema_select.manifest import write_manifest
from onetrainer_ema_select.validation import ValidationRecord, judge

from ..backup_files import NAME, manifest, tensors, write_backup

Command = Callable[..., "tuple[int, str, str]"]

LIVE = [1.0, 2.0, 4.0]
BETTER = judge(step=6, epoch=2, labels=["cats", "cats", "dogs"], ema=[0.9, 1.89, 3.91], non_ema=LIVE)
BROKEN = judge(step=6, epoch=2, labels=["cats"], ema=[float("nan")], non_ema=[1.0])


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[ValidationRecord], Path]:
    def make(validation: ValidationRecord) -> Path:
        live, average = tensors((3, 2)), tensors((3, 2), seed=1)
        folder = tmp_path / "run" / "backup" / NAME
        write_backup(folder, {"unet/x.safetensors": {"w": live[0]}}, averages=average)
        named = manifest(["unet.w"], average).model_copy(update={"validation": validation})
        write_manifest(named, folder / "ema_select")
        return tmp_path / "run"

    return make


def test_list_names_the_better_set(command: Command, workspace: Callable[[ValidationRecord], Path]) -> None:
    code, out, err = command("list", workspace(BETTER))
    assert (code, err) == (0, "")
    assert (
        "         better: EMA (validation loss: EMA 2.233 against non-EMA 2.333;\n"
        "           difference 0.1 ± 0.005774, clear; 3 batches, measured at step 6)\n"
    ) in out
    assert all(cell_len(line) <= 80 for line in out.splitlines())


def test_list_says_where_a_loss_is_no_number(command: Command, workspace: Callable[[ValidationRecord], Path]) -> None:
    out = " ".join(command("list", workspace(BROKEN))[1].split())
    assert (
        "better: non-EMA (validation loss: non-EMA 1 against EMA not finite; not a finite number; 1 batch, measured at "
        "step 6)"
    ) in out


def test_inspect_shows_the_losses_of_each_concept(
    command: Command, workspace: Callable[[ValidationRecord], Path]
) -> None:
    code, out, err = command("inspect", workspace(BETTER) / "backup" / NAME)
    assert (code, err) == (0, "")
    assert (
        "\nbetter: EMA (validation loss: EMA 2.233 against non-EMA 2.333; difference 0.1 ±\n"
        "  0.005774, clear; 3 batches, measured at step 6)\n"
        "  validation loss  batches    ema  non-ema\n"
        "  cats                   2  1.395      1.5\n"
        "  dogs                   1   3.91        4\n"
        "  ----------------------------------------\n"
        "  all                    3  2.233    2.333\n"
    ) in out


def test_inspect_of_one_concept_has_no_sum(command: Command, workspace: Callable[[ValidationRecord], Path]) -> None:
    out = command("inspect", workspace(BROKEN) / "backup" / NAME)[1]
    assert "  validation loss  batches  ema  non-ema\n  cats                   1    -        1\n\n" in out


def test_labels_may_be_long_and_wide(command: Command, workspace: Callable[[ValidationRecord], Path]) -> None:
    label = "很长的概念名" * 12
    record = judge(step=1, epoch=0, labels=[label, "b"], ema=[1.0, 2.0], non_ema=[torch.pi, 2.0])
    for line in command("inspect", workspace(record) / "backup" / NAME)[1].splitlines():
        assert cell_len(line) <= 80 or label in line or "/" in line
