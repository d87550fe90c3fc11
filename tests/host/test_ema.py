from __future__ import annotations

import pytest
import torch
from pytest_mock import MockerFixture
from torch import nn

from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.tracks import WeightTracks


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0]))


@pytest.fixture
def failures() -> list[tuple[int, Exception]]:
    return []


@pytest.fixture
def ema(weight: nn.Parameter, failures: list[tuple[int, Exception]]) -> HostEma:
    tracks = WeightTracks([("w", weight)], decay=0.9, device="cpu")
    weight.data.fill_(11.0)
    return HostEma(tracks, failed=lambda step, error: failures.append((step, error)))


def test_the_host_asks_for_it_by_truthiness(ema: HostEma) -> None:
    assert ema


def test_a_save_never_touches_the_live_weight(ema: HostEma, weight: nn.Parameter) -> None:
    version = weight._version
    ema.copy_ema_to([weight], store_temp=True)
    assert weight.item() == 11.0
    ema.copy_temp_to([weight])
    assert (weight.item(), weight._version) == (11.0, version)


def test_a_sample_is_made_with_the_set_that_was_asked_for(ema: HostEma, weight: nn.Parameter) -> None:
    ema.before_sample()
    assert weight.item() == 11.0
    ema.copy_ema_to([weight])
    for _ in range(2):
        ema.before_sample()
        assert weight.item() == 1.0
    ema.copy_temp_to([weight])
    assert weight.item() == 11.0
    ema.before_sample()
    assert weight.item() == 11.0


def test_settling_forgets_what_was_wanted(ema: HostEma, weight: nn.Parameter) -> None:
    ema.copy_ema_to([weight])
    ema.before_sample()
    ema.settle()
    assert weight.item() == 11.0
    ema.before_sample()
    assert weight.item() == 11.0


def test_it_averages_and_speaks_the_hosts_language(ema: HostEma, weight: nn.Parameter) -> None:
    ema.step([weight], 0)
    assert ema.get_current_decay(0) == pytest.approx(0.1)
    assert ema.decay == 0.9
    assert ema.ema_parameters[0].item() == pytest.approx(10.0)
    state = ema.state_dict()
    assert state["decay"] == 0.9
    ema.load_state_dict({"decay": 0.9, "ema_parameters": [torch.tensor([5.0])]})
    assert ema.ema_parameters[0].item() == 5.0
    ema.to(dtype=torch.float64)
    assert ema.ema_parameters[0].dtype == torch.float64


def test_an_update_that_fails_is_told_and_ends_nothing(
    ema: HostEma, weight: nn.Parameter, failures: list[tuple[int, Exception]]
) -> None:
    ema.step([], 7)
    ((step, error),) = failures
    assert step == 7
    assert isinstance(error, ValueError)
    ema.step([weight], 8)
    assert len(failures) == 1


def test_an_interrupt_is_no_failure(ema: HostEma, weight: nn.Parameter, failures: list, mocker) -> None:
    mocker.patch.object(ema.tracks, "step", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ema.step([weight], 0)
    assert failures == []


def test_a_run_that_cannot_have_its_own_weights_back_does_not_go_on(
    ema: HostEma, weight: nn.Parameter, failures: list[tuple[int, Exception]], mocker: MockerFixture
) -> None:
    ema.copy_ema_to([weight])
    ema.before_sample()
    mocker.patch.object(WeightTracks, "show_live", side_effect=RuntimeError("device lost"))
    with pytest.raises(RuntimeError, match="device lost"):
        ema.step([weight], 1)
    assert failures == []


def test_what_a_newer_host_passes_besides_does_no_harm(ema: HostEma, weight: nn.Parameter) -> None:
    ema.copy_ema_to([weight], True, non_blocking=True)
    ema.copy_temp_to([weight], non_blocking=True)
    ema.step([weight], 0, scale=1.0)
    assert ema.get_current_decay(0, 5) == pytest.approx(0.1)
