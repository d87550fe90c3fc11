"""The EMA of real runs against a float64 EMA of the weights recorded at each step."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .bench import configs
from .bench.checkout import run_python
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


# -- what is drawn of both sets in OneTrainer's TensorBoard --------------------------------------------------

KEYS = ("decay_per_step", "half_life_steps/EMA", "start_share")
READ_BOARDS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

boards = {}
for workspace in sys.argv[1:]:
    [folder] = __import__("pathlib").Path(workspace, "tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    boards[workspace] = {
        tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }
print("BOARDS" + json.dumps(boards))
"""


@pytest.fixture(scope="module")
def boards(bench: Bench, runs: dict[str, Recording]) -> dict[str, dict[str, dict[int, float]]]:
    workspaces = {name: str(recording.workspace) for name, recording in runs.items()}
    command = ["-c", READ_BOARDS, *workspaces.values()]
    done = run_python(bench.host, command, cwd=bench.folder, package=None)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("BOARDS")[2])
    return {
        name: {tag: {int(step): value for step, value in points.items()} for tag, points in found[workspace].items()}
        for name, workspace in workspaces.items()
    }


def drawn_steps(board: dict[str, dict[int, float]], interval: int) -> list[int]:
    """The updates that have a point: all of so short a run, but for what a busy machine has no time for."""
    steps = [step + 1 for step in board["ema_select/distance"]]
    assert steps[0] == interval
    assert len(steps) >= 5
    assert set(steps) <= set(range(interval, STEPS + 1, interval))
    return steps


@pytest.mark.parametrize("case", CASES)
def test_the_distance_that_is_drawn_is_that_of_the_recorded_sets(
    runs: dict[str, Recording], boards: dict[str, dict[str, dict[int, float]]], case: str
) -> None:
    interval, board = CASES[case][3], boards[case]
    steps = drawn_steps(board, interval)
    expected: dict[str, dict[int, float]] = {}
    for step in (steps[0], *steps[4::7], steps[-1]):
        live, ema = runs[case].step(step), runs[case].step(step, "ema")
        parts = {name.partition(".")[0] for name in live}
        for part in ("", *sorted(parts)):
            names = [name for name in live if name.startswith(f"{part}." if part else "")]
            # What is frozen has no average of its own.
            apart = sum(float((ema[name].double() - live[name].double()).square().sum()) for name in names)
            whole = sum(float(live[name].double().square().sum()) for name in names)
            tag = f"ema_select/distance/{part}" if part else "ema_select/distance"
            expected.setdefault(tag, {})[step - 1] = math.sqrt(apart / whole)
    drawn = {tag: points for tag, points in board.items() if tag.startswith("ema_select/distance")}
    assert drawn.keys() == expected.keys()
    for tag, points in expected.items():
        assert {step: drawn[tag][step] for step in points} == pytest.approx(points, rel=1e-4), tag
    assert max(expected["ema_select/distance"].values()) > 0


@pytest.mark.parametrize("case", CASES)
def test_the_decay_and_the_length_that_are_drawn_are_those_of_the_updates(
    boards: dict[str, dict[str, dict[int, float]]], case: str
) -> None:
    _, _, decay, interval, _ = CASES[case]
    board, left = boards[case], 1.0
    for step in range(interval, STEPS + 1, interval):
        if case in HALF_LIVES:
            half_life = HALF_LIVES[case][1]
            used = 1 - (1 - 2 ** (-interval / half_life)) / (1 - 2 ** (-step / half_life))
            length = half_life * (1 - math.log2(1 + 2 ** (-step / half_life)))
        else:
            used = min(step / (9 + step), decay)
            length = math.log(2) / -math.log(used) * interval
        left *= used
        if step not in drawn_steps(board, interval):
            continue
        at = {tag: board[tag][step - 1] for tag in ("ema_decay", *(f"ema_select/{key}" for key in KEYS))}
        assert at["ema_decay"] == pytest.approx(used, rel=1e-6, abs=1e-12)
        assert at["ema_select/decay_per_step"] == pytest.approx(used ** (1 / interval), rel=1e-6, abs=1e-3)
        assert at["ema_select/half_life_steps/EMA"] == pytest.approx(length, rel=1e-6)
        assert at["ema_select/start_share"] == pytest.approx(left, rel=1e-5, abs=1e-30)
