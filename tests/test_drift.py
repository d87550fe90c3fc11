"""Distances and samples against float64 over whole tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onetrainer_ema_select import drift
from onetrainer_ema_select.drift import Distance, Pair, distances, part_of, sample


def some_pairs(*, dtype: torch.dtype = torch.float32, apart: float = 1e-3) -> list[Pair]:
    generator = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    live = {
        "unet.big.weight": tensor(7, 90_001),
        "unet.scale": tensor(),
        "unet.turned": tensor(3, 300, 5, 5).to(memory_format=torch.channels_last),
        "text_encoder.empty": tensor(0, 4),
        "text_encoder.bias": tensor(11),
    }
    return [(name, (w + apart * tensor(*w.shape)).float(), w.to(dtype)) for name, w in live.items()]


def in_float64(pairs: list[Pair], part: str) -> float:
    chosen = [(a.double(), w.double()) for name, a, w in pairs if name.startswith(part)]
    return float((sum((a - w).square().sum() for a, w in chosen) / sum(w.square().sum() for _, w in chosen)) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [1 << 18, 1000])
def test_each_part_and_the_whole_are_as_in_float64(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_PIECE", piece)
    pairs = some_pairs(dtype=dtype)
    found = distances(pairs)
    assert list(found) == ["unet", "text_encoder"]
    for part, distance in found.items():
        assert distance.relative == pytest.approx(in_float64(pairs, part), rel=1e-5)
    assert sum(found.values(), Distance()).relative == pytest.approx(in_float64(pairs, ""), rel=1e-5)


def test_averages_of_16_bits_are_measured_too() -> None:
    pairs = [(name, average.bfloat16(), live.bfloat16()) for name, average, live in some_pairs(apart=0.5)]
    assert distances(pairs)["unet"].relative == pytest.approx(in_float64(pairs, "unet"), rel=1e-5)


def test_nothing_is_changed() -> None:
    pairs = some_pairs()
    copies = [(average.clone(), live.clone()) for _, average, live in pairs]
    versions = [(average._version, live._version) for _, average, live in pairs]
    distances(pairs)
    sample(pairs, size=50, file_dtype=torch.bfloat16)
    assert versions == [(average._version, live._version) for _, average, live in pairs]
    for (_, average, live), (first, second) in zip(pairs, copies, strict=True):
        assert torch.equal(average, first)
        assert torch.equal(live, second)


def test_equal_sets_are_not_apart_and_weights_of_zero_are_no_trouble() -> None:
    zero = torch.zeros(5)
    assert distances([("unet.a", zero, zero)])["unet"].relative == 0.0
    assert distances([("unet.a", zero + 1, zero)])["unet"].relative == float("inf")
    assert distances([]) == {}


def test_the_part_is_the_first_component_of_a_name() -> None:
    assert [part_of(name) for name in ("unet.x.weight", "prior_lora.k.y.alpha", "embedding.0-1.te.vector")] == [
        "unet",
        "prior_lora",
        "embedding",
    ]


@pytest.mark.parametrize("size", [1, 50, 700, 10**9])
def test_a_sample_is_every_nth_weight_of_all(size: int) -> None:
    pairs = some_pairs()
    flat = [torch.cat([pair[which].flatten() for pair in pairs]) for which in (1, 2)]
    stride = -(-len(flat[0]) // min(size, len(flat[0])))
    taken = sample(pairs, size=size, file_dtype=None)
    assert torch.equal(taken.ema, flat[0][::stride])
    assert torch.equal(taken.live, flat[1][::stride])
    assert len(taken.live) <= size


def test_what_differs_is_counted_as_files_are_rounded() -> None:
    live = torch.tensor([1.0, 1.0, 1.0, 2.0])
    average = torch.tensor([1.0, 1.0 + 2**-12, 1.0 + 2**-6, 2.0])
    for dtype, differing in ((torch.float32, 2), (None, 2), (torch.float16, 1), (torch.bfloat16, 1)):
        assert sample([("unet.a", average, live)], size=4, file_dtype=dtype).differing == differing, dtype
    rounded = live.bfloat16()
    assert sample([("unet.a", average, rounded)], size=4, file_dtype=None).differing == 1
    assert sample([("unet.a", average, rounded)], size=4, file_dtype=torch.float32).differing == 2


def test_files_are_the_same_where_few_weights_differ_or_by_next_to_nothing() -> None:
    live = torch.linspace(0.5, 1.0, 4000)
    live[:100] = 0.0

    def same(average: Tensor, *, file_dtype: torch.dtype = torch.bfloat16) -> bool:
        return sample([("unet.a", average, live)], size=4000, file_dtype=file_dtype).same

    assert same(live)
    some = live.clone()
    some[-3:] += 0.5
    assert same(some)
    some[-4:] += 0.5
    assert not same(some)
    assert same(live * (1 + 1e-9) + 1e-9)  # every one that was 0 differs
    assert not same(live + 1e-5)  # an adapter begins at 0
    assert same(live + 1e-6 * (live > 0))
    assert not same(live + 1e-6 * (live > 0), file_dtype=torch.float32)


def test_a_sample_of_nothing_is_empty() -> None:
    taken = sample([], size=4, file_dtype=None)
    assert (len(taken.ema), len(taken.live), taken.differing) == (0, 0, 0)
    assert not taken.same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("average_on", "live_on"), [("cpu", "cuda"), ("cuda", "cuda"), ("cuda", "cpu")])
def test_sets_on_other_devices_are_measured_alike(average_on: str, live_on: str) -> None:
    pairs = some_pairs(dtype=torch.bfloat16)
    moved = [(name, average.to(average_on), live.to(live_on)) for name, average, live in pairs]
    here, there = distances(pairs), distances(moved)
    for part, distance in here.items():
        assert there[part].relative == pytest.approx(distance.relative, rel=1e-5)
    first, second = (sample(either, size=500, file_dtype=None) for either in (pairs, moved))
    assert torch.equal(first.ema, second.ema)
    assert torch.equal(first.live, second.live)
    assert first.differing == second.differing
