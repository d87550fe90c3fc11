"""One EMA update of a Stable-Diffusion-sized set of tensors, beside other implementations.

The floor is an in-place add of the same tensors: it reads and writes exactly the memory that an update has to.
"""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onetrainer_ema_select.tracks import WeightTracks

from .conftest import Rounds, Show, ratio

ELEMENTS = 118_000_000
TENSORS = 248
DECAY = 0.999
LATE = 100_000  # an optimizer step after every implementation's warm-up
ROUNDS = 21

Contestant = Callable[[], object]


def sd_like_shapes(*, seed: int = 0) -> list[tuple[int, ...]]:
    """Shapes in the proportions of a UNet: half of them vectors, few convolutions with most of the elements."""
    chosen = random.Random(seed)
    widths = (320, 640, 1280)
    shapes: list[tuple[int, ...]] = [(chosen.choice(widths),) for _ in range(120)]
    shapes += [(width, width) for width in (chosen.choice(widths) for _ in range(100))]
    shapes += [(width, width // 2, 3, 3) for width in (chosen.choice(widths[:2]) for _ in range(TENSORS - 221))]
    rest = ELEMENTS - sum(torch.Size(shape).numel() for shape in shapes)
    shapes.append((rest,))
    assert 0 < rest < ELEMENTS // 4 and len(shapes) == TENSORS
    chosen.shuffle(shapes)
    return shapes


class Weights(nn.Module):
    """The parameters, in the container that some contestants want."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.all = nn.ParameterList(
            torch.randn(shape, generator=generator).mul_(0.02).to(dtype) for shape in sd_like_shapes()
        )

    def forward(self) -> None:
        """Nothing: only the weights matter."""


def floor(weights: Weights) -> Contestant:
    """In-place add into float32."""
    pairs = [(parameter.detach().float().clone(), parameter.detach()) for parameter in weights.all]

    def run() -> None:
        for average, parameter in pairs:
            average.add_(parameter)

    return run


def ours(weights: Weights) -> Contestant:
    """`WeightTracks` with its default, a float32 average."""
    tracks = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    parameters = list(weights.all)
    return lambda: tracks.step(parameters, LATE)


def onetrainer(weights: Weights) -> Contestant:
    """OneTrainer's own, by path: it needs nothing but torch."""
    root = Path(os.environ.get("ONETRAINER_DIR") or Path.home() / "OneTrainer").expanduser()
    path = root / "modules" / "module" / "EMAModule.py"
    if not path.is_file():
        raise ImportError(f"no OneTrainer at {root} (set ONETRAINER_DIR)")
    spec = importlib.util.spec_from_file_location("onetrainer_ema_module", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = list(weights.all)
    wrapper = module.EMAModuleWrapper(parameters, DECAY, device=torch.device("cpu"))
    return lambda: wrapper.step(parameters, LATE)


def diffusers(weights: Weights) -> Contestant:
    """Diffusers' `EMAModel`."""
    from diffusers.training_utils import EMAModel

    model = EMAModel(list(weights.all), decay=DECAY)
    parameters = list(weights.all)

    def run() -> None:
        model.optimization_step = LATE
        model.step(parameters)

    return run


def timm(weights: Weights) -> Contestant:
    """timm's `ModelEmaV3`."""
    from timm.utils import ModelEmaV3

    model = ModelEmaV3(weights, decay=DECAY)
    return lambda: model.update(weights, step=LATE)


def torch_averaged(weights: Weights) -> Contestant:
    """torch's `AveragedModel` with its fastest EMA function."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    model.update_parameters(weights)  # the first one only copies
    return lambda: model.update_parameters(weights)


def ema_pytorch(weights: Weights) -> Contestant:
    """ema-pytorch's `EMA`."""
    from ema_pytorch import EMA

    model = EMA(weights, beta=DECAY, update_after_step=0, update_every=1, include_online_model=False)
    for _ in range(2):  # these initialise
        model.update()
    model.step.fill_(LATE)
    return model.update


PEERS = (onetrainer, diffusers, timm, torch_averaged, ema_pytorch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ema_update(dtype: torch.dtype, benchmark: Any, show: Show) -> None:
    weights = Weights(dtype)
    contestants = {"floor": floor(weights), "ours": ours(weights)}
    skipped = {}
    for make in PEERS:
        try:
            contestants[make.__name__] = make(weights)
        except Exception as error:  # a peer whose own libraries do not fit raises anything at its import
            skipped[make.__name__] = str(error).replace("\n", " ")

    rounds = Rounds(contestants)
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=ROUNDS, iterations=1)

    show(f"\nEMA update, {dtype}, {TENSORS} tensors, {ELEMENTS:,} elements, {torch.get_num_threads()} threads:")
    for name, seconds in rounds.seconds.items():
        to_floor, to_ours = ratio(seconds, rounds.seconds["floor"]), ratio(seconds, rounds.seconds["ours"])
        median, best = statistics.median(seconds) * 1e3, min(seconds) * 1e3
        benchmark.extra_info[name] = {"median_ms": median, "to_floor": to_floor, "to_ours": to_ours}
        show(f"  {name:15} {median:8.1f} ms (best {best:7.1f})  {to_floor:6.2f} x floor  {to_ours:6.2f} x ours")
    for name, reason in skipped.items():
        show(f"  {name:15} skipped: {reason}")
