"""Both sets judged on the real OneTrainer: against its own validation of the saved sets, and of runs without us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.manifest import Manifest, read_manifest
from onetrainer_ema_select.validation import ValidationRecord, read_history

from .bench import configs
from .bench.configs import Config, Schedule
from .bench.events import Curves, read_curves
from .bench.recording import Recording, difference, same_bits
from .bench.workers import BENCH, Bench, Job

# Validations after the steps 1 and 8, of 8; the final output and the last backup are of step 8.
SCHEDULE = Schedule(epochs=2, steps=4, validate_every=7, backup_every=6, backup_at_end=True)
TOTAL = "total_average"
LABELS = [TOTAL, "train", "validation", "validation(1)"]
# What a model draws from torch's global random state, and a validation between two halves of an optimizer step.
DROPOUT = {"dropout_probability": 0.3, "gradient_accumulation_steps": 2}
HALF: dict[str, Any] = {"dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16"}
TIMED = (BENCH / "hooks.py", "timed_validation")


def make(bench: Bench, family: configs.Family, *, section: Config | None = None, **options: Any) -> Config:
    """A run that validates with three concepts: two have the same name, one has none."""
    overrides = {**options.pop("overrides", {}), **({"ema_select": {"enabled": True, **section}} if section else {})}
    options = {"schedule": SCHEDULE, "output_format": "DIFFUSERS", **options}
    if family is configs.SD15_LORA:
        options["output_format"] = "KOHYA_LORA"
    config = bench.config(family, overrides=overrides, **options)
    path = Path(config["concept_file_name"])
    train, validation = json.loads(path.read_text(encoding="utf-8"))
    pictures = {"path": train["path"], "type": "VALIDATION", "image": train["image"]}
    others = [{**pictures, "name": "", "seed": 3}, {**pictures, "name": "validation", "seed": 4}]
    configs.write_json(path, [train, validation, *others])
    return config


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Recording]:
    """Everything at once; the checks of saved sets begin when these are there."""
    average = {"ema": "CPU", "ema_decay": 0.8, "section": {"save_sets": "BOTH"}}
    cases: dict[str, tuple[configs.Family, dict[str, Any]]] = {
        "fine-tune": (configs.SD15_FINE_TUNE, {"learning_rate": 5e-2}),
        "half": (configs.SD15_FINE_TUNE, HALF),
        "lora": (configs.SD15_LORA, {"overrides": DROPOUT}),
    }
    batches = {}
    for name, (family, options) in cases.items():
        on = Job(name, make(bench, family, **options, **average), record=("live",), hook=TIMED)
        batches[name] = bench.start([on], plugin=True)
        if name != "half":
            off = Job(f"{name}-off", make(bench, family, **options), record=("live",), hook=TIMED)
            batches[off.name] = bench.start([off], plugin=False)
    found = {name: batch.results()[0].require() for name, batch in batches.items()}
    checks = []
    for name in ("fine-tune", "half"):
        family, options = cases[name]
        model = found[name].config["output_model_destination"]
        for end in ("", "-non-ema"):
            keys = {"base_model_name": f"{model}{end}", "learning_rate": 0.0}
            once = Schedule(epochs=1, steps=1, validate_every=1)
            config = make(bench, family, **{**options, "schedule": once}, overrides=keys)
            checks.append(Job(f"{name}-check{end}", config))
    found |= {
        job.name: recording.require() for job, recording in zip(checks, bench.run(checks, plugin=False), strict=True)
    }
    return found


def curves(recording: Recording, run: str = "") -> Curves:
    """The validation curves in a run's TensorBoard, by their labels."""
    [folder] = (recording.workspace / "tensorboard").iterdir()
    start = "loss/validation_step/"
    return {tag.removeprefix(start): all_ for tag, all_ in read_curves(folder / run).items() if tag.startswith(start)}


def manifest(recording: Recording, step: int) -> Manifest:
    [backup] = recording.by_step("backup")[step]
    found = read_manifest(backup)
    assert found is not None
    return found


def rounded(loss: float | None) -> float:
    """As TensorBoard keeps it, in 32 bits."""
    assert loss is not None
    return float(np.float32(loss))


@pytest.mark.parametrize("name", ["fine-tune", "lora"])
def test_training_is_that_of_a_run_without_the_plugin_and_with_ema_off(runs: dict[str, Recording], name: str) -> None:
    on, off = runs[name], runs[f"{name}-off"]
    assert on.step_numbers() == off.step_numbers() == list(range(1, 9))
    for step in on.step_numbers():
        assert difference(on.step(step), off.step(step)) == 0.0
    assert same_bits(on.optimizer(), off.optimizer())
    assert [step["random"] for step in on.result["steps"]] == [step["random"] for step in off.result["steps"]]
    assert "PROBLEM" not in on.output


@pytest.mark.parametrize("name", ["fine-tune", "lora"])
def test_onetrainers_own_curves_are_untouched_and_the_emas_lie_beside_them(
    runs: dict[str, Recording], name: str
) -> None:
    own, ema = curves(runs[name]), curves(runs[name], "EMA")
    assert own == curves(runs[f"{name}-off"])
    assert list(own) == list(ema)
    assert sorted(own) == LABELS
    for label in LABELS:
        assert [step for step, _ in own[label]] == [step for step, _ in ema[label]] == [0, 7]
        assert own[label][1] != ema[label][1]


@pytest.mark.parametrize("name", ["fine-tune", "half"])
def test_the_losses_are_those_that_onetrainer_computes_of_each_saved_set(runs: dict[str, Recording], name: str) -> None:
    """Plain OneTrainer, begun from the final output's model of a set, with a learning rate of 0."""
    for run, end in (("EMA", ""), ("", "-non-ema")):
        last = {label: values[-1][1] for label, values in curves(runs[name], run).items()}
        assert last == {label: values[0][1] for label, values in curves(runs[f"{name}-check{end}"]).items()}, run


@pytest.mark.parametrize("name", ["fine-tune", "half", "lora"])
def test_backups_and_the_history_keep_what_was_drawn(runs: dict[str, Recording], name: str) -> None:
    recording = runs[name]
    early, last = sorted(recording.by_step("backup"))
    assert last == 8
    assert [manifest(recording, step).validation.step for step in (early, last)] == [1, 8]
    record = manifest(recording, 8).validation
    assert record is not None
    history = read_history(recording.workspace / "ema_select" / "validation.jsonl")
    assert [entry.step for entry in history] == [1, 8]
    assert history[-1].model_dump(include=set(ValidationRecord.model_fields)) == record.model_dump(
        include=set(ValidationRecord.model_fields)
    )
    own, ema = curves(recording), curves(recording, "EMA")
    # OneTrainer goes through them in another order each time, and numbers those of the same name by it.
    assert sorted(one.label for one in record.concepts) == LABELS[1:]
    assert sorted(one.batches for one in record.concepts) == [2, 4, 4]
    for one in record.concepts:
        assert (rounded(one.ema), rounded(one.non_ema)) == (ema[one.label][1][1], own[one.label][1][1])
    assert (rounded(record.ema), rounded(record.non_ema)) == (ema[TOTAL][1][1], own[TOTAL][1][1])
    assert f"Validation after 8 steps: {record.text}." in recording.output


def test_the_cost_of_judging_both(runs: dict[str, Recording]) -> None:
    """Printed, not asserted: times of so small a model say little."""
    for name in ("fine-tune", "half", "lora"):
        seconds = json.loads((runs[name].workspace / "validation.json").read_text(encoding="utf-8"))
        assert len(seconds["own"]) == len(seconds["all"]) == 8
        for step in (0, 7):
            own, both = seconds["own"][step], seconds["all"][step]
            print(f"{name}, validation after step {step + 1}: {own:.3f} s, for both sets {both:.3f} s")


def test_best_loads_the_better_set_and_goes_on_after_a_crash(bench: Bench, runs: dict[str, Recording]) -> None:
    before = runs["fine-tune"]
    record = manifest(before, 8).validation
    assert record is not None
    assert record.better is WeightSet.EMA  # at so high a learning rate; else this would hold without BEST too
    options: dict[str, Any] = {"ema": "CPU", "ema_decay": 0.8, "section": {"resume_weights": "BEST"}}
    keys = {"continue_last_backup": True, "learning_rate": 0.0, "workspace_dir": str(before.workspace)}
    longer = Schedule(epochs=3, steps=4, backup_every=6, backup_at_end=True)
    config = make(bench, configs.SD15_FINE_TUNE, **{**options, "schedule": longer}, overrides=keys)
    crashed, again = bench.run(
        [
            Job("best", config, record=("live",), actions={12: ("crash",)}),
            Job("best-again", config, record=("live",)),
        ],
        plugin=True,
    )
    assert difference(crashed.step(9), before.weights("ema")) == 0.0
    assert (
        f"its EMA weights were loaded (its non-EMA weights stay in that backup), its EMA goes on, and the optimizer "
        f"state was kept. BEST is EMA by validation loss: {record.losses_text} ({record.sure_text}), measured at step "
        "8." in crashed.output
    )
    # from the backup that the broken run has made after step 11
    assert again.require().result["steps"][0]["global_step"] == 12
    assert "are not applied twice; set ema_select.resume_leg to a new text to apply them again. BEST was EMA then." in (
        again.output
    )
    assert manifest(again, 12).leg.best == "EMA"


def test_best_without_a_validation_is_refused_before_a_model_is_loaded(
    bench: Bench, runs: dict[str, Recording]
) -> None:
    source = runs["fine-tune-off"]
    workspace = bench.new_folder("best-of-plain") / "workspace"
    shutil.copytree(source.workspace / "backup", workspace / "backup")
    keys = {"continue_last_backup": True, "workspace_dir": str(workspace)}
    config = make(bench, configs.SD15_FINE_TUNE, ema="CPU", section={"resume_weights": "BEST"}, overrides=keys)
    [recording] = bench.run([Job("refused", config)], plugin=True)
    assert recording.exception is not None
    assert recording.exception["message"].startswith("ema_select.resume_weights is BEST, but backup ")
    assert "holds one set only, non-EMA, so there is nothing to choose from." in recording.exception["message"]
    assert recording.result["statuses"][-1] == recording.exception["message"]
    assert "loading the model" not in recording.result["statuses"]
