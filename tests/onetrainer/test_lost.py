"""What could not be written: never without a word, never with exit code 0, and made good by the next start."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from safetensors import safe_open

from onetrainer_ema_select.checksums import verify_backup, verify_model
from onetrainer_ema_select.workspace import pinned_backups, scan_workspace, size_of

from .bench.recording import Recording, difference
from .bench.scenario import Scenario, steps
from .bench.workers import Bench

SCHEDULE = steps(2, backup_every=3, backup_at_end=True)
FULL = "[Errno 28] No space left on device"


def files(recording: Recording) -> dict[str, dict[str, object]]:
    """Tensors of each final output, by the set that its header names."""
    found = {}
    for path in sorted(recording.output_folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found[file.metadata()["ema_select.set"]] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


def ended_with(recording: Recording) -> str:
    """The error at the end of a run that trained to its end."""
    assert recording.exception is not None
    assert (recording.exception["type"], recording.result["phase"]) == ("EmaSelectError", "end")
    assert recording.step_numbers()[-1] == 8
    return str(recording.exception["message"])


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Recording:
    """The same run with nothing wrong."""
    return Scenario(bench, "whole-final").finish(schedule=SCHEDULE)


def test_a_final_output_whose_place_fails_goes_to_a_second_one_and_is_made_good(bench: Bench, whole: Recording) -> None:
    scenario = Scenario(bench, "second-place")
    first = scenario.start(schedule=SCHEDULE, hook="output_place_fails")
    again = scenario.resume(schedule=SCHEDULE)
    once_more = scenario.resume(schedule=SCHEDULE)
    [lost] = first.results()
    message = ended_with(lost)
    folder = lost.workspace / "ema_select" / "output"
    name = next(path.name for path in sorted(whole.output_folder.glob("*.safetensors")) if "non-ema" not in path.name)
    assert f"the final ema output at {lost.output_folder / name} ({FULL}); it is in {folder / name} instead" in message
    assert "the final non-ema output at" in message
    assert "start the same run again with continue_last_backup" in message
    expected = files(whole)
    assert set(expected) == {"EMA", "NON_EMA"}
    for path in sorted(folder.iterdir()):
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            assert difference(tensors, expected[file.metadata()["ema_select.set"]]) == 0.0
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in whole.output_folder.iterdir())

    [made_good] = again.results()
    made_good.require()
    assert made_good.step_numbers() == []
    assert "but the final output (ema and non-ema) is missing; it is written now" in made_good.output
    found = files(made_good)
    assert set(found) == set(expected)
    for weight_set, tensors in expected.items():
        assert difference(found[weight_set], tensors) == 0.0

    [nothing] = once_more.results()
    nothing.require()
    assert "Nothing is left to train: the backup is of the end of the run. Nothing was written." in nothing.output


def test_a_last_due_backup_that_fails_is_no_success(bench: Bench) -> None:
    schedule = steps(2, backup_every=3)
    scenarios = {
        hook: Scenario(bench, hook).start(schedule=schedule, hook=hook)
        for hook in ("later_backups_fail", "one_backup_fails", "backup_without_config")
    }
    [later] = scenarios["later_backups_fail"].results()
    assert "not everything that was asked for is on the disk: the backup " in ended_with(later)
    assert f"-backup-5-1-1 ({FULL})" in ended_with(later)
    assert list(later.by_step("backup")) == [2]
    assert "[ema_select] PROBLEM: The backup" in later.output
    [one] = scenarios["one_backup_fails"].results()
    one.require()  # a later one is there
    assert list(one.by_step("backup")) == [5]
    assert "[ema_select] 1 problem(s) in this run:" in one.output
    [gone] = scenarios["backup_without_config"].results()
    # it is gone, or a part of it that was written meanwhile is left
    assert "; OneTrainer removes one that it cannot finish)" in ended_with(gone)
    for recording in (later, one, gone):
        assert not [path for path in recording.workspace.rglob("*") if path.name == "half"]


def test_what_another_leg_has_written_at_the_same_steps_is_not_taken_for_this_ones(bench: Bench) -> None:
    section = {"milestones": "every 2 steps", "milestone_backups": "ALL", "milestone_keep": 2}
    scenario = Scenario(bench, "another-leg")
    whole = scenario.finish(schedule=SCHEDULE, ema_select=section)
    [early] = whole.by_step("backup")[2]
    taken_back = {**section, "resume_backup": early.name, "resume_weights": "EMA", "resume_optimizer": "RESET"}
    failing = scenario.start(
        schedule=SCHEDULE,
        ema_select=taken_back,
        overrides={"continue_last_backup": True},
        hook="output_place_fails",
    )
    [lost] = failing.results()
    assert ended_with(lost)
    # The two newest, though the first leg's had come as far.
    pinned = pinned_backups(lost.workspace)
    assert sorted(manifest.step for _, manifest in pinned) == [6, 8]
    assert len({manifest.leg.id for _, manifest in pinned}) == 1
    assert pinned[0][1].leg.id

    before = files(whole)
    made_good = scenario.resume(schedule=SCHEDULE, ema_select=taken_back).results()[0].require()
    assert "but the final output (ema and non-ema) is missing; it is written now" in made_good.output
    found = files(made_good)
    for weight_set, tensors in before.items():
        assert difference(found[weight_set], tensors) > 0.0


@pytest.mark.skipif(shutil.which("mount") is None, reason="a disk of its own is made with mount")
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.95])
def test_a_disk_that_fills_costs_no_step_and_leaves_nothing_half(
    bench: Bench, whole: Recording, busy: Recording, share: float
) -> None:
    scenario = Scenario(bench, f"full-{share}")
    disk = scenario.run / "workspace"
    disk.mkdir()
    size = int(share * size_of(busy.workspace))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("no small disk can be mounted here")
    try:
        [full] = scenario.start(schedule=BUSY, ema_select=MILESTONE).results()
        assert "No space left on device" in ended_with(full) + full.output
        for step in range(1, 9):
            for kind in ("live", "ema"):
                assert difference(full.step(step, kind), busy.step(step, kind)) == 0.0
        view = scan_workspace(disk)
        for backup in (*view.backups, *view.milestones):
            assert verify_backup(backup.path).problem == ""
        for save in view.saves:
            assert verify_model(save.path).problem == ""
        assert not [path for path in disk.rglob("*") if "staging" in path.name or path.name.endswith(".tmp")]
        assert set(files(full)) == {"EMA", "NON_EMA"}  # its place is on another disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


BUSY = steps(2, backup_every=2, save_every=2, backup_at_end=True)
MILESTONE = {"milestones": "4 steps"}


@pytest.fixture(scope="module")
def busy(bench: Bench) -> Recording:
    """A run that writes much."""
    return Scenario(bench, "busy").finish(schedule=BUSY, ema_select=MILESTONE)
