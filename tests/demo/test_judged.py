"""Both sets judged in runs of the stand-in, against what the host's own validation says of models that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.integrity import read_progress
from onetrainer_ema_select.manifest import Manifest, read_manifest
from onetrainer_ema_select.validation import ValidationRecord, read_history
from onetrainer_ema_select.workspace import folders_in

BASE: dict[str, Any] = {
    "training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS", "concepts": [], "samples": [],
    "epochs": 2, "backup_after": 9, "backup_after_unit": "STEP", "validation": True, "validate_after": 5,
    "validate_after_unit": "STEP",
}  # fmt: skip
EMA: dict[str, Any] = {"ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 1}
ON: dict[str, Any] = {"ema_select": {"enabled": True}}
BEST: dict[str, Any] = {"ema_select": {"enabled": True, "resume_weights": "BEST"}, "continue_last_backup": True}
HALF = {part: {"weight_dtype": "BFLOAT_16"} for part in ("unet", "text_encoder")} | {"output_dtype": "BFLOAT_16"}
# Validations after the steps 1, 6, 11 and 16, of 16.
STEPS = [1, 6, 11, 16]
TOTAL, LABELS = "total_average", ("stripes", "others")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def runs(run_jobs, place):
    jobs = []

    def add(name: str, *parts: dict[str, Any], plugin: bool = True, folder: str = "", **keys: Any) -> None:
        home = place / (folder or name)
        config = {"workspace_dir": str(home / "workspace"), "output_model_destination": str(home / "model.safetensors")}
        for part in (BASE, *parts, keys):
            config |= part
        jobs.append({"name": name, "config": config, "plugin": plugin})

    add("host", EMA, plugin=False)
    add("quiet", plugin=False)
    add("one-set", ON)
    add("ours", EMA, ON)
    add("half", EMA, ON, HALF)
    # plain runs that begin with a set that was saved, and do not move away from it
    for of, parts in (("ours", ()), ("half", (HALF,))):
        for end in ("", "-non-ema"):
            base = {"base_model_name": str(place / of / f"model{end}.safetensors"), "learning_rate": 0.0}
            add(f"check-{of}{end}", *parts, base, plugin=False, epochs=1, validate_after=100)
    # steps so large that the mean of them is better, and then none at all
    add("rough", EMA, ON, folder="rough", learning_rate=0.05)
    add("best", EMA, BEST, folder="rough", epochs=3, learning_rate=0.0)
    add("best-again", EMA, BEST, folder="rough", epochs=4, learning_rate=0.05)
    return run_jobs(jobs)


def curve(folder: Path, run: str = "") -> dict[str, list[tuple[int, float]]]:
    """The validation losses that a training has drawn, by tag, as step and value; of the newest start there."""
    starts = sorted((folder / "workspace" / "tensorboard").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (starts[0] / run / "scalars.jsonl").read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        group, _, label = value["tag"].rpartition("/")
        if group == "loss/validation_step":
            found.setdefault(label, []).append((value["step"], value["value"]))
    return found


def manifests(folder: Path) -> dict[int, Manifest]:
    found = {}
    for backup in folders_in(folder / "workspace" / "backup"):
        manifest = read_manifest(backup)
        assert manifest is not None
        found[read_progress(backup)["global_step"]] = manifest
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_host_sees_its_own_validation_only(runs, place):
    assert same(runs["quiet"]["live"], runs["ours"]["live"])
    assert not runs["ours"]["drawn"]
    assert curve(place / "ours") == curve(place / "quiet") == curve(place / "one-set")
    assert list(curve(place / "ours")) == [*LABELS, TOTAL]


def test_the_ema_has_the_same_tags_at_the_same_steps(runs, place):
    del runs
    own, ema = curve(place / "ours"), curve(place / "ours", "EMA")
    assert list(ema) == list(own)
    for tag, values in own.items():
        assert [step for step, _ in values] == [step for step, _ in ema[tag]] == [step - 1 for step in STEPS]
        assert values != ema[tag]


@pytest.mark.parametrize("of", ["ours", "half"])
def test_the_losses_are_those_that_the_host_computes_of_the_saved_sets(runs, place, of):
    """Both final models were saved after step 16, the last that was validated."""
    del runs
    for run, end in (("EMA", ""), ("", "-non-ema")):
        last = {tag: values[-1][1] for tag, values in curve(place / of, run).items()}
        assert last == {tag: values[0][1] for tag, values in curve(place / f"check-{of}{end}").items()}
    record = manifests(place / of)[16].validation
    assert (record.ema, record.non_ema) == tuple(
        curve(place / f"check-{of}{end}")[TOTAL][0][1] for end in ("", "-non-ema")
    )


def test_backups_know_the_last_validation(runs, place):
    del runs
    found = manifests(place / "ours")
    assert {step: found[step].validation.step for step in (8, 16)} == {8: 6, 16: 16}
    record = found[16].validation
    assert (record.batches, record.epoch) == (12, 1)
    assert [(one.label, one.batches) for one in record.concepts] == [("stripes", 8), ("others", 4)]
    assert record.difference == pytest.approx(record.ema - record.non_ema)
    assert record.standard_error > 0


def test_the_history_has_every_validation(runs, place):
    del runs
    history = read_history(place / "ours" / "workspace" / "ema_select" / "validation.jsonl")
    assert [entry.step for entry in history] == STEPS
    fields = set(ValidationRecord.model_fields)
    assert history[-1].model_dump(include=fields) == manifests(place / "ours")[16].validation.model_dump(include=fields)
    assert {entry.run for entry in history} == {manifests(place / "ours")[16].run}
    assert {entry.leg for entry in history} == {""}


def test_without_an_ema_there_is_nothing_to_judge(runs, place):
    del runs
    assert manifests(place / "one-set")[16].validation is None
    assert not (place / "one-set" / "workspace" / "ema_select" / "validation.jsonl").exists()


def test_best_begins_a_leg_from_the_better_set_and_a_crash_goes_on(runs, place):
    found = manifests(place / "rough")
    assert found[16].validation.better is WeightSet.EMA
    assert all(torch.equal(runs["best"]["live"][name], tensor) for name, tensor in runs["rough"]["ema"].items())
    leg = found[24].leg
    assert (leg.best, leg.choices["resume_weights"], leg.began_at_step) == ("EMA", "BEST", 16)
    # started again: goes on in the same leg, from its own weights
    assert found[32].leg == leg
    assert not same(runs["best-again"]["live"], runs["best"]["live"])
    assert [found[step].validation.step for step in (24, 32)] == [21, 31]
    history = read_history(place / "rough" / "workspace" / "ema_select" / "validation.jsonl")
    assert [(entry.leg, entry.step) for entry in history] == [
        *(("", step) for step in STEPS),
        *((leg.id, step) for step in (21, 26, 31)),
    ]


def test_what_was_measured_before_a_leg_says_nothing_of_its_sets(runs, place):
    """The leg from step 16 on makes a backup before it validates for the first time."""
    del runs
    found = manifests(place / "rough")
    assert (found[17].leg, found[17].validation) == (found[24].leg, None)
