"""How long an EMA is, in steps, images and epochs, and the decay that gives that length. Pure arithmetic, no torch.

A half-life H is a stretch of training: what the average held before it counts half after it. An update that is d
further on in training keeps of it::

    decay = 2 ** (-d / H)

With d in images this is the scaling rule of Busbridge et al. 2023 (arXiv 2307.13813, definition 1.2): a batch that
is k times as large makes d, and so the exponent, k times as large, which is their ``decay ** k``. Accumulation,
GPUs and the update interval are the same thing in another place: all of them only change d. The other way round, a
decay has the half-life ``ln 2 / -ln decay`` updates.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

from onetrainer_ema_select.schedule import MAX_DIGITS, warmup_decay

_WRITTEN: Final = re.compile(r"(?P<number>[+-]?[0-9]*\.?[0-9]+)?\s*(?P<unit>epochs?|images?|steps?)", re.IGNORECASE)


class LengthUnit(Enum):
    """What a half-life counts."""

    EPOCHS = "epochs"
    IMAGES = "images"
    STEPS = "steps"


@dataclass(frozen=True)
class HalfLife:
    """A half-life as it was asked for; the amount is more than 0, and whole but for epochs."""

    amount: float
    unit: LengthUnit

    @property
    def name(self) -> str:
        """The one way to write it, which `parse_half_life` reads back."""
        return f"{Decimal(str(self.amount)):f} {self.unit.value[:-1] if self.amount == 1 else self.unit.value}"

    def steps(self, *, images_per_step: int, steps_per_epoch: int | None) -> float | None:
        """Return it in OneTrainer's steps, one batch on every GPU; None while an epoch's length is not known."""
        if self.unit is LengthUnit.STEPS:
            return float(self.amount)
        if self.unit is LengthUnit.IMAGES:
            return self.amount / images_per_step
        return self.amount * steps_per_epoch if steps_per_epoch else None


def parse_half_life(text: str) -> HalfLife | None:
    """Read a half-life such as ``2 epochs``, ``0.5 epochs``, ``5000 images`` or ``800 steps``.

    Singular and plural, upper and lower case, missing or additional spaces and full-width characters are accepted.

    Returns:
        None for an empty text.

    Raises:
        ValueError: It cannot be read; the message says why.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).split())
    if not words:
        return None
    match = _WRITTEN.fullmatch(words)
    if match is None:
        if re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+", words):
            raise ValueError("there is no unit (epochs, images or steps)")
        raise ValueError("no length can be read")
    if match["number"] is None:
        raise ValueError("there is no number")
    if len(match["number"]) > MAX_DIGITS:
        raise ValueError(f"there is a number of more than {MAX_DIGITS} digits")
    value = Decimal(match["number"])
    unit = LengthUnit(match["unit"].lower().rstrip("s") + "s")
    if value <= 0:
        raise ValueError("the number is not more than 0")
    if unit is not LengthUnit.EPOCHS and value != int(value):
        raise ValueError(f"the number of {unit.value} is not whole")
    return HalfLife(int(value) if value == int(value) else float(value), unit)


def decay_over(steps: float, half_life: float) -> float:
    """Return the decay of an update that is ``steps`` further on: ``2 ** (-steps / half_life)``."""
    return math.pow(2.0, -steps / half_life)


def half_life_of(decay: float, steps: float) -> float:
    """Return the half-life of a decay whose updates are ``steps`` apart, in steps: ``ln 2 / -ln decay * steps``.

    Endless for a decay of 1 or more, 0 for one of 0 or less, which keeps nothing.
    """
    if decay >= 1:
        return math.inf
    return math.log(2) / -math.log(decay) * steps if decay > 0 else 0.0


class Pace:
    """Gives each update of an average the weight that a half-life asks for, however far apart the updates are.

    The average begins with nothing: what the model was before is left out of it, and as long as it is young it is
    the mean of the run so far, later steps counting more. After t half-lives the weights of all steps sum to
    1 - 2 ** -t, which they are divided by; so an image counts ``2 ** (-age in half-lives)`` from the first update
    on, without a warm-up. (The division is that of Adam's bias correction, Kingma and Ba 2015, arXiv 1412.6980,
    section 3, in training time.) An average that is taken over from elsewhere counts as endlessly old.

    Attributes:
        interval: Optimizer steps from one update to the next.
        accumulation: Batches of an optimizer step.
        at_step: OneTrainer's step that the average has come to.
        age: Half-lives that it is old, None for endlessly.
    """

    def __init__(
        self,
        half_life: Callable[[], float],
        *,
        interval: int,
        accumulation: int,
        at_step: int,
        age: float | None,
    ) -> None:
        """Begin, or go on.

        Args:
            half_life: Returns the half-life in steps; asked at every update, as an epoch may change its length.
            interval: Optimizer steps from one update to the next.
            accumulation: Batches of an optimizer step.
            at_step: Steps done when the average begins, or was updated last.
            age: Its age then: 0 for a new one, None for one that was made otherwise.
        """
        self._half_life = half_life
        self.interval = interval
        self.accumulation = accumulation
        self.at_step = at_step
        self.age = age

    @property
    def steps_per_update(self) -> int:
        """Steps from one update to the next."""
        return self.interval * self.accumulation

    def decay(self) -> float:
        """Return the decay of an update of an old average that is a whole interval after the last one."""
        return decay_over(self.steps_per_update, self._half_life())

    def weight(self, optimization_step: int) -> float:
        """Return the new weights' share in the average if it is updated at this optimizer step (0-based)."""
        passed = self._passed(optimization_step)
        kept = -math.expm1(-math.log(2) * passed)
        if self.age is None:
            return kept
        return kept / -math.expm1(-math.log(2) * (self.age + passed))

    def advance(self, optimization_step: int) -> None:
        """Note that the average was updated at this optimizer step (0-based)."""
        if self.age is not None:
            self.age += self._passed(optimization_step)
        self.at_step = self._step(optimization_step)

    def _step(self, optimization_step: int) -> int:
        # OneTrainer steps its optimizer after every `accumulation` batches, counted from the run's beginning.
        return (optimization_step + 1) * self.accumulation

    def _passed(self, optimization_step: int) -> float:
        """Half-lives since the last update: counted, as a run may be resumed, or an update fail, between two."""
        return max(self._step(optimization_step) - self.at_step, 1) / self._half_life()


@dataclass(frozen=True)
class Length:
    """A stretch of training. None for what is not known; steps are OneTrainer's."""

    steps: float
    images: float | None = None
    epochs: float | None = None

    @property
    def text(self) -> str:
        """As in ``800 steps (3,200 images, 2 epochs)``."""
        if math.isinf(self.steps):
            return "endless"
        more = [
            f"{amount(value)} {unit}"
            for value, unit in ((self.images, "images"), (self.epochs, "epochs"))
            if value is not None
        ]
        return f"{amount(self.steps)} steps" + (f" ({', '.join(more)})" if more else "")


def amount(value: float) -> str:
    """Return a number for people: three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Average:
    """What the length of an average comes from.

    Attributes:
        decay: Of an update; where it is OneTrainer's, what its warm-up rises to.
        update_step_interval: Optimizer steps from one update to the next.
        typed: The half-life that was asked for, as text; empty for OneTrainer's decay.
        accumulation: Batches of an optimizer step.
        images_per_step: Of a batch on every GPU; None where it is not known.
        steps_per_epoch: None where it is not known.
    """

    decay: float
    update_step_interval: int
    typed: str = ""
    accumulation: int = 1
    images_per_step: int | None = None
    steps_per_epoch: int | None = None

    @property
    def steps_per_update(self) -> int:
        """Steps from one update to the next."""
        return self.update_step_interval * self.accumulation

    @property
    def half_life(self) -> Length:
        """The half-life that it has, with OneTrainer's decay once the warm-up is over."""
        return self._length(self.decay)

    def half_life_at(self, step: int) -> Length:
        """The half-life that it has come to after so many steps, warm-up and all."""
        if self.typed:
            return self.half_life
        return self._length(warmup_decay(max(step // self.accumulation - 1, 0), self.decay))

    def warnings(self, *, run_steps: int | None) -> tuple[str, ...]:
        """What is wrong with it, a sentence each.

        Args:
            run_steps: Steps of the whole run; None where it is not known.
        """
        length, every = self.half_life, self.steps_per_update
        if run_steps is not None and every > run_steps:
            return (
                f"The EMA is updated every {every:,} steps, and this run has {run_steps:,}: it is never updated. Lower "
                "ema_update_step_interval.",
            )
        if length.steps < every:
            return (
                f"The EMA's half-life, {length.text}, is shorter than the {every:,} steps from one update to the "
                f"next: the two sets can hardly differ. {self._advice('longer')}",
            )
        if run_steps is None or length.steps <= run_steps:
            return ()
        if self.typed:
            what = "the EMA will be little else than the mean of all its steps"
        else:
            end = self.half_life_at(run_steps)
            what = f"OneTrainer's warm-up holds it to {end.text} at the end"
        return (
            f"The EMA's half-life, {length.text}, is longer than this run of {run_steps:,} steps: {what}. "
            f"{self._advice('shorter')}",
        )

    def _advice(self, which: str) -> str:
        return f"For a {which} one, set ema_select.ema_half_life, for example to 1 epochs."

    def _length(self, decay: float) -> Length:
        steps = half_life_of(decay, self.steps_per_update)
        if math.isinf(steps):
            return Length(steps)
        return Length(
            steps,
            None if self.images_per_step is None else steps * self.images_per_step,
            None if not self.steps_per_epoch else steps / self.steps_per_epoch,
        )
