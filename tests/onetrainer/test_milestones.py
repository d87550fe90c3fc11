"""Milestones on the real OneTrainer: nothing twice, nothing missed, whatever accumulates, ends or resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from onetrainer_ema_select.checksums import verify_backup
from onetrainer_ema_select.workspace import scan_workspace

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import Recording, difference, read_metadata, same_bits
from .bench.scenario import Scenario, steps
from .bench.workers import Bench, Job

FAMILY = configs.SD15_LORA


def job(bench: Bench, name: str, *, run: Path | None = None, **options: Any) -> Job:
    """A run with both sets and milestones."""
    section: dict[str, Any] = options.pop("ema_select")
    actions = options.pop("actions", {})
    overrides = {**options.pop("overrides", {}), "ema_select": {"enabled": True, **section}}
    config = bench.config(FAMILY, run=run, ema="CPU", ema_decay=0.9, overrides=overrides, **options)
    return Job(name, config, actions=actions)


def saved(recording: Recording) -> dict[int, tuple[list[str], str]]:
    """By step: the sets that were saved, and the milestones they were saved for."""
    found: dict[int, tuple[list[str], str]] = {}
    for step, paths in recording.by_step("save").items():
        marks = [read_metadata(path) for path in paths]
        found[step] = (
            sorted(mark["ema_select.set"] for mark in marks),
            marks[0].get("ema_select.milestone", ""),
        )
        assert len({mark.get("ema_select.milestone", "") for mark in marks}) == 1
    return found


BOTH = ["EMA", "NON_EMA"]


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Recording]:
    jobs = [
        job(
            bench,
            "kinds",
            schedule=Schedule(epochs=3, steps=4),
            ema_select={"milestones": "2 epochs, 5 steps, every 6 steps, 75%, 100%"},
        ),
        job(
            bench,
            "accumulation",
            schedule=Schedule(epochs=3, steps=4, accumulation=3),
            ema_select={"milestones": "4 steps, 5 steps, 1 epoch, 12 steps"},
        ),
        job(
            bench,
            "at-milestones",
            schedule=Schedule(epochs=2, steps=4, save_every=3),
            ema_select={"milestones": "4 steps", "save_sets": "BOTH_AT_MILESTONES", "primary_set": "NON_EMA"},
        ),
        job(bench, "ema-only", schedule=Schedule(epochs=1, steps=4, save_every=3), ema_select={"save_sets": "EMA"}),
        job(
            bench,
            "non-ema-only",
            schedule=Schedule(epochs=1, steps=4, save_every=3),
            ema_select={"save_sets": "NON_EMA"},
        ),
    ]
    return dict(zip([j.name for j in jobs], [r.require() for r in bench.run(jobs, plugin=True)], strict=True))


def test_every_kind_is_saved_once_with_both_sets(runs: dict[str, Recording]) -> None:
    assert saved(runs["kinds"]) == {
        5: (BOTH, "5 steps"),
        6: (BOTH, "every 6 steps @ 6 steps"),
        8: (BOTH, "2 epochs"),
        9: (BOTH, "75%"),
        # OneTrainer never serves what is asked for after the last batch; it is written before the final output.
        12: (BOTH, "every 6 steps @ 12 steps, 100%"),
    }


def test_accumulation_delays_a_milestone_to_the_next_update(runs: dict[str, Recording]) -> None:
    assert saved(runs["accumulation"]) == {
        # Steps 4 and 5 lie inside an accumulation that ends with step 6; step 4 is also the first epoch's end.
        6: (BOTH, "4 steps, 1 epoch, 5 steps"),
        12: (BOTH, "12 steps"),
    }


def test_which_sets_are_saved_under_which_name(runs: dict[str, Recording]) -> None:
    at = runs["at-milestones"]
    assert saved(at) == {2: (["NON_EMA"], ""), 4: (BOTH, "4 steps"), 5: (["NON_EMA"], "")}
    [plain] = at.by_step("save")[2]
    assert "-non-ema" not in plain.name
    other, primary = sorted(at.by_step("save")[4])
    assert other.name == primary.name.replace(".safetensors", "-ema.safetensors")
    assert read_metadata(other)["ema_select.set"] == "EMA"
    assert sorted(path.name for path in at.output_folder.iterdir()) == ["model-ema.safetensors", "model.safetensors"]
    for name, weight_set in (("ema-only", "EMA"), ("non-ema-only", "NON_EMA")):
        assert saved(runs[name]) == {2: ([weight_set], "")}
        [final] = runs[name].output_folder.iterdir()
        assert read_metadata(final)["ema_select.set"] == weight_set


def test_a_crash_before_the_save_does_not_lose_the_milestone(bench: Bench) -> None:
    """The backup is made in the same pause as the milestone's save, and comes first."""
    run = bench.new_folder("owed")
    options: dict[str, Any] = {
        "run": run,
        "schedule": Schedule(epochs=2, steps=4, backup_every=4),
        "ema_select": {"milestones": "3 steps, 6 steps"},
    }
    first = job(bench, "crash", actions={4: ("crash",)}, **options)
    [broken] = bench.run([first], plugin=True)
    assert saved(broken) == {3: (BOTH, "3 steps")}
    [backup] = broken.by_step("backup")[3]
    manifest = json.loads((backup / "ema_select" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["pending_milestones"] == ["3 steps"]

    # Once as it was: the save came after the backup, so nothing is owed.
    resume = {**options, "overrides": {"continue_last_backup": True}}
    kept = bench.new_folder("owed-copy")
    shutil.copytree(run / "workspace", kept / "workspace")
    [again] = bench.run([job(bench, "again", **resume)], plugin=True)
    assert saved(again.require()) == {3: (BOTH, "3 steps"), 6: (BOTH, "6 steps")}
    assert len(again.by_step("save")[3]) == 2

    # And once as if the crash had come between the two.
    shutil.rmtree(kept / "workspace" / "save")
    (kept / "workspace" / "ema_select" / "saves.json").unlink()
    [owed] = bench.run([job(bench, "owed", **{**resume, "run": kept})], plugin=True)
    assert saved(owed.require()) == {3: (BOTH, "3 steps"), 6: (BOTH, "6 steps")}
    assert "Owed from before the interruption, written with the next save: 3 steps." in owed.output


def test_milestones_leave_backups_that_stay(bench: Bench) -> None:
    section = {
        "milestones": "3 steps, 5 steps, every 4 steps",
        "milestone_backups": "ALL",
        "milestone_keep": 1,
    }
    schedule = steps(2, backup_every=4)  # in the same pause as the milestone of step 3
    scenario = Scenario(bench, "pinned", family=configs.SD15_FINE_TUNE)
    keep = {"rolling_backup": True, "rolling_backup_count": 2}
    whole = scenario.finish(schedule=schedule, ema_select=section, overrides=keep)
    folder = scenario.run / "workspace" / "ema_select" / "milestones" / "backup"
    pinned = {path.name.split("-backup-")[1]: path for path in folder.iterdir()}
    # Of the repeating one's two backups the older was deleted; rolling deletion reached none of them.
    assert sorted(pinned) == ["3-0-3-3-steps", "5-1-1-5-steps", "8-2-0-every-4-steps-8-steps"]
    for path in pinned.values():
        verdict = verify_backup(path)
        assert (verdict.problem, verdict.checksums) == ("", True)
        assert (path / "onetrainer_config" / "args.json").is_file()
    [rolling] = whole.by_step("backup")[3]
    files = [path.relative_to(rolling) for path in rolling.rglob("*") if path.suffix in (".safetensors", ".pt")]
    assert len(files) > 3
    for file in files:
        assert (rolling / file).samefile(pinned["3-0-3-3-steps"] / file)
    assert "Pinning a backup of the milestone 5 steps" in whole.output

    view = scan_workspace(scenario.run / "workspace")
    assert [backup.milestone for backup in view.milestones] == ["every 4 steps @ 8 steps", "5 steps", "3 steps"]
    assert view.our_continue == max(path.name for path in (scenario.run / "workspace" / "backup").iterdir())

    for milestone, step in (("5 steps", 5), ("3 steps", 3)):
        resumed = Scenario(bench, f"from-{step}", family=configs.SD15_FINE_TUNE, begin=scenario.run)
        named = {**section, "resume_backup": milestone}
        again = resumed.resume(schedule=schedule, ema_select=named).results()[0].require()
        assert again.step_numbers() == list(range(step + 1, 9))
        for kind in ("live", "ema"):
            assert difference(again.step(8, kind), whole.step(8, kind)) == 0.0
        assert same_bits(again.optimizer(), whole.optimizer())
        assert "Resumed from backup" in again.output
        assert "(step 8" not in again.output
