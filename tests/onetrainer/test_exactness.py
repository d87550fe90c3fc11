"""Live weights and optimizer are those of a run with EMA off, whatever is saved, sampled, validated, backed up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .bench import configs
from .bench.configs import Family, Schedule
from .bench.recording import Recording
from .bench.workers import Bench, Job

DECAY = 0.9
BUSY = Schedule(epochs=2, steps=6, save_every=4, backup_every=6, sample_every=5, validate_every=4, backup_at_end=True)


@dataclass(frozen=True)
class Trio:
    """The same training with EMA off and no plugin, with EMA on and the plugin, and what both are compared in."""

    off: Recording
    on: Recording


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Trio]:
    """Every family twice; queued together so that the two processes work side by side."""
    plain, plugged = {}, {}
    for family in configs.FAMILIES:
        off = bench.config(family, schedule=BUSY)
        on = bench.config(
            family,
            schedule=BUSY,
            ema="CPU",
            ema_decay=DECAY,
            overrides={"ema_select": {"enabled": True, "milestones": "10 steps"}},
        )
        actions = {7: ("sample_custom",), 10: ("save",)}
        plain[family.name] = bench.start([Job(family.name, off, record=("live",), actions=actions)], plugin=False)
        actions = {7: ("sample_custom",)}
        plugged[family.name] = bench.start(
            [Job(family.name, on, record=("live", "ema"), actions=actions)], plugin=True
        )
    return {
        name: Trio(plain[name].results()[0].require(), plugged[name].results()[0].require()) for name in plain
    }


each_family = pytest.mark.parametrize("family", configs.FAMILIES, ids=lambda family: family.name)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest absolute difference; infinite where names differ."""
    if first.keys() != second.keys():
        return float("inf")
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@each_family
def test_live_weights_are_those_of_a_run_with_ema_off(runs: dict[str, Trio], family: Family) -> None:
    trio = runs[family.name]
    assert [step["global_step"] for step in trio.on.result["steps"]] == list(range(1, 13))
    for step in range(1, 13):
        assert largest_difference(trio.on.step(step), trio.off.step(step)) == 0.0, step
    assert largest_difference(trio.on.weights(when="ended"), trio.off.weights(when="ended")) == 0.0


@each_family
def test_the_optimizer_and_the_random_states_are_too(runs: dict[str, Trio], family: Family) -> None:
    trio = runs[family.name]
    states = [torch.load(recording.folder / "optimizer.pt", weights_only=True) for recording in (trio.on, trio.off)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert trio.on.result["random"]["trained"] == trio.off.result["random"]["trained"]
