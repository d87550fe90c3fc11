"""One look at how far the two sets are apart, beside one EMA update of the same weights."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from onetrainer_ema_select.drift import distances, sample
from onetrainer_ema_select.tracks import WeightTracks

from .conftest import Rounds, Show, ratio
from .test_ema_update import ELEMENTS, LATE, TENSORS, Weights

DECAY = 0.999
ROUNDS = 11
SAMPLED = 1 << 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_look(dtype: torch.dtype, benchmark: Any, show: Show) -> None:
    weights = Weights(dtype)
    parameters = list(weights.all)
    tracks = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    with torch.no_grad():
        for parameter in parameters:
            parameter *= 1.01
    averages = dict(tracks.averages())
    pairs = [(name, averages[name], parameter) for name, parameter in weights.named_parameters()]

    def look() -> None:
        distances(pairs)
        sample(pairs, size=SAMPLED, file_dtype=None)

    rounds = Rounds({"update": lambda: tracks.step(parameters, LATE), "look": look})
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=ROUNDS, iterations=1)

    show(f"\nA look, {dtype}, {TENSORS} tensors, {ELEMENTS:,} elements, {torch.get_num_threads()} threads:")
    for name, seconds in rounds.seconds.items():
        median, best = statistics.median(seconds) * 1e3, min(seconds) * 1e3
        to_update = ratio(seconds, rounds.seconds["update"])
        benchmark.extra_info[name] = {"median_ms": median, "to_update": to_update}
        show(f"  {name:8} {median:8.1f} ms (best {best:7.1f})  {to_update:6.2f} x update")
