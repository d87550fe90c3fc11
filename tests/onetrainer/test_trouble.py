"""What goes wrong in a run is seen, leaves no half file, and changes no live weight."""

from __future__ import annotations

import pytest
import torch

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import difference, read_metadata, same_bits
from .bench.workers import BENCH, Bench, Job

HOOKS = BENCH / "hooks.py"
PLUGIN = {"ema_select": {"enabled": True}}


def test_a_save_that_fails_is_reported_at_once_and_at_the_end(bench: Bench) -> None:
    schedule = Schedule(epochs=2, steps=4, save_every=4)
    reference = Job("reference", bench.config(configs.SD15_LORA, schedule=schedule), record=("live",))
    failing = Job(
        "failing",
        bench.config(configs.SD15_LORA, schedule=schedule, ema="CPU", overrides=PLUGIN),
        record=("live",),
        hook=(HOOKS, "second_set_fails"),
    )
    plain = bench.start([reference], plugin=False)
    [recording] = bench.run([failing], plugin=True)
    assert recording.exception is not None
    assert recording.exception["type"] == "EmaSelectError"
    assert "not everything that was asked for is on the disk: the final ema output" in recording.exception["message"]
    assert "; the final non-ema output ([Errno 28] No space left on device)" in recording.exception["message"]
    assert recording.result["phase"] == "end"
    [expected] = plain.results()
    for step in range(1, 9):
        assert difference(recording.step(step), expected.step(step)) == 0.0
    # The failed set of step 3 is absent, its partner is there; step 7 has both; nothing is left of the final output.
    assert {step: len(paths) for step, paths in recording.by_step("save").items()} == {3: 1, 7: 2}
    assert not recording.output_folder.exists() or not list(recording.output_folder.iterdir())
    output = recording.output
    assert output.count("PROBLEM: The non-ema set could not be saved to") == 3  # at the end in two places
    assert "[ema_select] 5 problem(s) in this run:" in output
    assert "No space left on device" in output


def test_an_interrupt_while_ema_samples_are_made(bench: Bench) -> None:
    """OneTrainer puts the live weights back after sampling without a ``finally``, and then writes a backup."""
    schedule = Schedule(epochs=2, steps=4, sample_every=4, backup_at_end=True)
    config = bench.config(configs.SD15_FINE_TUNE, schedule=schedule, ema="CPU", ema_decay=0.9, overrides=PLUGIN)
    [recording] = bench.run(
        [Job("interrupt", config, record=("live", "ema"), hook=(HOOKS, "interrupt_third_sample"))], plugin=True
    )
    recording.require()
    assert recording.result["canceled"]
    assert recording.step_numbers()[-1] == 4
    [backup] = recording.by_step("backup")[4]
    unet = {
        name.removeprefix("unet."): tensor for name, tensor in recording.step(4).items() if name.startswith("unet.")
    }
    from safetensors.torch import load_file

    [file] = (backup / "unet").glob("*.safetensors")
    assert difference(load_file(file), unet) == 0.0
    average = torch.load(backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    assert same_bits(average, list(recording.step(4, "ema").values()))
    assert sorted(path.suffix for path in recording.output_folder.iterdir()).count(".safetensors") == 2


@pytest.mark.parametrize("ema", ["CPU", "OFF"])
def test_exit_code_and_start_sentence_on_the_command_line(bench: Bench, ema: str) -> None:
    config = bench.config(configs.SD15_LORA, schedule=Schedule(epochs=1, steps=2), ema=ema)
    done = bench.train(config, "--config-value", "ema_select.enabled=true", plugin=True)
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    if ema == "OFF":
        assert "EMA is off in OneTrainer (ema: OFF), so there is one set, non-EMA" in output
    else:
        assert (
            "[ema_select] Training starts from the model as configured; the EMA begins at the model's weights."
            in output
        )


def test_stopped_from_the_window_both_sets_are_those_of_that_step(bench: Bench) -> None:
    config = bench.config(
        configs.SD15_LORA, schedule=Schedule(epochs=2, steps=4, save_every=4), ema="CPU", overrides=PLUGIN
    )
    [recording] = bench.run(
        [Job("stop", config, record=("live", "ema"), actions={4: ("save",), 5: ("stop",)})], plugin=True
    )
    recording.require()
    assert recording.step_numbers() == [1, 2, 3, 4, 5]
    found = {read_metadata(path)["ema_select.set"]: path for path in recording.output_folder.iterdir()}
    assert set(found) == {"EMA", "NON_EMA"}
    assert {read_metadata(path)["ema_select.step"] for path in found.values()} == {"5"}
    assert "PROBLEM" not in recording.output
