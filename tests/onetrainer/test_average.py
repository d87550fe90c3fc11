"""The EMA of real runs against a float64 EMA of the weights recorded at each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import Recording, difference, read_model
from .bench.workers import BENCH, Bench, Job

STEPS = 40
# name: family, options, decay, interval, largest error relative to the movement
CASES: dict[str, tuple[configs.Family, dict[str, Any], float, int, float]] = {
    "float32": (configs.SD15_LORA, {}, 0.99, 1, 1e-5),
    "interval": (configs.SD15_LORA, {}, 0.9, 5, 1e-5),
    "half-life": (configs.SD15_LORA, {}, 0.9, 5, 1e-5),
    "bf16": (configs.SD15_FINE_TUNE, {"dtype": "BFLOAT_16", "learning_rate": 1e-5}, 0.99, 1, 1e-3),
    "bf16-cascade": (configs.CASCADE_FINE_TUNE, {"dtype": "BFLOAT_16", "learning_rate": 1e-5}, 0.99, 1, 1e-3),
}


# What ema_half_life is of a case, and the same in steps: an epoch has them all.
HALF_LIVES = {"half-life": ("0.3 epochs", 0.3 * STEPS)}


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Recording]:
    batches = {}
    for name, (family, options, decay, interval, _) in CASES.items():
        config = bench.config(
            family,
            schedule=Schedule(epochs=1, steps=STEPS),
            ema="CPU",
            ema_decay=decay,
            ema_interval=interval,
            overrides={"ema_select": {"enabled": True, "ema_half_life": HALF_LIVES.get(name, ("",))[0]}},
            **options,
        )
        job = Job(name, config, record=("live", "ema"), hook=(BENCH / "hooks.py", "every_format"))
        batches[name] = bench.start([job], plugin=True)
    return {name: batch.results()[0].require() for name, batch in batches.items()}


def float64_average(recording: Recording, *, decay: float, interval: int) -> dict[str, Tensor]:
    """OneTrainer's recursion in float64, spelled out here once more."""
    initial = load_file(recording.workspace / "initial.safetensors").values()
    average = {name: tensor.double() for name, tensor in zip(recording.result["parameters"], initial, strict=True)}
    for step in range(STEPS):
        if (step + 1) % interval:
            continue
        current = min((1 + step) / (10 + step), decay)
        for name, live in recording.step(step + 1).items():
            average[name] = current * average[name] + (1 - current) * live.double()
    return average


def half_life_average(recording: Recording, *, half_life: float, interval: int) -> dict[str, Tensor]:
    """The mean of the weights after every update, each counting 2 ** -(its age in half-lives)."""
    shares = {step: 2.0 ** ((step - STEPS) / half_life) for step in range(interval, STEPS + 1, interval)}
    sums: dict[str, Tensor] = {}
    for step, share in shares.items():
        for name, live in recording.step(step).items():
            sums[name] = sums.get(name, torch.zeros(())) + share * live.double()
    return {name: tensor / sum(shares.values()) for name, tensor in sums.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_track_is_the_float64_average(runs: dict[str, Recording], case: str) -> None:
    _, _, decay, interval, bound = CASES[case]
    recording = runs[case]
    initial = load_file(recording.workspace / "initial.safetensors").values()
    if case in HALF_LIVES:
        expected = half_life_average(recording, half_life=HALF_LIVES[case][1], interval=interval)
        assert "The EMA's half-life is 12 steps (12 images, 0.3 epochs); an epoch has 40 steps" in recording.output
    else:
        expected = float64_average(recording, decay=decay, interval=interval)
    error = movement = scale = 0.0
    for (name, tensor), start in zip(recording.weights("ema").items(), initial, strict=True):
        error += float((tensor.double() - expected[name]).square().sum())
        movement += float((expected[name] - start.double()).square().sum())
        scale += float(expected[name].square().sum())
    assert movement > 0
    relative = (error / movement) ** 0.5
    print(f"{case}: error relative to the movement {relative:.2e}, to the weights {(error / scale) ** 0.5:.2e}")
    assert relative <= bound
    assert (error / scale) ** 0.5 <= 1e-6


@pytest.mark.parametrize("case", ["bf16", "bf16-cascade"])
def test_the_final_float32_file_of_a_bf16_model_holds_the_track_in_full(runs: dict[str, Recording], case: str) -> None:
    recording = runs[case]
    family = CASES[case][0]
    reference = recording.workspace / "formats" / f"{family.output_format}-FLOAT_32" / "reference" / "ema"
    final = recording.output_folder / "model.safetensors"
    written, expected = read_model(final), read_model(reference / "model.safetensors")
    assert difference(written, expected) == 0.0
    # In full: rounding the file to the weights' dtype would change it.
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in written.values())
