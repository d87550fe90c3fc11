"""A validation watched and repeated with the EMA: against a second model that holds the EMA, and random numbers."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onetrainer_ema_select.host.random_state import RandomState
from onetrainer_ema_select.host.validation_pass import ValidationPass, concept_labels
from onetrainer_ema_select.tracks import WeightTracks

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]


class Model(nn.Module):
    """Draws from every random state that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        noise = float(np.random.rand()) + random.random()
        return self.layers(x) * noise


class Setup:
    """In the place of OneTrainer's model setup."""

    def __init__(self) -> None:
        self.debug_mode = True
        self.calls: list[tuple[bool, bool, str]] = []
        self.fail_at: dict[int, BaseException] = {}

    def predict(self, model: Any, batch: dict, config: Any, train_progress: Any, *, deterministic: bool = False) -> Any:
        self.calls.append((self.debug_mode, deterministic, f"{config} {train_progress}"))
        if error := self.fail_at.get(len(self.calls)):
            raise error
        target = batch.pop("target")  # no setup does; a copy is kept all the same
        dtype = next(model.parameters()).dtype
        return {"predicted": model(batch["extra"][0].to(dtype)).float(), "target": target}

    def calculate_loss(self, model: Any, batch: dict, data: dict, config: Any) -> Tensor:
        del model, batch, config
        return nn.functional.mse_loss(data["predicted"], data["target"])


def batches(count: int, device: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "extra": [torch.randn(1, 6, generator=generator).to(device)],
            "target": torch.randn(1, 6, generator=generator).to(device),
            "concept_name": ["" if number % 2 else "named"],
            "concept_path": ["somewhere/else"],
            "concept_seed": torch.tensor([number % 2]),
        }
        for number in range(count)
    ]


def host_validation(setup: Setup, model: Any, data: list[dict[str, Any]]) -> list[float]:
    """As OneTrainer goes through it."""
    losses = []
    for batch in data:
        batch = dict(batch)
        with torch.no_grad():
            output = setup.predict(model, batch, "config", "progress", deterministic=True)
            losses.append(setup.calculate_loss(model, batch, output, "config").item())
    return losses


def seed() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def same_random(one: RandomState, other: RandomState) -> bool:
    devices = [(state, other.devices[name]) for name, state in one.devices.items()]
    return (
        torch.equal(one.cpu, other.cpu)
        and all(torch.equal(a, b) for pair in devices for a, b in zip(*pair, strict=True))
        and one.python == other.python
        and all(np.array_equal(a, b) for a, b in zip(one.numpy, other.numpy, strict=True))
    )


class Case:
    """A model that has trained a little, its tracks, and what a plain validation of both sets gives."""

    def __init__(self, *, device: str = "cpu", dtype: torch.dtype = torch.float32, count: int = 5) -> None:
        torch.manual_seed(0)
        self.model = Model().to(device, dtype)
        self.tracks = WeightTracks(self.model.named_parameters(), decay=0.5, device="cpu")
        for step in range(3):
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
            self.tracks.step(self.model.parameters(), step)
        self.live = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.data = batches(count, device)
        self.setup = Setup()
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(self.tracks.average(name))
        seed()
        self.expected = host_validation(Setup(), self.model, self.data)
        self.after = RandomState.now()
        # every batch of the other model begins at the random state that it has in the first
        self.ema = []
        seed()
        for batch in self.data:
            before = RandomState.now()
            self.ema += host_validation(Setup(), other, [batch])
            before.restore()
            host_validation(Setup(), self.model, [batch])
        assert all(one != two for one, two in zip(self.expected, self.ema, strict=True))

    def watched(self, **options: Any) -> ValidationPass:
        """A pass over it all."""
        return ValidationPass(self.setup, self.tracks, **options)

    def untouched(self) -> bool:
        """Whether the live weights are in the model and the random states as a plain validation leaves them."""
        weights = zip(self.model.parameters(), self.live, strict=True)
        return all(torch.equal(one, two) for one, two in weights) and same_random(RandomState.now(), self.after)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept_bytes", [10**9, 60_000, 0])
def test_the_losses_are_those_of_a_model_that_holds_the_ema(device: str, dtype: torch.dtype, kept_bytes: int) -> None:
    case = Case(device=device, dtype=dtype)
    watched = case.watched(kept_bytes=kept_bytes)
    seed()
    with watched.watching():
        assert host_validation(case.setup, case.model, case.data) == case.expected
    # 48 bytes of pictures a batch and 8 of the concept's seed
    assert len(watched.ema) == {10**9: 0, 60_000: 4, 0: 5}[kept_bytes]
    watched.repeat(case.model)
    assert watched.error is None
    assert watched.ema == case.ema
    assert [loss.item() for loss in watched.non_ema] == case.expected
    assert case.untouched()
    # The same arguments; and the pictures of the debug mode are left to the live weights.
    assert {call[1:] for call in case.setup.calls} == {(True, "config progress")}
    assert sum(call[0] for call in case.setup.calls) == len(case.data)
    assert case.setup.debug_mode
    assert not {"predict", "calculate_loss"} & set(vars(case.setup))


def test_nothing_is_repeated_where_no_validation_was_due() -> None:
    case = Case()
    watched = case.watched()
    with watched.watching():
        pass
    watched.repeat(case.model)
    assert (watched.ema, watched.non_ema, watched.error, case.setup.calls) == ([], [], None, [])


@pytest.mark.parametrize("kept_bytes", [10**9, 60_000])
def test_a_failure_of_the_second_pass_is_kept_and_changes_nothing(kept_bytes: int) -> None:
    case = Case()
    case.setup.fail_at = {7 if kept_bytes > 60_000 else 4: RuntimeError("out of memory")}
    watched = case.watched(kept_bytes=kept_bytes)
    seed()
    with watched.watching():
        assert host_validation(case.setup, case.model, case.data) == case.expected
    watched.repeat(case.model)
    assert str(watched.error) == "out of memory"
    assert len(watched.ema) == 1
    assert case.untouched()


@pytest.mark.parametrize("kept_bytes", [10**9, 60_000])
def test_ctrl_c_in_the_second_pass_leaves_the_live_weights(kept_bytes: int) -> None:
    case = Case()
    case.setup.fail_at = {7 if kept_bytes > 60_000 else 4: KeyboardInterrupt()}
    watched = case.watched(kept_bytes=kept_bytes)
    seed()
    with pytest.raises(KeyboardInterrupt), watched.watching():
        host_validation(case.setup, case.model, case.data)
        watched.repeat(case.model)
    assert not case.tracks.showing_ema
    assert all(torch.equal(one, two) for one, two in zip(case.model.parameters(), case.live, strict=True))
    assert not {"predict", "calculate_loss"} & set(vars(case.setup))
    assert case.setup.debug_mode
    if kept_bytes > 60_000:
        assert case.untouched()


def test_a_batch_that_cannot_be_noted_does_not_end_the_validation() -> None:
    case = Case()
    del case.data[2]["concept_seed"]
    watched = case.watched()
    seed()
    with watched.watching():
        assert host_validation(case.setup, case.model, case.data) == case.expected
    watched.repeat(case.model)
    assert isinstance(watched.error, KeyError)
    assert watched.ema == []
    assert case.untouched()


def test_what_else_was_wrapped_on_the_setup_is_wrapped_again() -> None:
    case = Case()
    other = case.setup.predict
    case.setup.predict = other  # type: ignore[method-assign]
    with case.watched().watching():
        assert case.setup.predict is not other
    assert vars(case.setup)["predict"] is other
    assert "calculate_loss" not in vars(case.setup)


def test_live_weights_that_cannot_come_back_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    watched = case.watched()
    with watched.watching():
        host_validation(case.setup, case.model, case.data)

    def broken() -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(case.tracks, "show_live", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        watched.repeat(case.model)


def test_concepts_are_labelled_as_in_onetrainers_tensorboard() -> None:
    concepts = [
        ("cats", "/data/cats", 1),
        ("", "/data/dogs", 2),
        ("cats", "/other/cats", 3),
        ("cats", "/data/cats", 1),
        ("", "/third/cats", 4),
        ("cats(1)", "/x", 5),
    ]
    assert concept_labels(concepts) == ["cats", "dogs", "cats(1)", "cats", "cats(2)", "cats(1)(1)"]


def test_random_states_come_back() -> None:
    seed()
    before = RandomState.now()
    drawn = [torch.rand(3), np.random.rand(3), random.random()]
    assert not same_random(before, RandomState.now())
    before.restore()
    assert same_random(before, RandomState.now())
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.array_equal(np.random.rand(3), drawn[1])
    assert random.random() == drawn[2]


@pytest.mark.parametrize("free", [10**6, 0, None])
def test_live_weights_that_find_no_room_are_not_put_aside(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr("onetrainer_ema_select.host.validation_pass.free_memory", lambda: free)
    case = Case(dtype=torch.bfloat16)
    assert case.tracks.stash_nbytes == sum(2 * parameter.numel() for parameter in case.model.parameters())
    watched = case.watched()
    seed()
    with watched.watching():
        assert host_validation(case.setup, case.model, case.data) == case.expected
    watched.repeat(case.model)
    assert case.untouched()
    if free == 0:
        assert not watched.ema
        assert str(watched.error).startswith("The live weights have to be kept aside meanwhile, which takes 0.0 GB of ")
        assert str(watched.error).endswith("or set ema_select.ema_dtype to PARAMETER, which needs none.")
    else:
        assert watched.ema == case.ema


def test_weights_of_the_average_s_own_dtype_need_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrainer_ema_select.host.validation_pass.free_memory", lambda: 0)
    case = Case()
    assert case.tracks.stash_nbytes == 0
    watched = case.watched()
    seed()
    with watched.watching():
        host_validation(case.setup, case.model, case.data)
    watched.repeat(case.model)
    assert watched.ema == case.ema
