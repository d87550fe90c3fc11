"""Distances, beside a slow computation in numpy's own double precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from onetrainer_ema_select import comparison
from onetrainer_ema_select.comparison import block_of, compare, count
from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import MappedTensor, TensorSet

from .backup_files import tensors


def as_set(**named: torch.Tensor) -> TensorSet:
    return TensorSet({name.replace("__", "."): MappedTensor(tensor) for name, tensor in named.items()})


def whole(a: torch.Tensor, b: torch.Tensor) -> comparison.Distance:
    return compare(as_set(x=a), as_set(x=b), [("x", "x")]).total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("chunk", [7, 1 << 19])
def test_as_numpy_says(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int) -> None:
    monkeypatch.setattr(comparison, "CHUNK", chunk)
    first, second = tensors((5, 9), (30,), dtype=dtype), tensors((5, 9), (30,), seed=1, dtype=dtype)
    a = as_set(**dict(zip(("u__0__w", "u__1__w"), first, strict=True)))
    b = as_set(**dict(zip(("u__0__w", "u__1__w"), second, strict=True)))
    found = compare(a, b, [(name, name) for name in a])
    for distance, ours, theirs in (
        (found.blocks["u.0"], first[:1], second[:1]),
        (found.blocks["u.1"], first[1:], second[1:]),
        (found.total, first, second),
    ):
        one = np.concatenate([tensor.double().numpy().ravel() for tensor in ours])
        other = np.concatenate([tensor.double().numpy().ravel() for tensor in theirs])
        assert distance.relative == pytest.approx(np.linalg.norm(one - other) / np.linalg.norm(one), rel=1e-13)
        assert distance.cosine == pytest.approx(
            one @ other / np.linalg.norm(one) / np.linalg.norm(other), rel=1e-13, abs=1e-15
        )
        assert distance.norm_a == pytest.approx(np.linalg.norm(one), rel=1e-13)
        assert distance.norm_b == pytest.approx(np.linalg.norm(other), rel=1e-13)
        assert distance.largest == np.abs(one - other).max()
        assert (distance.elements, distance.same_bits) == (one.size, False)
    assert list(found.blocks) == sorted(found.blocks, key=lambda name: -(found.blocks[name].relative or 0))


def test_a_small_difference_is_not_rounded_away() -> None:
    # 1e-7 of the length: in single precision nothing would be left of it
    a = torch.full((100_000,), 1.0)
    b = a.clone()
    b[0] += 2**-23
    distance = whole(a, b)
    assert distance.relative == pytest.approx(2**-23 / math.sqrt(100_000), rel=1e-12)
    assert not distance.same_bits


def test_the_same_and_almost_the_same() -> None:
    a = torch.tensor([0.0, 1.0])
    assert whole(a, a.clone()).same_bits
    assert not whole(a, torch.tensor([-0.0, 1.0])).same_bits  # equal, but for a bit
    assert not whole(a, a.bfloat16()).same_bits
    assert not whole(torch.zeros(2).half(), torch.zeros(2).bfloat16()).same_bits  # the same bits mean something else
    nan = torch.tensor([math.nan, 1.0])
    assert whole(nan, nan.clone()).same_bits
    assert whole(a, torch.tensor([-0.0, 1.0])).relative == 0


def test_nothing_to_be_relative_to() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    assert (whole(zero, one).relative, whole(zero, one).cosine) == (None, None)
    assert (whole(one, zero).relative, whole(one, zero).cosine) == (1.0, None)
    assert (whole(zero, zero).relative, whole(zero, zero).cosine) == (0.0, None)
    assert whole(torch.zeros(0), torch.zeros(0)).relative == 0.0
    blocks = compare(as_set(a__0=one, b__0=zero), as_set(a__0=zero, b__0=one), [("a.0", "a.0"), ("b.0", "b.0")]).blocks
    assert list(blocks) == ["b.0", "a.0"]  # what has become of nothing is furthest


def test_nan_and_inf_are_counted_and_left_out() -> None:
    a = torch.tensor([3.0, math.nan, math.inf, 1.0, -math.inf])
    b = torch.tensor([0.0, 1.0, math.nan, math.inf, 2.0])
    distance = whole(a, b)
    assert (distance.a.nan, distance.a.inf, distance.b.nan, distance.b.inf) == (1, 2, 1, 1)
    assert (distance.relative, distance.norm_a, distance.elements) == (1.0, 3.0, 5)
    only = whole(torch.tensor([math.nan]), torch.tensor([1.0]))
    assert (only.relative, only.elements) == (0.0, 1)


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8", "uint16", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([0, 1, 1, 0]).to(getattr(torch, dtype))
    save_file({"a": values}, tmp_path / "x.safetensors")
    found = TensorSet(read_safetensors(tmp_path / "x.safetensors")[0])
    total = compare(found, as_set(a=torch.tensor([1.0, 1.0, 1.0, 0.0]).to(getattr(torch, dtype))), [("a", "a")]).total
    assert total.relative == pytest.approx(math.sqrt(1 / 2))
    assert count(found, ["a"]).nan == 0


def test_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "CHUNK", 2)
    read = []
    tensors_of = as_set(a=torch.tensor([math.nan, 1, math.inf, math.nan, -math.inf]), b=torch.tensor([1]))
    found = count(tensors_of, ["a", "b"], advance=read.append)
    assert (found.nan, found.inf) == (2, 2)
    assert sum(read) == tensors_of.nbytes


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.floats(width=32, allow_subnormal=False), st.floats(width=32, allow_subnormal=False)), max_size=30
    ),
    chunk=st.integers(1, 40),
)
def test_any_numbers(values: list[tuple[float, float]], chunk: int) -> None:
    a, b = (torch.tensor([pair[side] for pair in values], dtype=torch.float32) for side in (0, 1))
    original, comparison.CHUNK = comparison.CHUNK, chunk
    try:
        found = whole(a, b)
    finally:
        comparison.CHUNK = original
    finite = [(one, other) for one, other in values if math.isfinite(one) and math.isfinite(other)]
    squares = math.fsum(one * one for one, _ in finite)
    apart = math.fsum((one - other) ** 2 for one, other in finite)
    assert found.norm_a == pytest.approx(math.sqrt(squares), rel=1e-12)
    if squares:
        assert found.relative == pytest.approx(math.sqrt(apart / squares), rel=1e-12)
    assert found.a.nan == sum(math.isnan(one) for one, _ in values)
    assert found.b.inf == sum(math.isinf(other) for _, other in values)


def test_of_a_tensor_no_more_than_a_piece_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1500, 1000, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    found = TensorSet(read_safetensors(tmp_path / "x.safetensors")[0])
    pieces = []
    original = TensorSet.read

    def read(self: TensorSet, name: str, first: int, last: int) -> torch.Tensor:
        pieces.append(original(self, name, first, last))
        return pieces[-1]

    monkeypatch.setattr(TensorSet, "read", read)
    compare(found, found, [("a", "a")])
    assert max(piece.untyped_storage().nbytes() for piece in pieces) == comparison.CHUNK
    assert sum(piece.numel() for piece in pieces) == 2 * 1_500_000


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.down_blocks.0.attentions.1.proj_in.weight", "unet.down_blocks.0"),
        ("unet_lora.down_blocks.0.attentions.1.lora_up.weight", "unet_lora.down_blocks.0"),
        ("text_encoder.text_model.encoder.layers.11.mlp.fc1.bias", "text_encoder.text_model.encoder.layers.11"),
        ("text_encoder_2.text_model.encoder.layers.3.a", "text_encoder_2.text_model.encoder.layers.3"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.0.bias", "model.diffusion_model.input_blocks.1"),
        ("unet.conv_in.weight", "unet.conv_in"),
        ("lora_unet_down_blocks_0_attentions_1_proj_in.lora_down.weight", "lora_unet_down_blocks_0"),
        ("lora_te1_text_model_encoder_layers_11_mlp_fc1.alpha", "lora_te1_text_model_encoder_layers_11"),
        ("lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in"),
        ("position.12", "position.12"),
        ("clip_l", "clip_l"),
        ("embedding.0b-1.text_encoder_embedding.vector", "embedding.0b-1"),
        ("", ""),
    ],
)
def test_blocks(name: str, block: str) -> None:
    assert block_of(name) == block
