"""What rounding loses, against the definitions written out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrainer_ema_select import rounding_loss
from onetrainer_ema_select.rounding import StochasticRounding
from onetrainer_ema_select.rounding_loss import RoundingLoss, measure_rounding
from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import TensorSet


def stored(path: Path, tensors: dict[str, Tensor]) -> TensorSet:
    save_file(tensors, path)
    return TensorSet(read_safetensors(path)[0])


def made(folder: Path, *, live_dtype: torch.dtype = torch.bfloat16) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    live = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (300, 7)), ("b", (50,)))}
    live = {name: tensor.to(live_dtype) for name, tensor in live.items()}
    average = {
        name: tensor.float() + 3e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in live.items()
    }
    average["a"][0] = live["a"][0].float()  # where the two are the same
    return average, live


def measured(folder: Path, average: dict[str, Tensor], live: dict[str, Tensor], **how: torch.dtype | None):
    ema, other = stored(folder / "e.safetensors", average), stored(folder / "l.safetensors", live)
    return measure_rounding(ema, other, [(name, name) for name in ema], dtype=how.get("dtype"))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_figures(tmp_path: Path, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding_loss, "CHUNK", 64)
    live_dtype = torch.bfloat16 if dtype is None else torch.float32
    average, live = made(tmp_path, live_dtype=live_dtype)
    found = measured(tmp_path, average, live, dtype=dtype)
    target = dtype or torch.bfloat16
    ema, other = (torch.cat([t.reshape(-1) for t in side.values()]) for side in (average, live))
    apart = ema.double() - other.double()
    error = ema.to(target).double() - ema.double()
    left = ema.to(target).double() - other.to(target).double()
    assert found is not None
    assert found.dtypes == {target}
    assert found.elements == ema.numel()
    assert found.lost == pytest.approx(float(error.norm() / apart.norm()), rel=1e-12)
    assert found.left == pytest.approx(float(left @ apart / apart.square().sum()), rel=1e-12)
    assert found.same_share == float((left[apart != 0] == 0).double().mean())
    # the expected error of random rounding, against that of many roundings
    squares = [
        float((StochasticRounding("r", step)("a", ema, target).double() - ema.double()).square().sum())
        for step in range(60)
    ]
    assert found.noise == pytest.approx(math.sqrt(sum(squares) / 60) / float(apart.norm()), rel=0.02)


def test_a_movement_of_less_than_half_a_step_is_lost_to_the_nearest_and_kept_at_random(tmp_path: Path) -> None:
    live = {"a": torch.full((40_000,), 1.0, dtype=torch.bfloat16)}
    average = {"a": torch.full((40_000,), 1 + 2.0**-10)}  # an eighth of a step
    found = measured(tmp_path, average, live)
    assert (found.lost, found.left, found.same_share) == (1.0, 0.0, 1.0)
    assert found.noise == pytest.approx(math.sqrt(7))  # s² p (1 - p) with s = 8 and p = 1/8 of the movement
    rounded = StochasticRounding("r", 1)("a", average["a"], torch.bfloat16)
    kept = float((rounded.double() - 1).mean()) * 2**10
    assert kept == pytest.approx(1, abs=5 * math.sqrt(7 / 40_000))


def test_nothing_to_lose(tmp_path: Path) -> None:
    average, live = made(tmp_path, live_dtype=torch.float32)
    assert measured(tmp_path, average, live) is None  # into float32
    assert measured(tmp_path, {n: t.bfloat16() for n, t in average.items()}, live, dtype=torch.bfloat16) is None
    same = measured(tmp_path, live, live, dtype=torch.bfloat16)
    assert same is not None
    assert (same.lost, same.noise, same.left, same.same_share) == (None, None, None, None)
    assert RoundingLoss().lost is None


def test_nan_and_inf_are_left_out(tmp_path: Path) -> None:
    average, live = made(tmp_path)
    clean = measured(tmp_path, average, live)
    average["b"] = torch.cat([average["b"], torch.tensor([math.nan, math.inf, 1.0])])
    live["b"] = torch.cat([live["b"], torch.tensor([1.0, 1.0, math.inf], dtype=torch.bfloat16)])
    assert measured(tmp_path, average, live) == clean
