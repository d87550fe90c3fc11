"""Which snapshots led to a moment, which moments can be asked for, and what is said where nothing can be made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onetrainer_ema_select.errors import ManifestError, PostHocError
from onetrainer_ema_select.mixture import mix
from onetrainer_ema_select.snapshots import choose_end, find_snapshots, line_to, read_snapshot
from onetrainer_ema_select.workspace import BACKUP_FOLDER, SNAPSHOT_FOLDER

from .backup_files import NAME, write_backup, write_snapshot

WEIGHTS = {"unet.a": torch.ones(2, 3)}


def add(workspace: Path, second: int, *, step: int, named: dict[str, Tensor] | None = None, **more: object) -> Path:
    """A snapshot that was written in this second."""
    folder = workspace / SNAPSHOT_FOLDER / f"2026-08-19_11-00-{second:02d}-snapshot-{step}-0-{step}"
    named = WEIGHTS if named is None else named
    return write_snapshot(folder, {0.05: named, 0.1: named}, step=step, **more)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A first stretch up to step 30, two that went on from step 20, and one of another run."""
    for second, step in enumerate((10, 20, 30)):
        add(tmp_path, second, step=step, stretch="a")
    for second, step in enumerate((25, 35), 10):
        add(tmp_path, second, step=step, stretch="b", line=[("a", 20)])
    add(tmp_path, 20, step=25, stretch="c", line=[("a", 20)])
    add(tmp_path, 30, step=5, stretch="x", run="another")
    return tmp_path


def steps(workspace: Path, at: str) -> list[tuple[str, int]]:
    snapshots, _ = find_snapshots(workspace)
    return [(one.record.stretch, one.step) for one in line_to(choose_end(workspace, at, snapshots), snapshots)]


def test_only_what_led_there_belongs_to_a_line(workspace: Path) -> None:
    assert steps(workspace, "30") == [("a", 10), ("a", 20), ("a", 30)]
    assert steps(workspace, "35") == [("a", 10), ("a", 20), ("b", 25), ("b", 35)]
    assert steps(workspace, "25") == [("a", 10), ("a", 20), ("c", 25)]  # the newer one of two lines
    assert steps(workspace, "2026-08-19_11-00-10-snapshot-25-0-25") == [("a", 10), ("a", 20), ("b", 25)]
    assert steps(workspace, "") == [("x", 5)]  # the newest; of another run


def test_of_two_of_one_step_the_newer_counts(workspace: Path) -> None:
    newer = add(workspace, 12, step=35, stretch="b", line=[("a", 20)])
    snapshots, _ = find_snapshots(workspace)
    assert line_to(read_snapshot(newer), snapshots)[-1].path == newer


def test_a_backup_is_a_moment_too(workspace: Path) -> None:
    backup = write_backup(workspace / BACKUP_FOLDER / NAME, {"unet/x.safetensors": WEIGHTS})
    snapshots, _ = find_snapshots(workspace)
    with pytest.raises(PostHocError, match=r"holds no post-hoc tracks\. Switch post-hoc EMA on for the next run"):
        choose_end(workspace, NAME, snapshots)
    source = json.loads((snapshots[-1].path / "manifest.json").read_text(encoding="utf-8"))
    source |= {"kind": "backup", "step": 22}
    source["post_hoc"] |= {"stretch": "d", "line": [{"id": "a", "until_step": 20}], "time": 22}
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text(json.dumps(source), encoding="utf-8")
    assert steps(workspace, NAME) == [("a", 10), ("a", 20), ("d", 22)]
    assert steps(workspace, str(backup)) == steps(workspace, NAME)


def test_moments_that_are_not_there(workspace: Path, tmp_path: Path) -> None:
    snapshots, _ = find_snapshots(workspace)
    with pytest.raises(
        PostHocError, match=r"no snapshot of step 7 in .*, only of the steps 5, 10, 20, 25, 30, 35\. Gi"
    ):
        choose_end(workspace, "7", snapshots)
    with pytest.raises(PostHocError, match=r'"gone" is neither a step nor a snapshot, backup or milestone of .*--at'):
        choose_end(workspace, "gone", snapshots)
    with pytest.raises(PostHocError, match=r"There are no snapshots of post-hoc tracks in .*post_hoc_sigma_rels="):
        choose_end(tmp_path / "nothing", "", ())


def test_a_mixture_of_one_track_is_that_track(workspace: Path) -> None:
    snapshots, _ = find_snapshots(workspace)
    mixture = mix(choose_end(workspace, "35", snapshots), snapshots, sigma_rel=0.1)
    assert [(one.step, one.sigma_rel) for one in mixture.sources if abs(one.coefficient) > 1e-3] == [(35, 0.1)]
    assert mixture.sentence.startswith("sigma_rel 0.1 at step 35, from ")
    assert "of 4 snapshots; its profile is 0.00% off the one asked for" in mixture.sentence


def test_what_is_of_other_weights_is_left_out_and_said(workspace: Path) -> None:
    add(workspace, 1, step=15, stretch="a", named={"unet.b": torch.ones(2, 3)})
    snapshots, _ = find_snapshots(workspace)
    mixture = mix(choose_end(workspace, "30", snapshots), snapshots, sigma_rel=0.1)
    assert [one.step for one in mixture.line] == [10, 20, 30]
    assert mixture.notes == ("The snapshot of step 15 was left out: it is of other weights than step 30.",)


def test_a_damaged_snapshot_is_named(workspace: Path) -> None:
    snapshots, _ = find_snapshots(workspace)
    end = choose_end(workspace, "30", snapshots)
    file = end.path / "sigma_rel-0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(PostHocError, match=r"0\.1\.safetensors is cut short .*Bring back a whole copy, or delete its"):
        mix(end, snapshots, sigma_rel=0.1)
    (snapshots[0].path / "manifest.json").write_text("{", encoding="utf-8")
    rest, problems = find_snapshots(workspace)
    assert len(rest) == len(snapshots) - 1
    assert problems[0].startswith(f"The snapshot {snapshots[0].path.name} was left out: ")
    with pytest.raises(ManifestError):
        read_snapshot(snapshots[0].path)


def test_before_the_first_update_there_is_nothing_to_mix(tmp_path: Path) -> None:
    end = read_snapshot(add(tmp_path, 1, step=3, images=0.0))
    with pytest.raises(PostHocError, match=r"tracks of step 3 have not been updated yet.* Name a later step"):
        mix(end, [end], sigma_rel=0.1)
