"""Half-lives: the averages that they make against a closed form in float64, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from onetrainer_ema_select.length import (
    Average,
    HalfLife,
    LengthUnit,
    Pace,
    decay_over,
    half_life_of,
    parse_half_life,
)
from onetrainer_ema_select.tracks import WeightTracks

IMAGES = 24_000
HALF_LIFE = 2_400.0


def weights_at(images: float) -> torch.Tensor:
    """Weights that fall, swing and wander while images are seen."""
    t = images / IMAGES
    return torch.tensor(
        [3 * math.exp(-2 * t), math.sin(9 * t), t, math.cos(40 * t) + t, 1 + 0.3 * math.sin(100 * t)],
        dtype=torch.float64,
    )


def run(half_life: Callable[[], float], *, interval: int = 1, batch: int = 1, accumulation: int = 1,
        step: int = 0, images: int = IMAGES, state: Any = None, dtype: torch.dtype = torch.float64) -> Any:  # fmt: skip
    """Train on the same images: the optimizer steps after `accumulation` batches, and the tracks are told."""
    age, at_step, average = state or (0.0, 0, None)
    parameter = weights_at(step * batch).to(dtype)
    pace = Pace(half_life, interval=interval, accumulation=accumulation, at_step=at_step, age=age)
    initial = None if average is None else {"w": average.clone()}
    tracks = WeightTracks([("w", parameter.requires_grad_())], decay=0.5, device="cpu", dtype=dtype,
                          update_step_interval=interval, initial=initial, pace=pace)  # fmt: skip
    for batches in range(step + 1, images // batch + 1):
        if batches % accumulation == 0:
            with torch.no_grad():
                parameter.copy_(weights_at(batches * batch))
            tracks.step([parameter], batches // accumulation - 1)
    return tracks, pace


def closed_form(half_life: float, *, every: int) -> torch.Tensor:
    """The mean of the weights after every so many images, each counting 2 ** -(its age in half-lives)."""
    points = range(every, IMAGES + 1, every)
    shares = [2.0 ** (-(IMAGES - point) / half_life) for point in points]
    total = sum(share * weights_at(point) for share, point in zip(shares, points, strict=True))
    return total / sum(shares)  # type: ignore[return-value]


# interval, batch, accumulation
CASES = {
    "plain": (1, 1, 1),
    "interval": (5, 1, 1),
    "batch": (1, 4, 1),
    "accumulation": (1, 1, 4),
    "all": (5, 4, 4),
}


@pytest.fixture(scope="module")
def averages() -> dict[str, torch.Tensor]:
    found = {}
    for name, (interval, batch, accumulation) in CASES.items():
        half_life = HalfLife(int(HALF_LIFE), LengthUnit.IMAGES).steps(images_per_step=batch, steps_per_epoch=None)
        assert half_life is not None
        tracks, _ = run(lambda h=half_life: h, interval=interval, batch=batch, accumulation=accumulation)
        found[name] = tracks.average("w")
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_average_is_its_closed_form(averages: dict[str, torch.Tensor], name: str) -> None:
    expected = closed_form(HALF_LIFE, every=math.prod(CASES[name]))
    assert float((averages[name] - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("name", list(CASES)[1:])
def test_the_same_half_life_gives_the_same_average(averages: dict[str, torch.Tensor], name: str) -> None:
    lag = float((averages["plain"] - weights_at(IMAGES)).norm())
    apart = float((averages[name] - averages["plain"]).norm()) / lag
    print(f"{name}: {apart:.5f} of the distance from the last weights")
    assert apart <= 0.02


def test_the_uncompensated_decay_would_not(averages: dict[str, torch.Tensor]) -> None:
    # otherwise the last test would prove nothing
    tracks, _ = run(lambda: HALF_LIFE * 5, interval=5)
    lag = float((averages["plain"] - weights_at(IMAGES)).norm())
    assert float((tracks.average("w") - averages["plain"]).norm()) / lag > 0.2


@pytest.mark.parametrize("resumed_at", [8_000, 8_003])
def test_a_resumed_average_is_the_uninterrupted_one(resumed_at: int) -> None:
    whole, _ = run(lambda: HALF_LIFE, interval=5, dtype=torch.float32)
    first, pace = run(lambda: HALF_LIFE, interval=5, images=resumed_at, dtype=torch.float32)
    state = (pace.age, pace.at_step, first.average("w"))
    second, _ = run(lambda: HALF_LIFE, interval=5, step=resumed_at, state=state, dtype=torch.float32)
    assert torch.equal(whole.average("w"), second.average("w"))


def test_batch_and_interval_may_change_on_resume(averages: dict[str, torch.Tensor]) -> None:
    first, pace = run(lambda: HALF_LIFE / 4, batch=4, images=8_000)
    # From here on one image a batch: OneTrainer goes on counting its steps, of which there were 2,000.
    shift = 6_000
    second = Pace(lambda: HALF_LIFE, interval=5, accumulation=1, at_step=pace.at_step, age=pace.age)
    average = first.average("w").clone()
    for step in range(2_000, IMAGES - shift):
        if (step + 1) % 5 == 0:
            average.lerp_(weights_at(step + 1 + shift), second.weight(step))
            second.advance(step)
    lag = float((averages["plain"] - weights_at(IMAGES)).norm())
    assert float((average - averages["plain"]).norm()) / lag <= 0.02


def test_an_update_that_failed_counts_with_the_next() -> None:
    def pace() -> Pace:
        return Pace(lambda: 10.0, interval=1, accumulation=2, at_step=0, age=None)

    one = pace()
    assert one.weight(0) == pytest.approx(1 - 0.5 ** (2 / 10))
    assert one.weight(1) == pytest.approx(1 - 0.5 ** (4 / 10))
    one.advance(0)
    assert one.weight(1) == pytest.approx(1 - 0.5 ** (2 / 10))
    assert (pace().decay(), one.age) == (pytest.approx(0.5 ** (2 / 10)), None)


def test_a_new_average_forgets_the_start() -> None:
    assert Pace(lambda: 1e9, interval=3, accumulation=2, at_step=0, age=0.0).weight(2) == 1.0


def test_the_scaling_rule_of_busbridge() -> None:
    # Definition 1.2: a batch k times as large has the decay ** k.
    for k in (2, 5, 64):
        assert decay_over(k, 693.0) == pytest.approx(decay_over(1, 693.0) ** k, rel=1e-14)
    assert 0.999 ** half_life_of(0.999, 1) == pytest.approx(0.5, rel=1e-12)
    assert half_life_of(0.999, 5) == pytest.approx(5 * 692.80, rel=1e-5)
    assert (half_life_of(1.0, 5), half_life_of(0.0, 5)) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("text", "amount", "unit", "name"),
    [
        ("2 epochs", 2, LengthUnit.EPOCHS, "2 epochs"),
        ("1epoch", 1, LengthUnit.EPOCHS, "1 epoch"),
        (" .5  Epochs ", 0.5, LengthUnit.EPOCHS, "0.5 epochs"),
        ("\uff15\uff10\uff10\uff10 images", 5000, LengthUnit.IMAGES, "5000 images"),
        ("800 STEP", 800, LengthUnit.STEPS, "800 steps"),
    ],
)
def test_what_is_read(text: str, amount: float, unit: LengthUnit, name: str) -> None:
    found = parse_half_life(text)
    assert found == HalfLife(amount, unit)
    assert found is not None and found.name == name
    assert parse_half_life(found.name) == found


def test_in_steps() -> None:
    def steps(text: str, length: int | None = 50) -> float | None:
        found = parse_half_life(text)
        return None if found is None else found.steps(images_per_step=8, steps_per_epoch=length)

    assert [steps("2 epochs"), steps("4000 images"), steps("7 steps")] == [100, 500, 7]
    assert (steps("2 epochs", None), steps("")) == (None, None)


def test_lengths_and_what_is_wrong_with_them() -> None:
    own = Average(0.999, 5, accumulation=2, images_per_step=4, steps_per_epoch=100)
    assert own.half_life.text == "6,928 steps (27,712 images, 69.3 epochs)"
    # After 1,000 steps, 500 of the optimizer: (1 + 499) / (10 + 499), whose half-life is 38.86 updates of 10 steps.
    assert own.half_life_at(1_000).steps == pytest.approx(10 * math.log(2) / -math.log(500 / 509))
    (longer,) = own.warnings(run_steps=1_000)
    assert "longer than this run of 1,000 steps: OneTrainer's warm-up holds it to 389 steps" in longer
    assert own.warnings(run_steps=10_000) == own.warnings(run_steps=None) == ()
    (short,) = Average(0.3, 5).warnings(run_steps=1_000)
    assert "shorter than the 5 steps from one update to the next: the two sets can hardly differ" in short
    (never,) = Average(0.9, 50, accumulation=4).warnings(run_steps=100)
    assert "every 200 steps, and this run has 100: it is never updated" in never
    typed = Average(decay_over(1, 2_000), 1, typed="2000 steps")
    assert typed.half_life_at(3).steps == pytest.approx(2_000)
    assert "the mean of all its steps" in typed.warnings(run_steps=100)[0]
    assert Average(1.0, 1).half_life.text == "endless"
