"""What a run says at its start of files with fewer bits than its average."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.announce import judging_sentence, rounding_sentence
from onetrainer_ema_select.settings import parse_settings

LOSS = "which can lose much of what a slow EMA has moved (inspect says how much, of a backup)"


def session(
    *,
    live: torch.dtype = torch.bfloat16,
    average: torch.dtype | None = torch.float32,
    output: torch.dtype | None = None,
    sets: tuple[WeightSet, ...] = (WeightSet.EMA, WeightSet.NON_EMA),
    rounding: str = "NEAREST",
) -> Any:
    """As much of a run as the sentence looks at: one weight."""
    weight = torch.zeros(2, dtype=live)
    averages = {} if average is None else {"unet.a": torch.zeros(2, dtype=average)}
    return SimpleNamespace(
        config=SimpleNamespace(output_dtype=SimpleNamespace(torch_dtype=lambda: output)),
        settings=parse_settings({"save_rounding": rounding}),
        model=SimpleNamespace(parameters=SimpleNamespace(parameters=lambda: [weight])),
        names=("unet.a",),
        ema=None if average is None else object(),
        average=averages.get,
        sets_written=lambda milestone: sets,
    )


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({}, "bfloat16"),
        ({"output": torch.float16}, "float16"),
        ({"live": torch.float32, "output": torch.bfloat16}, "bfloat16"),
    ],
)
def test_where_bits_are_lost(how: dict[str, Any], name: str) -> None:
    said = rounding_sentence(session(**how))
    assert said.startswith(f"Saves are rounded to {name}, {LOSS}. Set output_dtype to FLOAT_32 to keep it in full, or ")
    said = rounding_sentence(session(**how, rounding="STOCHASTIC"))
    assert said.startswith(f"Saves are rounded to {name} at random, right on average")


@pytest.mark.parametrize(
    "how",
    [
        {"output": torch.float32},
        {"live": torch.float32},
        {"average": None},
        {"average": torch.bfloat16},
        {"sets": (WeightSet.NON_EMA,)},
    ],
)
def test_where_none_are(how: dict[str, Any]) -> None:
    assert rounding_sentence(session(**how)) == ""


@pytest.mark.parametrize(
    ("taken", "end"),
    [(0, "batches."), (5_140_000_000, "batches, while 5.1 GB of live weights are kept aside in the CPU's memory.")],
)
def test_what_judging_both_sets_takes(taken: int, end: str) -> None:
    ema = SimpleNamespace(tracks=SimpleNamespace(stash_nbytes=taken))
    text = judging_sentence(SimpleNamespace(ema=ema))  # type: ignore[arg-type]
    assert text == f"OneTrainer's validation judges both sets: the EMA's loss is computed on the same {end}"
