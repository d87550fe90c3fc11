from __future__ import annotations

import inspect
import itertools
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from pytest_mock import MockerFixture
from torch import Tensor, nn

from onetrainer_ema_select.errors import TrackError
from onetrainer_ema_select.tracks import WeightTracks, check_positions

FLOAT_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def bits(tensor: Tensor) -> bytes:
    """Every bit of a tensor's values, so that -0.0 and the payloads of NaNs count."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_bits(tensors: Any) -> list[bytes]:
    return [bits(tensor) for tensor in tensors]


def parameter(*values: float, dtype: torch.dtype = torch.float32, trains: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype), requires_grad=trains)


def random_parameter(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def named(parameters: list[nn.Parameter]) -> list[tuple[str, Tensor]]:
    return [(f"p{number}", tensor) for number, tensor in enumerate(parameters)]


def make(parameters: list[nn.Parameter], **options: Any) -> WeightTracks:
    return WeightTracks(named(parameters), **{"decay": 0.9, "device": "cpu", **options})


def drift(parameters: list[nn.Parameter], *, seed: int, size: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in parameters:
            tensor.add_((size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype))


def closed_form(history: list[Tensor], *, decay: float, interval: int = 1) -> Tensor:
    """The average as one weighted sum in float64. `history[0]` is the start, `history[k + 1]` after step k."""
    updates = [k for k in range(len(history) - 1) if (k + 1) % interval == 0]
    decays = np.array([min((1 + k) / (10 + k), decay) for k in updates])
    # What is left of a value after all the updates that came later.
    remaining = np.append(np.cumprod(decays[::-1])[::-1], 1.0)
    weights = np.append(remaining[0], (1 - decays) * remaining[1:])
    assert weights.sum() == pytest.approx(1)
    values = torch.stack([history[0], *(history[k + 1] for k in updates)]).double()
    return torch.einsum("n,n...->...", torch.from_numpy(weights), values)


# -- averaging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 5, 7])
@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_equals_the_closed_form(interval: int, decay: float, dtype: torch.dtype) -> None:
    parameters = [random_parameter(40, seed=1, dtype=dtype), random_parameter(3, 5, seed=2, dtype=dtype)]
    tracks = make(parameters, decay=decay, update_step_interval=interval)
    histories = [[p.detach().clone()] for p in parameters]
    for step in range(331):
        drift(parameters, seed=step)
        for history, tensor in zip(histories, parameters, strict=True):
            history.append(tensor.detach().clone())
        tracks.step(parameters, step)

    assert tracks.updates == 331 // interval
    for (_, average), history in zip(tracks.averages(), histories, strict=True):
        expected = closed_form(history, decay=decay, interval=interval)
        assert average.dtype == torch.float32
        assert (average.double() - expected).norm() <= 1e-6 * expected.norm()


def test_a_slow_drift_of_bfloat16_parameters_is_followed() -> None:
    # What a bfloat16 average loses almost whole: each increment is below half a step of its grid.
    target = torch.linspace(0.5, 2.0, 64, dtype=torch.float64)
    start = random_parameter(64, seed=3, dtype=torch.bfloat16)
    parameters, tracks = [start], make([start], decay=0.999)
    history = [start.detach().clone()]
    for step in range(3000):
        with torch.no_grad():
            start.copy_(history[0].double() + (target - history[0].double()) * (step + 1) / 3000)
        history.append(start.detach().clone())
        tracks.step(parameters, step)

    expected = closed_form(history, decay=0.999)
    movement = (expected - history[0].double()).norm()
    (average,) = tracks.ema_parameters
    assert movement > 1
    assert (average.double() - expected).norm() <= 1e-4 * movement


def test_the_decay_warms_up_to_its_bound() -> None:
    tracks = make([parameter(0.0)], decay=0.95)
    assert [tracks.get_current_decay(step) for step in (0, 1, 8, 170, 171, 10**6)] == [
        pytest.approx(value) for value in (1 / 10, 2 / 11, 9 / 18, 171 / 180, 0.95, 0.95)
    ]


def test_the_first_update_moves_by_nine_tenths() -> None:
    moving = parameter(1.0)
    tracks = make([moving], decay=0.999)
    moving.data.fill_(11.0)
    tracks.step([moving], 0)
    assert tracks.ema_parameters[0].item() == pytest.approx(10.0)


def test_the_average_only_moves_every_so_many_steps() -> None:
    moving = parameter(1.0)
    tracks = make([moving], update_step_interval=3)
    seen = []
    for step in range(7):
        moving.data.add_(1.0)
        tracks.step([moving], step)
        seen.append(tracks.updates)
    assert seen == [0, 0, 1, 1, 1, 2, 2]


def test_frozen_and_quantized_parameters_share_the_live_weight() -> None:
    frozen = parameter(1.0, 2.0, trains=False)
    quantized = nn.Parameter(torch.tensor([1, -2], dtype=torch.int8), requires_grad=False)
    trained = parameter(3.0, 4.0)
    tracks = make([frozen, quantized, trained])

    assert tracks.average("p0") is None
    assert tracks.average("p1") is None
    assert tracks.nbytes == 8
    shown = dict(tracks.averages())
    assert shown["p0"].data_ptr() == frozen.data_ptr()
    assert shown["p1"].data_ptr() == quantized.data_ptr()
    assert shown["p1"].dtype == torch.int8

    trained.data.add_(1.0)
    tracks.step([frozen, quantized, trained], 0)
    before = all_bits([frozen, quantized])
    with tracks.exchanged():
        assert all_bits([frozen, quantized]) == before
    assert all_bits([frozen, quantized]) == before


def test_a_saved_average_of_a_frozen_parameter_is_kept_and_shown() -> None:
    frozen = parameter(1.0, 2.0, trains=False)
    tracks = make([frozen], initial={"p0": torch.tensor([5.0, 6.0])})
    tracks.step([frozen], 0)
    with tracks.exchanged():
        assert frozen.tolist() == [5.0, 6.0]
    assert frozen.tolist() == [1.0, 2.0]


def test_a_saved_average_of_a_quantized_parameter_is_left_out() -> None:
    quantized = nn.Parameter(torch.tensor([1, -2], dtype=torch.int8), requires_grad=False)
    initial = {"p0": torch.tensor([5.0, 6.0])}
    tracks = make([quantized], initial=initial)
    assert tracks.average("p0") is None
    assert not initial


def test_the_average_of_a_parameter_that_stops_training_stays_where_it_is() -> None:
    stops, goes_on = parameter(1.0), parameter(1.0)
    tracks = make([stops, goes_on])
    for step in range(4):
        if step == 2:
            stops.requires_grad_(False)
        if stops.requires_grad:
            stops.data.add_(1.0)
        goes_on.data.add_(1.0)
        tracks.step([stops, goes_on], step)
        if step == 1:
            then = tracks.average("p0").item()
    assert tracks.average("p0").item() == then
    assert tracks.average("p1").item() > then
    with tracks.exchanged():  # and it still belongs to the set
        assert stops.item() == then
    assert stops.item() == 3.0


def test_the_average_of_a_parameter_that_begins_to_train_begins_then() -> None:
    begins = parameter(1.0, trains=False)
    tracks = make([begins])
    tracks.step([begins], 0)
    assert tracks.average("p0") is None
    begins.requires_grad_(True)
    begins.data.fill_(4.0)
    tracks.step([begins], 1)
    assert tracks.average("p0").item() == 4.0
    assert tracks.average("p0").data_ptr() != begins.data_ptr()


LAYOUTS: dict[str, Callable[[], nn.Parameter]] = {
    "scalar": lambda: nn.Parameter(torch.tensor(1.5)),
    "empty": lambda: nn.Parameter(torch.empty(0, 4)),
    "channels_last": lambda: nn.Parameter(
        random_parameter(2, 3, 4, 5, seed=1).data.to(memory_format=torch.channels_last)
    ),
    "transposed": lambda: nn.Parameter(random_parameter(6, 4, seed=2).data.t()),
    "a view of a larger buffer": lambda: nn.Parameter(random_parameter(50, seed=3).data[7:27].view(4, 5)),
    "every other": lambda: nn.Parameter(random_parameter(20, seed=4).data[::2]),
    "bfloat16 channels_last": lambda: nn.Parameter(
        random_parameter(2, 3, 4, 5, seed=5).data.bfloat16().to(memory_format=torch.channels_last)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_any_layout_is_averaged_and_exchanged(layout: str, dtype: torch.dtype | None) -> None:
    tensor = LAYOUTS[layout]()
    strides, pointer = tensor.stride(), tensor.data_ptr()
    tracks = make([tensor], dtype=dtype)
    history = [tensor.detach().clone()]
    for step in range(20):
        drift([tensor], seed=step, size=0.5)
        history.append(tensor.detach().clone())
        tracks.step([tensor], step)

    (average,) = tracks.ema_parameters
    tolerance = 1e-5 if average.dtype == torch.float32 else 0.05
    torch.testing.assert_close(average.double(), closed_form(history, decay=0.9), rtol=tolerance, atol=tolerance)
    live, ema, shown = bits(tensor), bits(average), bits(average.to(tensor.dtype))
    with tracks.exchanged():
        assert bits(tensor) == shown
    assert (bits(tensor), bits(average)) == (live, ema)
    assert (tensor.stride(), tensor.data_ptr()) == (strides, pointer)


def test_mixed_dtypes_each_get_their_own_average() -> None:
    parameters = [random_parameter(9, seed=n, dtype=dtype) for n, dtype in enumerate(FLOAT_DTYPES)]
    assert {average.dtype for average in make(parameters).ema_parameters} == {torch.float32}
    assert [average.dtype for average in make(parameters, dtype=None).ema_parameters] == FLOAT_DTYPES
    tracks = make(parameters)
    drift(parameters, seed=1)
    tracks.step(parameters, 50)
    live, ema = all_bits(parameters), all_bits(tracks.ema_parameters)
    with tracks.exchanged():
        assert all(now != before for now, before in zip(all_bits(parameters), live, strict=True))
    assert all_bits(parameters) == live
    assert all_bits(tracks.ema_parameters) == ema


def test_an_average_is_no_part_of_autograd() -> None:
    trained = parameter(1.0)
    tracks = make([trained])
    (trained * 2).sum().backward()
    gradient = bits(trained.grad)
    tracks.step([trained], 0)
    with tracks.exchanged():
        pass
    assert not tracks.ema_parameters[0].requires_grad
    assert trained.requires_grad
    assert trained.is_leaf
    assert bits(trained.grad) == gradient


def test_a_list_of_another_length_is_refused() -> None:
    one, two = parameter(1.0), parameter(2.0)
    tracks = make([one, two])
    with pytest.raises(ValueError, match="shorter"):
        tracks.step([one], 0)


# -- the average in the parameters' dtype ---------------------------------------------------------------------


def run_16_bit(first: int, last: int, initial: dict[str, Tensor] | None = None) -> WeightTracks:
    """Steps `first` to `last` of a run whose parameters at each step depend on nothing else."""
    parameters = [random_parameter(300, seed=n, dtype=torch.bfloat16) for n in (1, 2)]
    tracks = make(parameters, dtype=None, decay=0.99, initial=initial)
    for step in range(first, last):
        with torch.no_grad():
            for number, tensor in enumerate(parameters):
                tensor.copy_(random_parameter(300, seed=1000 * step + number))
        tracks.step(parameters, step)
    return tracks


def test_stochastic_rounding_follows_the_exact_average_on_average() -> None:
    count = 40_000
    moving = nn.Parameter(torch.full((count,), 1.0, dtype=torch.bfloat16))
    tracks = make([moving], dtype=None, decay=0.999)
    history = [torch.tensor(1.0, dtype=torch.float64)]
    for step in range(150):
        with torch.no_grad():
            moving.fill_(1.0 + 0.0078125 * (step // 10))
        history.append(moving.detach()[0].double())
        tracks.step([moving], step)
    (average,) = tracks.ema_parameters
    assert average.dtype == torch.bfloat16
    spread = average.double().std().item() / count**0.5
    assert average.double().mean().item() == pytest.approx(closed_form(history, decay=0.999).item(), abs=5 * spread)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_update_is_right_in_the_mean_over_many_seeds(dtype: torch.dtype) -> None:
    count, grid = 2000, torch.finfo(dtype).eps
    start = torch.linspace(1.0, 1.7, 64).to(dtype)
    moving = nn.Parameter(start + 0.25)
    exact = start.double() + 0.001 * (moving.detach().double() - start.double())
    total = torch.zeros(64, dtype=torch.float64)
    for step in range(20_000, 20_000 + count):  # past the warm-up
        tracks = make([moving], decay=0.999, dtype=None, initial={"p0": start.clone()})
        tracks.step([moving], step)
        total += tracks.ema_parameters[0].double()
    share = (exact - start.double()) / grid
    deviation = (share * (1 - share) / count).sqrt() * grid
    assert ((total / count - exact).abs() <= 5 * deviation + 1e-7).all()


def test_stochastic_rounding_goes_by_the_number_of_the_step() -> None:
    assert all_bits(run_16_bit(0, 20).ema_parameters) == all_bits(run_16_bit(0, 20).ema_parameters)


def test_a_resumed_run_rounds_like_an_uninterrupted_one() -> None:
    straight = run_16_bit(0, 40)
    halfway = run_16_bit(0, 17)
    resumed = run_16_bit(17, 40, initial=dict(halfway.averages()))
    assert all_bits(resumed.ema_parameters) == all_bits(straight.ema_parameters)


def test_the_random_state_of_the_process_is_not_touched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    parameters = [parameter(1.0, dtype=torch.bfloat16), parameter(1.0)]
    tracks = make(parameters, dtype=None)
    for step in range(5):
        tracks.step(parameters, step)
    with tracks.exchanged():
        pass
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


# -- beginning, and what the host's ema.pt holds ----------------------------------------------------------------


def test_a_saved_average_is_taken_over_without_a_copy() -> None:
    parameters = [parameter(1.0, 2.0), parameter(3.0)]
    saved = {"p0": torch.tensor([7.0, 8.0]), "other": torch.tensor([9.0])}
    pointer = saved["p0"].data_ptr()
    tracks = make(parameters, initial=saved)
    assert tracks.average("p0").data_ptr() == pointer
    assert tracks.average("p1").tolist() == [3.0]
    assert list(saved) == ["other"]


def test_a_saved_average_of_another_dtype_is_converted() -> None:
    tracks = make([parameter(1.0)], initial={"p0": torch.tensor([7.0], dtype=torch.bfloat16)})
    assert tracks.average("p0").dtype == torch.float32
    assert tracks.average("p0").item() == 7.0


def test_a_new_average_is_a_copy() -> None:
    trained = parameter(1.0)
    tracks = make([trained])
    assert tracks.average("p0").data_ptr() != trained.data_ptr()
    trained.data.fill_(2.0)
    assert tracks.average("p0").item() == 1.0


def test_names_are_in_the_order_they_came_in() -> None:
    tracks = WeightTracks([("b", parameter(1.0)), ("a", parameter(2.0))], decay=0.9, device="cpu")
    assert tracks.names == ("b", "a")
    assert [name for name, _ in tracks.averages()] == ["b", "a"]


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(TrackError) as caught:
        WeightTracks([("unet.w", parameter(1.0)), ("unet.w", parameter(2.0))], decay=0.9, device="cpu")
    assert str(caught.value) == (
        "Two parameters have the name 'unet.w'; every parameter needs a name of its own. "
        "Please report this with the model type and training method."
    )
    assert caught.value.key == "unet.w"


def test_a_saved_average_of_another_shape_is_refused() -> None:
    with pytest.raises(TrackError) as caught:
        make([parameter(1.0, 2.0)], initial={"p0": torch.zeros(3)})
    assert str(caught.value) == (
        "The saved average of 'p0' has the shape (3,), the parameter has (2,). "
        "Set ema_select.resume_ema to RESTART to begin a new average."
    )
    assert (caught.value.key, caught.value.expected, caught.value.found) == ("p0", "(2,)", "(3,)")


def test_the_state_is_what_the_host_writes_into_ema_pt() -> None:
    trained, frozen = parameter(1.0, dtype=torch.bfloat16), parameter(2.0, trains=False)
    tracks = make([trained, frozen], decay=0.995)
    state = tracks.state_dict()
    assert list(state) == ["decay", "ema_parameters"]
    assert state["decay"] == 0.995
    assert type(state["ema_parameters"]) is list
    assert [tensor.dtype for tensor in state["ema_parameters"]] == [torch.float32, torch.float32]
    assert state["ema_parameters"][0].data_ptr() == tracks.average("p0").data_ptr()
    assert state["ema_parameters"][1].tolist() == [2.0]
    assert not any(tensor.requires_grad for tensor in state["ema_parameters"])


def test_the_state_is_the_average_also_while_it_is_shown() -> None:
    moving = parameter(1.0)
    tracks = make([moving])
    moving.data.fill_(2.0)
    tracks.show_ema()
    assert tracks.state_dict()["ema_parameters"][0].item() == 1.0
    assert moving.item() == 2.0


def test_a_state_goes_through_a_file_and_back(tmp_path: Any) -> None:
    parameters = [random_parameter(6, seed=1, dtype=torch.bfloat16), random_parameter(2, 2, seed=2)]
    tracks = make(parameters, decay=0.97)
    drift(parameters, seed=3)
    tracks.step(parameters, 0)
    torch.save(tracks.state_dict(), tmp_path / "ema.pt")
    other = make(parameters, decay=0.5)
    other.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert all_bits(other.ema_parameters) == all_bits(tracks.ema_parameters)
    assert other.decay == 0.5  # the configuration's, as in the host


def test_the_decay_of_a_state_is_only_taken_where_there_is_none() -> None:
    tracks = make([parameter(1.0)], decay=0)
    tracks.load_state_dict({"decay": 0.9, "ema_parameters": [torch.tensor([2.0])]})
    assert tracks.decay == 0.9
    assert tracks.average("p0").item() == 2.0


ADVICE = (
    "The set of trained weights has changed since that backup, and a backup of plain OneTrainer names no "
    "parameters, so they cannot be matched. Restore the old layer filter and training settings, or set "
    "ema_select.resume_ema to RESTART and ema_select.resume_weights to NON_EMA."
)


@pytest.mark.parametrize(
    ("saved", "message", "expected", "found"),
    [
        ([[1.0, 2.0]], f"The saved average holds 1 tensors, the model trains 2. {ADVICE}", "2", "1"),
        ([[1.0]] * 3, f"The saved average holds 3 tensors, the model trains 2. {ADVICE}", "2", "3"),
        (
            [[1.0, 2.0], [1.0, 2.0]],
            f"Tensor 1 of the saved average has the shape (2,), the model's has (1,). {ADVICE}",
            "(1,)",
            "(2,)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(
    saved: list[list[float]], message: str, expected: str, found: str
) -> None:
    parameters = [parameter(1.0, 2.0), parameter(3.0)]
    tracks = make(parameters, decay=0)
    before = all_bits(tracks.ema_parameters)
    with pytest.raises(TrackError) as caught:
        tracks.load_state_dict({"decay": 0.9, "ema_parameters": [torch.tensor(values) for values in saved]})
    assert str(caught.value) == message
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert all_bits(tracks.ema_parameters) == before
    assert tracks.decay == 0
    with pytest.raises(TrackError):
        check_positions([torch.tensor(values) for values in saved], parameters)


def test_the_averages_can_be_moved_to_another_dtype() -> None:
    moving = parameter(1.0)
    tracks = make([moving, parameter(2.0, trains=False)])
    moving.data.fill_(5.0)
    tracks.show_ema()
    tracks.to(dtype=torch.float64)
    assert moving.item() == 5.0
    assert tracks.average("p0").dtype == torch.float64
    assert tracks.average("p0").item() == 1.0
    tracks.to(torch.device("cpu"))
    assert tracks.average("p0").dtype == torch.float64


# -- exchanging -----------------------------------------------------------------------------------------------

# -0.0, a quiet NaN and a signalling one with payloads, infinity, the smallest subnormal number, an ordinary one.
ODD_BITS_32 = [-(2**31), 0x7FC01234, 0x7F800001, -0x0043ABCD, 0x7F800000, 1, 0x3F9E0651]
ODD_BITS_16 = [-(2**15), 0x7FC5, 0x7F81, -0x003B, 0x7F80, 1, 0x3F9E]


def odd(dtype: torch.dtype) -> Tensor:
    if dtype.itemsize == 4:
        return torch.tensor(ODD_BITS_32, dtype=torch.int32).view(dtype)
    return torch.tensor(ODD_BITS_16, dtype=torch.int16).view(dtype)


KINDS = {"swap": torch.float32, "stash": torch.bfloat16, "stash of float16": torch.float16}


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_both_sets_comes_back(kind: str) -> None:
    trained = nn.Parameter(odd(KINDS[kind]))
    average = odd(torch.float32).flip(0).contiguous()
    live, ema = bits(trained), bits(average)
    tracks = make([trained], initial={"p0": average})
    for _ in range(3):
        tracks.show_ema()
        assert bits(trained) != live
        if kind == "swap":
            assert bits(trained) == ema
        tracks.show_live()
        assert bits(trained) == live
        assert bits(average) == ema


def test_a_swap_keeps_the_live_weights_in_the_place_of_the_average() -> None:
    # Nothing else holds them: a set aside would take as much memory again as the model.
    trained, average = parameter(1.0, 2.0), torch.tensor([10.0, 20.0])
    tracks = make([trained], initial={"p0": average})
    with tracks.exchanged():
        assert trained.tolist() == [10.0, 20.0]
        assert average.tolist() == [1.0, 2.0]


def test_a_16_bit_average_is_swapped_bit_for_bit_too() -> None:
    trained = nn.Parameter(odd(torch.bfloat16))
    average = odd(torch.bfloat16).flip(0).contiguous()
    live, ema = bits(trained), bits(average)
    tracks = make([trained], dtype=None, initial={"p0": average})
    with tracks.exchanged():
        assert bits(trained) == ema
    assert (bits(trained), bits(average)) == (live, ema)


def mixed() -> tuple[WeightTracks, list[nn.Parameter]]:
    """Tracks with a swap, a stash, a frozen and a quantized parameter, apart from their averages."""
    parameters = [
        parameter(1.0, -2.0),
        parameter(3.0, 4.0, dtype=torch.bfloat16),
        parameter(5.0, trains=False),
        nn.Parameter(torch.tensor([6], dtype=torch.int8), requires_grad=False),
        parameter(7.0),
    ]
    averages = {"p0": torch.tensor([10.5, -20.5]), "p1": torch.tensor([30.123, 40.456]), "p4": torch.tensor([70.5])}
    return make(parameters, initial=averages), parameters


def ema_in_parameters() -> list[list[float]]:
    return [[10.5, -20.5], torch.tensor([30.123, 40.456]).bfloat16().tolist(), [5.0], [6], [70.5]]


def live_in_parameters() -> list[list[float]]:
    return [[1.0, -2.0], [3.0, 4.0], [5.0], [6], [7.0]]


def values(parameters: list[nn.Parameter]) -> list[list[float]]:
    return [tensor.tolist() for tensor in parameters]


def test_showing_goes_by_state_and_not_by_toggling() -> None:
    tracks, parameters = mixed()
    ema = all_bits(tracks.ema_parameters)
    assert not tracks.showing_ema
    tracks.show_live()
    tracks.copy_temp_to(parameters)  # unpaired: the host does it after a save that failed
    assert values(parameters) == live_in_parameters()
    for _ in range(2):
        tracks.show_ema()
        assert values(parameters) == ema_in_parameters()
        assert tracks.showing_ema
    for _ in range(2):
        tracks.show_live()
        assert values(parameters) == live_in_parameters()
        assert not tracks.showing_ema
    assert all_bits(tracks.ema_parameters) == ema


def test_showing_again_copies_nothing(mocker: MockerFixture) -> None:
    tracks, _ = mixed()
    tracks.show_ema()
    copies = mocker.spy(torch.Tensor, "copy_")
    tracks.show_ema()
    assert copies.call_count == 0


@pytest.mark.parametrize("store_temp", [True, False])
def test_the_host_words_for_it_never_lose_the_live_weights(store_temp: bool) -> None:
    tracks, parameters = mixed()
    tracks.copy_ema_to(parameters, store_temp=store_temp)
    assert values(parameters) == ema_in_parameters()
    tracks.copy_temp_to(parameters)
    assert values(parameters) == live_in_parameters()


def test_parameters_stay_the_same_objects_at_the_same_addresses() -> None:
    tracks, parameters = mixed()
    layer = nn.Module()
    for number, tensor in enumerate(parameters):
        layer.register_parameter(f"p{number}", tensor)
    shared = [tensor.data for tensor in parameters]  # as an optimizer or an offloading buffer holds on to it

    def same() -> bool:
        return all(
            held is tensor and held.data_ptr() == data.data_ptr() and type(held) is nn.Parameter
            for held, tensor, data in zip(layer.parameters(), parameters, shared, strict=True)
        )

    tracks.show_ema()
    assert same()
    assert [data.tolist() for data in shared] == ema_in_parameters()
    tracks.show_live()
    assert same()
    assert [data.tolist() for data in shared] == live_in_parameters()


def test_the_live_weights_are_back_after_an_error_inside() -> None:
    tracks, parameters = mixed()
    with pytest.raises(RuntimeError, match="inside"), tracks.exchanged() as shown:
        assert shown is tracks
        assert values(parameters) == ema_in_parameters()
        raise RuntimeError("inside")
    assert values(parameters) == live_in_parameters()


def test_averaging_while_the_average_is_shown_averages_the_live_weights() -> None:
    moving = parameter(1.0)
    tracks = make([moving], decay=0.9)
    moving.data.fill_(11.0)
    tracks.show_ema()
    tracks.step([moving], 0)
    assert moving.item() == 11.0
    assert tracks.average("p0").item() == pytest.approx(10.0)


def test_the_stash_survives_a_parameter_that_moves_in_memory() -> None:
    # The host's layer offloading gives parameters other memory while a sample is made.
    moving = parameter(3.0, dtype=torch.bfloat16)
    tracks = make([moving], initial={"p0": torch.tensor([30.0])})
    tracks.show_ema()
    moving.data = moving.data.clone()
    tracks.show_live()
    assert moving.tolist() == [3.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_in_main_memory_is_exchanged_with_the_gpu(dtype: torch.dtype) -> None:
    trained = nn.Parameter(odd(dtype).cuda())
    average = odd(torch.float32).flip(0).contiguous()
    live, ema = bits(trained), bits(average)
    tracks = make([trained], initial={"p0": average})
    with tracks.exchanged():
        assert bits(trained) != live
    assert (bits(trained), bits(average)) == (live, ema)


READERS: dict[str, Callable[[WeightTracks], object]] = {
    "averages": lambda tracks: list(tracks.averages()),
    "ema_parameters": lambda tracks: tracks.ema_parameters,
    "state_dict": lambda tracks: tracks.state_dict(),
    "load_state_dict": lambda tracks: tracks.load_state_dict(tracks.state_dict()),
    "to": lambda tracks: tracks.to(),
}


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_the_averages_shows_the_live_weights_first(reader: str) -> None:
    tracks, parameters = mixed()
    ema = all_bits(tracks.ema_parameters)
    tracks.show_ema()
    READERS[reader](tracks)
    assert values(parameters) == live_in_parameters()
    assert not tracks.showing_ema
    assert all_bits(tracks.ema_parameters) == ema


def test_a_step_without_an_update_shows_the_live_weights_too() -> None:
    tracks, parameters = mixed()
    tracks.update_step_interval = 10
    tracks.show_ema()
    tracks.step(parameters, 0)
    assert values(parameters) == live_in_parameters()
    assert tracks.updates == 0


# -- interrupts -----------------------------------------------------------------------------------------------

EXCHANGING = frozenset(
    inspect.unwrap(function).__code__
    for function in (WeightTracks.show_ema, WeightTracks.show_live, WeightTracks._swap, WeightTracks._settle)
)


class Interrupt:
    """Raises KeyboardInterrupt at one line (or opcode) of the functions that exchange."""

    def __init__(self, at: int, event: str) -> None:
        self.at = at
        self.event = event
        self.seen = 0

    def during(self, call: Callable[[], object]) -> None:
        previous = sys.gettrace()
        sys._getframe().f_trace_opcodes = self.event == "opcode"  # some versions look only when tracing begins
        sys.settrace(self._trace)
        try:
            call()
        except KeyboardInterrupt:
            assert self.seen == self.at
        finally:
            sys.settrace(previous)

    def _trace(self, frame: FrameType, kind: str, _: object) -> Any:
        if frame.f_code not in EXCHANGING:
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        if kind == self.event:
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self._trace


def at_every_place(scenario: Callable[[Interrupt], None], *, event: str = "line") -> int:
    """Play a scenario with the interrupt one place later each time, until it is not reached any more."""
    for at in itertools.count(1):
        interrupt = Interrupt(at, event)
        scenario(interrupt)
        if interrupt.seen < at:
            break
    return at - 1


@pytest.mark.parametrize("event", ["line", "opcode"])
@pytest.mark.parametrize("direction", ["show_ema", "show_live"])
@pytest.mark.parametrize("then", ["show_live", "show_ema", "the other and back"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["swap", "stash"])
def test_an_interrupt_anywhere_is_made_good_by_the_next_call(
    event: str, direction: str, then: str, dtype: torch.dtype
) -> None:
    def scenario(interrupt: Interrupt) -> None:
        parameters = [nn.Parameter(odd(dtype)), nn.Parameter(odd(dtype)[:3].clone())]
        initial = {"p0": odd(torch.float32).flip(0).contiguous(), "p1": torch.tensor([1.25, float("nan"), -0.0])}
        averages = list(initial.values())
        live, ema = all_bits(parameters), all_bits(averages)
        shown = all_bits(average.to(dtype) for average in averages)
        tracks = make(parameters, initial=initial)
        if direction == "show_live":
            tracks.show_ema()

        interrupt.during(getattr(tracks, direction))

        if then == "show_ema":
            tracks.show_ema()
            assert all_bits(parameters) == shown
        elif then == "the other and back":
            getattr(tracks, "show_live" if direction == "show_ema" else "show_ema")()
            assert all_bits(parameters) == (live if direction == "show_ema" else shown)
            tracks.show_ema()
            assert all_bits(parameters) == shown
        tracks.show_live()
        assert all_bits(parameters) == live
        assert all_bits(averages) == ema
        assert not tracks.showing_ema

    places = at_every_place(scenario, event=event)
    assert places > 12 or (event == "opcode" and sys.version_info[:2] == (3, 12))  # which may not report them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["swap", "stash"])
def test_a_second_interrupt_while_the_first_is_made_good(dtype: torch.dtype) -> None:
    def scenario(interrupt: Interrupt) -> None:
        def inner(second: Interrupt) -> None:
            trained, average = nn.Parameter(odd(dtype)), odd(torch.float32).flip(0).contiguous()
            live, ema = bits(trained), bits(average)
            tracks = make([trained], initial={"p0": average})
            Interrupt(interrupt.at, "line").during(tracks.show_ema)
            second.during(tracks.show_live)
            tracks.show_live()
            assert (bits(trained), bits(average)) == (live, ema)

        interrupt.during(mixed()[0].show_ema)  # only to see when the places end; it has more of them than `inner`
        at_every_place(inner)

    assert at_every_place(scenario) > 12


@pytest.mark.parametrize("direction", ["show_ema", "show_live"])
def test_what_the_host_does_after_an_interrupt_finds_both_sets_as_they_were(direction: str) -> None:
    def scenario(interrupt: Interrupt) -> None:
        tracks, parameters = mixed()
        if direction == "show_live":
            tracks.show_ema()
        interrupt.during(getattr(tracks, direction))
        state = tracks.state_dict()  # its backup
        assert values(parameters) == live_in_parameters()
        assert [average.tolist() for average in state["ema_parameters"]] == [
            [10.5, -20.5],
            [pytest.approx(30.123), pytest.approx(40.456)],
            [5.0],
            [6],
            [70.5],
        ]

    assert at_every_place(scenario) > 12


def test_half_exchanged_weights_are_never_taken_for_the_live_ones() -> None:
    def scenario(interrupt: Interrupt) -> None:
        tracks, parameters = mixed()
        interrupt.during(tracks.show_ema)
        assert tracks.showing_ema or values(parameters) == live_in_parameters()

    assert at_every_place(scenario) > 12
    at_every_place(scenario, event="opcode")


# -- tensors that are not what they seem ------------------------------------------------------------------------


def test_a_tensor_under_two_names_comes_back_bit_for_bit() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    tracks = WeightTracks([("a", weight), ("b", weight)], decay=0.9, device="cpu")
    weight.data.fill_(11.0)
    for _ in range(3):
        with tracks.exchanged():
            assert weight.item() == 1.0
        assert weight.item() == 11.0
    assert [average.item() for average in tracks.ema_parameters] == [1.0, 1.0]


def test_the_state_of_the_tracks_themselves_is_no_alias_of_a_live_weight() -> None:
    weight = nn.Parameter(torch.tensor([1.0]), requires_grad=False)
    tracks = WeightTracks([("frozen", weight)], decay=0.9, device="cpu")
    tracks.load_state_dict(tracks.state_dict())
    weight.data.fill_(11.0)
    assert tracks.ema_parameters[0].item() == 1.0
    with tracks.exchanged():
        assert weight.item() == 1.0
    assert weight.item() == 11.0


def test_weights_of_eight_bits_are_averaged_in_32() -> None:
    weight = nn.Parameter(torch.tensor([1.0]).to(torch.float8_e4m3fn))
    tracks = WeightTracks([("w", weight)], decay=0.9, device="cpu", dtype=None)
    weight.data = torch.tensor([11.0]).to(torch.float8_e4m3fn)
    tracks.step([weight], 0)
    assert tracks.ema_parameters[0].dtype == torch.float32
    assert tracks.ema_parameters[0].item() == pytest.approx(10.0)
    with tracks.exchanged():
        assert weight.float().item() == 10.0
    assert weight.float().item() == 11.0
