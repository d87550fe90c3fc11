"""What post-hoc EMA costs: the power-function tracks in a step, and a mixture of snapshots on the disk."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from onetrainer_ema_select.power_tracks import PowerTracks
from onetrainer_ema_select.tracks import WeightTracks

from .conftest import Rounds, Show, ratio
from .test_ema_update import DECAY, ELEMENTS, LATE, Weights, floor

ROUNDS = 21
EVERY = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_three_tracks_beside_one(dtype: torch.dtype, benchmark: Any, show: Show) -> None:
    weights = Weights(dtype)
    parameters = list(weights.all)
    one = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    three = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    three.beside = PowerTracks(
        weights.named_parameters(),
        sigma_rels=(0.05, 0.10),
        device="cpu",
        time=float(LATE),
        time_of=lambda step: float(step + 1),
    )
    seldom = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    seldom.beside = PowerTracks(
        weights.named_parameters(),
        sigma_rels=(0.05, 0.10),
        device="cpu",
        interval=EVERY,
        time=float(LATE),
        time_of=lambda step: float(step + 1),
    )
    steps = dict.fromkeys(("one", "three", "seldom"), LATE)

    def stepper(name: str, tracks: WeightTracks) -> Any:
        def run() -> None:
            for _ in range(EVERY):
                steps[name] += 1
                tracks.step(parameters, steps[name])

        return run

    def floors() -> None:
        for _ in range(EVERY):
            add()

    add = floor(weights)
    contestants = {name: stepper(name, tracks) for name, tracks in (("one", one), ("three", three), ("seldom", seldom))}
    rounds = Rounds({"floor": floors, **contestants})
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=ROUNDS, iterations=1)

    assert three.beside.updates == EVERY * (ROUNDS + 1)
    assert seldom.beside.updates == ROUNDS + 1
    show(f"\n{EVERY} steps of 1 and 3 averages, {dtype}, {ELEMENTS:,} elements, {torch.get_num_threads()} threads:")
    for name, seconds in rounds.seconds.items():
        to_one = ratio(seconds, rounds.seconds["one"])
        benchmark.extra_info[name] = {"median_ms": statistics.median(seconds) * 1e3, "to_one": to_one}
        show(f"  {name:7} {statistics.median(seconds) * 1e3:8.1f} ms (best {min(seconds) * 1e3:.1f}) {to_one:6.2f} x one")
