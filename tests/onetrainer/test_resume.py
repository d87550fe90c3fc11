"""Resuming on the real OneTrainer: as if uninterrupted, with the set that was chosen, and never twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .bench import configs
from .bench.recording import Recording, difference, same_bits
from .bench.scenario import Scenario, steps
from .bench.workers import Bench

FIRST = steps(2, save_every=3, backup_every=3, backup_at_end=True)
WHOLE = steps(4, save_every=3, backup_every=3, backup_at_end=True)


@pytest.fixture(scope="module")
def first(bench: Bench) -> tuple[Path, Recording]:
    """A run of two epochs with the plugin: its folder, and what was recorded."""
    scenario = Scenario(bench, "first")
    return scenario.run, scenario.finish(schedule=FIRST)


# -- as if uninterrupted -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(bench: Bench) -> dict[str, tuple[Recording, Recording]]:
    """Every family and some in bf16: two epochs and two more, and four at once."""
    cases = [(family, "FLOAT_32") for family in configs.REQUIRED]
    cases += [(configs.SD15_FINE_TUNE, "BFLOAT_16"), (configs.CASCADE_FINE_TUNE, "BFLOAT_16")]
    batches = {}
    for family, dtype in cases:
        parts, whole = (Scenario(bench, f"{name}-{family.name}", family=family) for name in ("parts", "whole"))
        options: dict[str, Any] = {"dtype": dtype}
        parts.start(schedule=FIRST, **options)
        batches[f"{family.name}-{dtype}"] = (
            parts.resume(schedule=WHOLE, **options),
            whole.start(schedule=WHOLE, **options),
        )
    return {
        name: (parts.results()[0].require(), whole.results()[0].require()) for name, (parts, whole) in batches.items()
    }


def test_two_epochs_and_two_more_are_four_epochs(halves: dict[str, tuple[Recording, Recording]]) -> None:
    for name, (parts, whole) in halves.items():
        assert parts.step_numbers() == list(range(9, 17)), name
        for kind in ("live", "ema"):
            for step in parts.step_numbers():
                assert difference(parts.step(step, kind), whole.step(step, kind)) == 0.0, (name, kind, step)
        assert same_bits(parts.optimizer(), whole.optimizer()), name
        assert "its non-EMA weights were loaded, its EMA goes on, and the optimizer state was kept" in parts.output


# -- a choice does not strike twice --------------------------------------------------------------------------

LEGS = {
    "ema": {"resume_weights": "EMA"},
    "named": {"resume_backup": "BACKUP-5"},
    "reset": {"resume_optimizer": "RESET"},
    "restart": {"resume_ema": "RESTART"},
}


@pytest.mark.parametrize("leg", LEGS)
def test_a_leg_that_crashes_goes_on_where_it_was(bench: Bench, first: tuple[Path, Recording], leg: str) -> None:
    folder, recording = first
    [backup] = recording.by_step("backup")[5]
    choice = {key: value.replace("BACKUP-5", backup.name) for key, value in LEGS[leg].items()}
    whole, crashed = (Scenario(bench, f"{leg}-{name}", begin=folder) for name in ("whole", "crashed"))
    whole_batch = whole.resume(schedule=WHOLE, ema_select=choice)
    broken = crashed.resume(schedule=WHOLE, ema_select=choice, actions={13: ("crash",)}).results()[0]
    assert broken.exception == {"type": "SimulatedCrash", "message": "crash"}
    again = crashed.resume(schedule=WHOLE, ema_select=choice).results()[0].require()
    expected = whole_batch.results()[0].require()
    assert again.result["steps"][0]["global_step"] == 12  # from the backup that the broken run made at step 11
    for kind in ("live", "ema"):
        assert difference(again.weights(kind), expected.weights(kind)) == 0.0
    assert same_bits(again.optimizer(), expected.optimizer())
    assert "are not applied twice; set ema_select.resume_leg to a new text" in again.output


def test_a_new_leg_applies_the_choice_again(bench: Bench, first: tuple[Path, Recording]) -> None:
    scenario = Scenario(bench, "legs", begin=first[0])
    choice = {"resume_weights": "EMA"}
    once = scenario.resume(schedule=steps(3, backup_at_end=True), ema_select=choice).results()[0].require()
    twice = scenario.resume(schedule=WHOLE, ema_select={**choice, "resume_leg": "2"}).results()[0].require()
    assert "its EMA weights were loaded" in twice.output
    assert same_bits(scenario.initial, list(once.weights("ema").values()))


# -- which set is loaded -------------------------------------------------------------------------------------


def test_resuming_from_the_ema_loads_the_average(bench: Bench, first: tuple[Path, Recording]) -> None:
    scenario = Scenario(bench, "from-ema", begin=first[0])
    done = scenario.resume(schedule=steps(3), ema_select={"resume_weights": "EMA"}).results()[0].require()
    assert same_bits(scenario.initial, list(first[1].weights("ema").values()))
    assert "its EMA weights were loaded (its non-EMA weights stay in that backup), its EMA goes on" in done.output


def test_ema_off_on_resume_parks_the_average_and_takes_it_up_again(bench: Bench, first: tuple[Path, Recording]) -> None:
    scenario = Scenario(bench, "off", begin=first[0])
    off = scenario.resume(schedule=steps(3, backup_at_end=True), ema="OFF").results()[0].require()
    average = first[1].weights("ema")
    assert same_bits(scenario.initial, list(first[1].weights("live").values()))
    [parked] = (off.workspace / "ema_select" / "parked").iterdir()
    assert same_bits(sorted_by_name(load_file(parked / "ema.safetensors")), sorted_by_name(average))
    assert "its EMA was parked because EMA is off in OneTrainer" in off.output
    [backup] = off.by_step("backup")[12]
    assert not (backup / "ema").exists()
    assert parked.name in (backup / "ema_select" / "manifest.json").read_text(encoding="utf-8")

    back = scenario.resume(schedule=WHOLE).results()[0].require()
    assert "the EMA parked at step 8 was taken up again (it has not seen the 4 steps since" in back.output
    # One step at decay 0.9 from the parked average.
    live, expected = back.step(13), {}
    for name, tensor in average.items():
        expected[name] = (tensor.double() * DECAY_AT_13 + live[name].double() * (1 - DECAY_AT_13)).float()
    assert difference(back.step(13, "ema"), expected) < 1e-6


DECAY_AT_13 = (1 + 12) / (10 + 12)


def sorted_by_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the bench's names: the plugin's differ in nothing but what the bench cannot know."""
    return dict(sorted(tensors.items()))


# -- with and without the plugin -----------------------------------------------------------------------------


def test_plain_onetrainer_resumes_from_a_backup_made_with_the_plugin(
    bench: Bench, first: tuple[Path, Recording]
) -> None:
    scenario = Scenario(bench, "to-plain", begin=first[0])
    done = scenario.resume(plugin=False, schedule=steps(3)).results()[0].require()
    assert same_bits(scenario.initial, list(first[1].weights("live").values()))
    live, average = done.step(9), first[1].weights("ema")
    weight = 1 - (1 + 8) / (10 + 8)
    expected = {name: average[name] + weight * (live[name] - average[name]) for name in live}
    assert difference(done.step(9, "ema"), expected) < 1e-6


def test_the_plugin_resumes_from_a_backup_of_plain_onetrainer(bench: Bench) -> None:
    scenario = Scenario(bench, "from-plain")
    plain = scenario.finish(plugin=False, schedule=FIRST)
    [backup] = plain.by_step("backup")[8]
    average = torch.load(backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    done = scenario.resume(schedule=steps(3), ema_select={"resume_weights": "EMA"}).results()[0].require()
    assert same_bits(scenario.initial, average)
    assert done.step_numbers()[0] == 9


def test_a_half_written_backup_is_passed_over_and_named(bench: Bench, first: tuple[Path, Recording]) -> None:
    scenario = Scenario(bench, "half", begin=first[0])
    backups = scenario.run / "workspace" / "backup"
    newest = max(backups.iterdir())
    half = shutil.copytree(newest, backups / newest.name.replace("backup-8-", "backup-9-"))
    (half / "meta.json").unlink()
    (backups / "my notes").mkdir()
    done = scenario.resume(schedule=steps(3)).results()[0].require()
    assert same_bits(scenario.initial, list(first[1].weights("live").values()))
    assert f"Skipped {half}" in done.output
    assert "stray folder" in done.output


# -- the trained set changes ---------------------------------------------------------------------------------


def test_matching_weights_are_taken_by_name_and_the_rest_is_named(bench: Bench) -> None:
    scenario = Scenario(bench, "changed", family=configs.SD15_FINE_TUNE)
    filtered = {"layer_filter": "down_blocks", "layer_filter_preset": "custom", "text_encoder": {"train": False}}
    scenario.finish(schedule=FIRST, overrides=filtered)
    before = scenario.run / "workspace" / "backup"
    average = torch.load(max(before.iterdir()) / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    wider = {**filtered, "layer_filter": "down_blocks,mid_block"}
    choice = {"resume_weights": "EMA", "resume_optimizer": "RESET"}
    done = scenario.resume(schedule=steps(3), overrides=wider, ema_select=choice).results()[0].require()
    initial = dict(zip(done.result["parameters"], scenario.initial, strict=True))
    down = [tensor for name, tensor in initial.items() if "down_blocks" in name]
    assert same_bits(down, average)
    assert "trained weights are not in the saved EMA; their average begins at the loaded weights: unet." in done.output
    assert "trained weights are not in the saved EMA and stay as the backup has them (non-EMA): unet." in done.output


def test_the_ema_is_loaded_into_weights_too_that_are_not_trained_any_more(bench: Bench) -> None:
    scenario = Scenario(bench, "narrower", family=configs.SD15_FINE_TUNE)
    first = scenario.finish(schedule=FIRST)
    names = [name for name in first.result["parameters"] if name.startswith("text_encoder.")]
    average = {name: first.weights("ema")[name] for name in names}
    assert difference(average, {name: first.weights("live")[name] for name in names}) > 0
    narrower = {"text_encoder": {"train": False}}
    choice = {"resume_weights": "EMA", "resume_optimizer": "RESET"}
    schedule = steps(3, backup_at_end=True)
    done = scenario.resume(schedule=schedule, overrides=narrower, ema_select=choice).results()[0].require()
    assert (
        f"{len(names)} weights that are not trained any more were loaded from the EMA too: text_encoder." in done.output
    )
    [file] = (max((scenario.run / "workspace" / "backup").iterdir()) / "text_encoder").glob("*.safetensors")
    written = load_file(file)
    compared = [name for name in names if name.removeprefix("text_encoder.") in written]
    assert compared
    found = {name: written[name.removeprefix("text_encoder.")] for name in compared}
    assert difference(found, {name: average[name] for name in compared}) == 0.0
