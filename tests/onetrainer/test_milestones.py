"""Milestones on the real OneTrainer: nothing twice, nothing missed, whatever accumulates, ends or resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import Recording, read_metadata
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
