from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from onetrainer_ema_select import averaging
from onetrainer_ema_select.averaging import Averager, stochastic_round_

BITS_16 = [torch.bfloat16, torch.float16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rounded(values: Tensor, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    target = torch.empty(values.shape, dtype=dtype)
    stochastic_round_(target, values.clone(), generator=generator(seed))
    return target


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The two numbers of the 16-bit grid around a value, found by stepping through its bit patterns."""
    nearest = torch.tensor(value).to(dtype)
    bits = nearest.view(torch.int16)
    around = [(bits + step).view(dtype).item() for step in (-1, 0, 1)]
    return max(x for x in around if x <= value), min(x for x in around if x > value)


@pytest.mark.parametrize("dtype", BITS_16)
@pytest.mark.parametrize("value", [1.0009765, 1.7, 0.30001, 3.1e-5, 1234.5678, -0.77, -1.0009765, -255.99])
def test_rounding_goes_to_a_neighbour_and_the_mean_is_the_value(dtype: torch.dtype, value: float) -> None:
    count = 200_000
    exact = torch.tensor(value).item()  # as float32
    lower, upper = neighbours(exact, dtype)

    found = rounded(torch.full((count,), value), dtype).double()

    assert set(found.unique().tolist()) <= {lower, upper}
    share = (exact - lower) / (upper - lower)
    deviation = (share * (1 - share) / count) ** 0.5
    measured = (found == upper).double().mean().item()
    assert abs(measured - share) <= 5 * deviation + 1e-9


@pytest.mark.parametrize("dtype", BITS_16)
def test_a_value_on_the_grid_is_never_moved(dtype: torch.dtype) -> None:
    # Every finite number of the format but the tiniest, and zero.
    grid = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    tiniest = 2.0**-118 if dtype is torch.bfloat16 else 2.0**-24
    grid = grid[grid.isfinite() & ((grid == 0) | (grid.abs() >= tiniest))]
    for seed in range(100):
        assert torch.equal(rounded(grid.float(), dtype, seed=seed), grid)


def test_subnormal_numbers_of_float16_are_rounded_like_others() -> None:
    step = 2.0**-24
    found = rounded(torch.full((100_000,), 2.25 * step), torch.float16).double()
    assert set(found.unique().tolist()) == {2 * step, 3 * step}
    assert found.mean().item() == pytest.approx(2.25 * step, rel=5e-3)


@pytest.mark.parametrize("dtype", BITS_16)
def test_what_is_no_number_stays_what_it_is(dtype: torch.dtype) -> None:
    found = rounded(torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]), dtype)
    assert found[0].isnan()
    assert found[1:].tolist() == [float("inf"), -float("inf"), 0.0]


def test_rounding_depends_on_the_seed_alone() -> None:
    values = torch.linspace(-3, 3, 10_001)
    assert torch.equal(rounded(values, torch.bfloat16, seed=7), rounded(values, torch.bfloat16, seed=7))
    assert not torch.equal(rounded(values, torch.bfloat16, seed=7), rounded(values, torch.bfloat16, seed=8))


def test_a_format_without_a_known_grid_is_refused() -> None:
    with pytest.raises(KeyError):
        stochastic_round_(torch.empty(3), torch.ones(3), generator=generator())


# -- one update, in every combination ------------------------------------------------------------------------


def moved(average: Tensor, parameter: Tensor, weight: float) -> Tensor:
    return average.double() + weight * (parameter.double() - average.double())


SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4, 5), (0, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weight", [0.9, 0.5, 1e-4])
def test_a_float32_average_moves_by_the_weight(
    shape: tuple[int, ...], parameter_dtype: torch.dtype, weight: float
) -> None:
    average = torch.randn(shape, generator=generator(1))
    parameter = torch.randn(shape, generator=generator(2)).to(parameter_dtype)
    before = parameter.clone()
    expected = moved(average, parameter, weight)

    Averager().update([average], [parameter], weight=weight, seed=0)

    torch.testing.assert_close(average.double(), expected, rtol=3e-7, atol=3e-7)
    assert torch.equal(parameter, before)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: torch.stack([t, t], dim=-1)[..., 0],
}


@pytest.mark.parametrize("average_layout", LAYOUTS)
@pytest.mark.parametrize("parameter_layout", LAYOUTS)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
def test_the_layout_in_memory_does_not_matter(
    average_layout: str, parameter_layout: str, parameter_dtype: torch.dtype
) -> None:
    average = LAYOUTS[average_layout](torch.randn(2, 3, 4, 5, generator=generator(1)))
    parameter = LAYOUTS[parameter_layout](torch.randn(2, 3, 4, 5, generator=generator(2)).to(parameter_dtype))
    pointer, strides = average.data_ptr(), average.stride()
    expected = moved(average, parameter, 0.25)

    Averager().update([average], [parameter], weight=0.25, seed=0)

    torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-6)
    assert (average.data_ptr(), average.stride()) == (pointer, strides)


@pytest.mark.parametrize("length", [1, 6, 7, 8, 20, 21])
def test_pieces_of_a_16_bit_parameter_meet_without_a_gap(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "_CACHE_CHUNK", 7)
    average = torch.randn(length, generator=generator(1))
    parameter = torch.randn(length, generator=generator(2)).bfloat16()
    expected = average.lerp(parameter.float(), 0.125)

    Averager().update([average], [parameter], weight=0.125, seed=0)

    assert torch.equal(average, expected)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 20, 21, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_that_travel_from_another_device_meet_without_a_gap(
    length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Called directly: without a second device update() has no reason to go there.
    monkeypatch.setattr(averaging, "_TRANSFER_CHUNK", 7)
    averager = Averager()
    for seed in (1, 2):  # the buffers are used again
        average = torch.randn(length, generator=generator(seed))
        parameter = torch.randn(length, generator=generator(seed + 10)).to(dtype)
        expected = average.lerp(parameter.float(), 0.125)
        averager._update_transferred([(average, 0.125)], parameter)
        assert torch.equal(average, expected)


def test_many_tensors_of_all_kinds_in_one_update() -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.float64]
    averages = [torch.randn(11, generator=generator(n)) for n in range(5)]
    averages[4] = averages[4].double()
    parameters = [torch.randn(11, generator=generator(n + 10)).to(dtype) for n, dtype in enumerate(dtypes)]
    expected = [moved(a, p, 0.3) for a, p in zip(averages, parameters, strict=True)]

    Averager().update(averages, parameters, weight=0.3, seed=0)

    for average, wanted in zip(averages, expected, strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=1e-6, atol=1e-6)


# -- several averages of each parameter ----------------------------------------------------------------------

KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("average_dtype", [*KINDS, None], ids=str)
def test_several_averages_become_what_each_alone_would_have_become(
    average_dtype: torch.dtype | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CACHE_CHUNK", "_SHARED_CHUNK", "_TRANSFER_CHUNK"):
        monkeypatch.setattr(averaging, name, chunk)
    shapes = [(), (0,), (5,), (7,), (4, 9), (2, 3, 4, 5), (15,)]
    layouts = ["contiguous", "channels_last"]
    parameters = [torch.randn(shape, generator=generator(n)) for n, shape in enumerate(shapes)]
    parameters = [parameter.to(kind) for parameter in parameters for kind in KINDS]
    parameters += [LAYOUTS[layout](torch.randn(2, 3, 4, 5, generator=generator(9))) for layout in layouts]
    before = [parameter.clone() for parameter in parameters]
    weights, seeds = [0.5, 1e-3, 0.5, 0.03], [11, 12, 11, 13]

    def tracks() -> list[list[Tensor | None]]:
        made: list[list[Tensor | None]] = []
        for track in range(4):
            averages: list[Tensor | None] = [(p.float() + track).to(average_dtype or p.dtype) for p in parameters]
            averages[track] = None
            made.append(averages)
        return made

    together, alone = tracks(), tracks()
    Averager().update_several(together, parameters, weights=weights, seeds=seeds)
    for averages, weight, seed in zip(alone, weights, seeds, strict=True):
        held = [(a, p) for a, p in zip(averages, parameters, strict=True) if a is not None]
        Averager().update([a for a, _ in held], [p for _, p in held], weight=weight, seed=seed)

    for found, wanted in zip(together, alone, strict=True):
        for average, expected in zip(found, wanted, strict=True):
            assert (average is None) == (expected is None)
            assert average is None or expected is None or torch.equal(average, expected)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 20, 21, 22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_travel_once_for_several_averages(
    length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "_TRANSFER_CHUNK", 7)
    averages = [torch.randn(length, generator=generator(seed)) for seed in (1, 2)]
    parameter = torch.randn(length, generator=generator(3)).to(dtype)
    expected = [a.lerp(parameter.float(), w) for a, w in zip(averages, (0.125, 0.5), strict=True)]
    Averager()._update_transferred(list(zip(averages, (0.125, 0.5), strict=True)), parameter)
    assert all(torch.equal(a, wanted) for a, wanted in zip(averages, expected, strict=True))


def test_a_track_without_any_average_and_lists_of_different_lengths() -> None:
    average, parameter = torch.zeros(3), torch.ones(3)
    Averager().update_several([[None], [average]], [parameter], weights=[0.5, 0.25], seeds=[0, 1])
    assert average.tolist() == [0.25] * 3
    with pytest.raises(ValueError, match="shorter"):
        Averager().update_several([[average], []], [parameter], weights=[0.5, 0.5], seeds=[0, 1])
    with pytest.raises(ValueError, match="shorter"):
        Averager().update_several([[average], [average]], [parameter], weights=[0.5, 0.5], seeds=[0])
    assert average.tolist() == [0.25] * 3


def test_nothing_to_do_and_lists_of_different_lengths() -> None:
    Averager().update([], [], weight=0.5, seed=0)
    with pytest.raises(ValueError, match="shorter"):
        Averager().update([torch.ones(2), torch.ones(2)], [torch.ones(2)], weight=0.5, seed=0)


def test_a_parameter_that_requires_a_gradient_leaves_no_trace_of_autograd() -> None:
    average, parameter = torch.zeros(3), torch.nn.Parameter(torch.ones(3))
    with torch.enable_grad():
        Averager().update([average], [parameter], weight=0.5, seed=0)
    assert average.tolist() == [0.5, 0.5, 0.5]
    assert not average.requires_grad
    assert parameter.grad is None


@pytest.mark.parametrize("dtype", BITS_16)
def test_increments_below_half_a_step_survive_in_a_16_bit_average(dtype: torch.dtype) -> None:
    # Rounding to nearest would lose every single one of them: the average would stay at 1.
    average, parameter = torch.ones(20_000, dtype=dtype), torch.full((20_000,), 1.125, dtype=dtype)
    exact = 1.0
    averager = Averager()
    for step in range(200):
        averager.update([average], [parameter], weight=1e-3, seed=step)
        exact += 1e-3 * (1.125 - exact)
    assert average.double().mean().item() == pytest.approx(exact, abs=2e-4)


def test_a_16_bit_average_rounds_the_same_way_in_the_same_update() -> None:
    def update(seed: int) -> Tensor:
        averages = [torch.linspace(0, 1, 1000).bfloat16(), torch.linspace(-1, 0, 1000).bfloat16()]
        Averager().update(averages, [torch.ones(1000).bfloat16()] * 2, weight=0.01, seed=seed)
        return torch.cat(averages)

    assert torch.equal(update(3), update(3))
    assert not torch.equal(update(3), update(4))


def test_two_16_bit_tensors_are_not_rounded_by_the_same_numbers() -> None:
    averages = [torch.linspace(0, 1, 1000).bfloat16() for _ in range(2)]
    Averager().update(averages, [torch.ones(1000).bfloat16()] * 2, weight=0.01, seed=0)
    assert not torch.equal(*averages)


def test_the_random_state_of_the_process_is_not_touched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    averages = [torch.zeros(50, dtype=torch.bfloat16), torch.zeros(50)]
    Averager().update(averages, [torch.ones(50).bfloat16()] * 2, weight=0.01, seed=5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_in_main_memory_of_a_parameter_on_the_gpu(dtype: torch.dtype) -> None:
    length = (1 << 22) * 2 + 5
    average = torch.randn(length, generator=generator(1))
    parameter = torch.randn(length, generator=generator(2)).to(dtype)
    expected = average.lerp(parameter.float(), 0.125)
    Averager().update([average], [parameter.cuda()], weight=0.125, seed=0)
    assert torch.equal(average, expected)
