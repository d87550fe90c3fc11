"""The gap between the product of averages and the average of products, against products that are formed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrainer_ema_select.lora_product import layer_squares, product_gap
from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import TensorSet


def stored(path: Path, tensors: dict[str, Tensor]) -> TensorSet:
    save_file(tensors, path)
    return TensorSet(read_safetensors(path)[0])


def lora(seed: int) -> dict[str, Tensor]:
    """A linear layer of rank 4, and a convolution of rank 2."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "u.a.lora_down.weight": (4, 9),
        "u.a.lora_up.weight": (6, 4),
        "u.c.lora_down.weight": (2, 3, 3, 3),
        "u.c.lora_up.weight": (5, 2, 1, 1),
        "u.a.dora_scale": (6, 1),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def products(weights: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """What the layers add, formed, as one long vector."""
    return torch.cat(
        [
            scale
            * (
                weights[f"{layer}.lora_up.weight"].double().flatten(1)
                @ weights[f"{layer}.lora_down.weight"].double().flatten(1)
            ).reshape(-1)
            for layer, scale in scales.items()
        ]
    )


def test_the_norms_are_those_of_the_products(tmp_path: Path) -> None:
    average, live = lora(0), lora(1)
    alphas = {"lora.a.alpha": torch.tensor(2.0), "lora.c.alpha": torch.tensor(3.0)}
    ema, other = stored(tmp_path / "e.safetensors", average), stored(tmp_path / "l.safetensors", live | alphas)
    names = {"u.a.lora_down.weight": "lora.a.alpha", "u.c.lora_down.weight": "lora.c.alpha"}
    for used, scales in ((names, {"u.a": 2 / 4, "u.c": 3 / 2}), ({}, {"u.a": 1 / 4, "u.c": 1 / 2})):
        found = product_gap(ema, other, alphas=used)
        assert found is not None
        assert (found.layers, found.others) == (2, 0)
        change = {name: live[name].double() - average[name].double() for name in average}
        assert found.gap == pytest.approx(float(products(change, scales).norm()), rel=1e-12)
        apart = products(average, scales) - products(live, scales)
        assert found.apart == pytest.approx(float(apart.norm()), rel=1e-12)
        assert found.ema == pytest.approx(float(products(average, scales).norm()), rel=1e-12)
        assert found.of_distance == found.gap / found.apart
        assert found.of_ema == found.gap / found.ema


def test_two_sets_that_are_close_are_told_apart(tmp_path: Path) -> None:
    average = {name: tensor.double() for name, tensor in lora(0).items()}
    live = {name: tensor * (1 + 1e-9) for name, tensor in average.items()}
    found = product_gap(
        stored(tmp_path / "e.safetensors", average), stored(tmp_path / "l.safetensors", live), alphas={}
    )
    assert found is not None
    # (1 + e)² - 1 of the products
    assert found.apart / found.ema == pytest.approx(2e-9, rel=1e-4)
    assert found.gap / found.ema == pytest.approx(1e-18, rel=1e-4)


def test_of_an_even_drift_the_indicator_is_the_gap() -> None:
    generator = torch.Generator().manual_seed(5)
    start_a, start_b, drift_a, drift_b = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 8), (7, 3), (3, 8), (7, 3))
    )
    decay, steps = 0.99, 4000  # all of an average of an age of 100 steps
    average_a, average_b = start_a.clone(), start_b.clone()
    product = start_b @ start_a
    for step in range(1, steps + 1):
        live_a, live_b = start_a + step * 1e-3 * drift_a, start_b + step * 1e-3 * drift_b
        average_a.lerp_(live_a, 1 - decay)
        average_b.lerp_(live_b, 1 - decay)
        product.lerp_(live_b @ live_a, 1 - decay)
    squares = layer_squares((average_a, average_b), (live_a, live_b))
    exact = (product - average_b @ average_a).norm()
    assert float(squares[0].sqrt()) == pytest.approx(float(exact), rel=0.02)


def test_where_weights_jitter_the_gap_is_smaller_than_the_indicator() -> None:
    generator = torch.Generator().manual_seed(6)
    centre_a, centre_b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 8), (7, 3)))
    average_a, average_b, product = centre_a.clone(), centre_b.clone(), centre_b @ centre_a
    indicators = []
    for step in range(2000):
        live_a = centre_a + 0.1 * torch.randn(3, 8, generator=generator, dtype=torch.float64)
        live_b = centre_b + 0.1 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
        average_a.lerp_(live_a, 0.01)
        average_b.lerp_(live_b, 0.01)
        product.lerp_(live_b @ live_a, 0.01)
        if step > 1000:
            indicators.append(float(layer_squares((average_a, average_b), (live_a, live_b))[0].sqrt()))
    exact = float((product - average_b @ average_a).norm())
    assert exact < 0.25 * min(indicators)


def test_what_is_no_lora(tmp_path: Path) -> None:
    weights = {"unet.a.weight": torch.ones(2, 2)}
    plain = stored(tmp_path / "a.safetensors", weights)
    assert product_gap(plain, plain, alphas={}) is None
    other = {"u.a.hada_w1_a": torch.ones(2, 2), "u.a.hada_w1_b": torch.ones(2, 2), "u.b.lokr_w1": torch.ones(2)}
    loha = stored(tmp_path / "b.safetensors", other)
    found = product_gap(loha, loha, alphas={})
    assert found is not None
    assert (found.layers, found.others, found.of_distance, found.of_ema) == (0, 2, None, None)
    half = stored(tmp_path / "c.safetensors", {"u.a.lora_down.weight": torch.ones(2, 2)})
    assert product_gap(half, half, alphas={}) is None
