"""Rounding to 16 bits, against neighbours that are looked up and means that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from onetrainer_ema_select.rounding import SIXTEEN_BITS, StochasticRounding, rounds, stochastic_variance

RULE = StochasticRounding("a-run", 60)
EVERY_PATTERN = torch.arange(-(2**15), 2**15).to(torch.int16)


def grid(dtype: torch.dtype) -> Tensor:
    """Every finite number of a format, in order, float64."""
    numbers = EVERY_PATTERN.view(dtype).double()
    return numbers[numbers.isfinite()].unique()


def between(dtype: torch.dtype, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """float32 numbers of ordinary size with the format's numbers below and above, looked up; none lies on it."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * torch.empty(count).uniform_(1e-3, 1, generator=generator)
    values = values[values.to(dtype).float() != values]
    numbers = grid(dtype)
    place = torch.searchsorted(numbers, values.double())
    return values, numbers[place - 1], numbers[place]


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_a_weight_becomes_one_of_its_two_neighbours_and_is_right_on_average(dtype: torch.dtype) -> None:
    values, below, above = between(dtype, 10_000)
    share = (values.double() - below) / (above - below)
    ups = torch.zeros_like(share)
    runs = 100
    for step in range(runs):
        rounded = StochasticRounding("a-run", step)("unet.a", values, dtype)
        assert rounded.dtype == dtype
        assert bool(((rounded.double() == below) | (rounded.double() == above)).all())
        ups += rounded.double() == above
    # how far off the counts are, in their own standard deviations: of mean 0 and deviation 1 where nothing is biased
    off = (ups - runs * share) / (runs * share * (1 - share)).sqrt().clamp_(min=0.1)
    assert abs(float(off.mean())) < 5 / math.sqrt(len(off))
    assert 0.9 < float(off.std()) < 1.1


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_what_lies_on_the_grid_stays_bit_for_bit(dtype: torch.dtype) -> None:
    every = EVERY_PATTERN.view(dtype)
    rounded = RULE("unet.a", every.float(), dtype)
    numbers = ~every.isnan()
    assert torch.equal(rounded.view(torch.int16)[numbers], EVERY_PATTERN[numbers])
    assert bool(rounded[every.isnan()].isnan().all())


def test_what_the_format_has_no_room_for_is_as_rounded_to_the_nearest() -> None:
    values = torch.tensor([7e4, -7e4, math.inf, math.nan, 3.3e38])
    rounded = RULE("a", values, torch.float16)
    assert torch.equal(rounded[[0, 1, 2, 4]], values.half()[[0, 1, 2, 4]])
    assert bool(rounded[3].isnan())
    odd = torch.tensor([-1, 2**31 - 1, -(2**23) + 1, 0x7F7FFFFF], dtype=torch.int32).view(torch.float32)  # NaN, largest
    for step in range(50):
        rounded = StochasticRounding("a-run", step)("a", odd, torch.bfloat16)
        assert bool(rounded[:3].isnan().all())
        assert float(rounded[3]) in (math.inf, float(torch.finfo(torch.bfloat16).max))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_rounded_where_the_file_has_the_bits(dtype: torch.dtype) -> None:
    values = torch.randn(5)
    assert RULE("a", values, dtype).data_ptr() == values.data_ptr()
    own = values.bfloat16()
    assert RULE("a", own, torch.bfloat16).data_ptr() == own.data_ptr()
    whole = torch.arange(3)
    assert RULE("a", whole, torch.bfloat16) is not None
    assert torch.equal(RULE("a", whole, torch.bfloat16), whole)


def test_the_same_run_step_and_name_round_alike_and_nothing_else_does() -> None:
    values = torch.randn(1_500_000, generator=torch.Generator().manual_seed(4))  # more than one piece
    before = torch.get_rng_state()
    rounded = RULE("unet.a", values, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(StochasticRounding("a-run", 60)("unet.a", values, torch.bfloat16), rounded)
    others = [
        StochasticRounding("a-run", 61)("unet.a", values, torch.bfloat16),
        StochasticRounding("other", 60)("unet.a", values, torch.bfloat16),
        RULE("unet.b", values, torch.bfloat16),
    ]
    assert all(not torch.equal(other, rounded) for other in others)
    # the second piece draws other numbers than the first
    half = torch.full((1 << 21,), 1 + 2.0**-9)
    first, second = RULE("a", half, torch.bfloat16).split(1 << 20)
    assert not torch.equal(first, second)


def test_any_shape_and_stride() -> None:
    values, _, _ = between(torch.bfloat16, 24 * 50)
    values = values[:1000].reshape(25, 40)
    rounded = RULE("a", values.T, torch.bfloat16)
    assert rounded.shape == (40, 25)
    assert torch.equal(rounded, RULE("a", values.T.contiguous(), torch.bfloat16))
    assert RULE("a", torch.tensor(0.3), torch.bfloat16).shape == ()
    assert RULE("a", torch.empty(0, 3), torch.bfloat16).shape == (0, 3)
    kept = values.clone()
    RULE("a", values, torch.bfloat16)
    assert torch.equal(values, kept)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_the_expected_square_is_that_of_the_two_neighbours(dtype: torch.dtype) -> None:
    values, below, above = between(dtype, 5_000)
    expected = (values.double() - below) * (above - values.double())
    assert torch.allclose(stochastic_variance(values, dtype), expected, rtol=1e-9, atol=0)
    every = grid(dtype)
    assert float(stochastic_variance(every, dtype).abs().max()) == 0.0


def test_which_files_take_bits() -> None:
    half, full = torch.bfloat16, torch.float32
    assert rounds(half, own=full, held=full)
    assert rounds(None, own=half, held=full)
    assert rounds(torch.float16, own=half, held=half)
    assert not rounds(full, own=half, held=full)
    assert not rounds(None, own=full, held=full)
    assert not rounds(None, own=half, held=half)
    assert not rounds(half, own=full, held=half)
