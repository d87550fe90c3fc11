"""When things happen in a run: EMA decay and interval, and milestones. Pure arithmetic, no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction

PIECE = re.compile(
    r"(?P<every>every\b)?\s*(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?)?\s*(?P<unit>epochs?|steps?|%)",
    re.IGNORECASE,
)
# Longer numbers are typing errors, and Python refuses to convert very long ones with a message of its own.
MAX_DIGITS = 12


def warmup_decay(optimization_step: int, decay: float) -> float:
    """Return the decay of OneTrainer's EMA at an update: ``min((1 + k) / (10 + k), decay)``.

    Args:
        optimization_step: The number k of the optimizer step, from 0.
        decay: The decay that is reached in the end.
    """
    return min((1 + optimization_step) / (10 + optimization_step), decay)


def is_update_step(optimization_step: int, interval: int) -> bool:
    """Return whether OneTrainer's EMA is updated at an optimizer step: the last one of each interval.

    Args:
        optimization_step: The number of the optimizer step, from 0.
        interval: Optimizer steps from one update to the next, at least 1.

    Raises:
        ValueError: The interval is less than 1.
    """
    if interval < 1:
        raise ValueError(f"the EMA update interval must be 1 or more, found {interval}")
    return (optimization_step + 1) % interval == 0


class Unit(Enum):
    """What a milestone counts."""

    EPOCHS = "epochs"
    STEPS = "steps"
    PERCENT = "%"


@dataclass(frozen=True)
class Milestone:
    """A point of a run, or with ``repeating`` every multiple of one.

    Attributes:
        unit: What is counted; percent is of the whole run's length.
        amount: Whole and positive; percent may have decimals, more than 0 and at most 100.
        repeating: Due at every multiple of the amount; never with percent.
    """

    unit: Unit
    amount: int | float
    repeating: bool = False

    @property
    def name(self) -> str:
        """The one way to write it, which `parse_milestones` reads back."""
        if self.repeating:
            return f"every {self.unit.value[:-1] if self.amount == 1 else self.point(self.amount)}"
        return self.point(self.amount)

    def point(self, amount: int | float) -> str:
        """Return an amount with this milestone's unit."""
        if self.unit is Unit.PERCENT:
            # Decimal, because a small float would be written as 1e-05.
            return f"{Decimal(str(amount)):f}%"
        return f"{amount} {self.unit.value[:-1] if amount == 1 else self.unit.value}"


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        global_step: Steps done; a step is OneTrainer's, one batch.
        epoch: Epochs finished.
        epoch_step: Steps done in the epoch that is under way.
    """

    global_step: int
    epoch: int
    epoch_step: int


@dataclass(frozen=True)
class DueMilestone:
    """A milestone that was reached.

    Attributes:
        milestone: Which one.
        occurrence: Where, in the milestone's unit: for one that repeats the multiple, else its amount.
    """

    milestone: Milestone
    occurrence: int | float

    @property
    def name(self) -> str:
        """Different for every occurrence: ``10 epochs``, ``every 500 steps @ 1500 steps``."""
        if self.milestone.repeating:
            return f"{self.milestone.name} @ {self.milestone.point(self.occurrence)}"
        return self.milestone.name


def is_repeating(name: str) -> bool:
    """Whether the name of a milestone that is due is that of a repeating one."""
    return name.startswith("every ")


def parse_milestones(text: str) -> tuple[Milestone, ...]:
    """Read a comma-separated list such as ``10 epochs, 4000 steps, 25%, every 500 steps``.

    Singular and plural, upper and lower case, missing or additional spaces and full-width characters are
    all accepted; empty pieces are passed over, and a milestone written twice counts once.

    Returns:
        The milestones in the order they were written.

    Raises:
        ValueError: Some pieces cannot be read; the message names each of them with the reason.
    """
    milestones: dict[Milestone, None] = {}
    problems: list[str] = []
    for piece in unicodedata.normalize("NFKC", text).split(","):
        words = " ".join(piece.split())
        if not words:
            continue
        parsed = parse_piece(words)
        if isinstance(parsed, Milestone):
            milestones[parsed] = None
        else:
            problems.append(f'"{words}" {parsed}')
    if problems:
        raise ValueError(", ".join(problems))
    return tuple(milestones)


def parse_interval(text: str) -> Milestone | None:
    """Read how often something comes: ``200 steps``, ``1 epochs``; an ``every`` before it is accepted.

    Returns:
        The repeating point; None for an empty text.

    Raises:
        ValueError: It cannot be read; the message says why.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).split())
    if not words:
        return None
    if "," in words:
        raise ValueError("there is more than one interval")
    if words.endswith("%"):
        raise ValueError(f'"{words}" is a share of the run, not an interval (write epochs or steps)')
    parsed = parse_piece(words if is_repeating(words.lower()) else f"every {words}")
    if isinstance(parsed, Milestone):
        return parsed
    if re.fullmatch(r"[0-9]+", words):
        parsed = "has no unit (epochs or steps)"
    raise ValueError(f'"{words}" {parsed.replace("a milestone", "an interval")}')


def parse_piece(words: str) -> Milestone | str:
    """Read one piece of a list of milestones; return what is wrong with it if it cannot be read."""
    match = PIECE.fullmatch(words)
    if match is None:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", words):
            return "has no unit (epochs, steps or %)"
        return "is not a milestone"
    repeating = match["every"] is not None
    if match["number"] is None and (not repeating or match["unit"] == "%"):
        return "has no number"
    number = match["number"] or "1"
    if len(number) > MAX_DIGITS:
        return f"has a number of more than {MAX_DIGITS} digits"
    unit = Unit.PERCENT if match["unit"] == "%" else Unit(match["unit"].lower().rstrip("s") + "s")
    value = Decimal(number)
    if unit is Unit.PERCENT:
        if repeating:
            return "repeats a percentage (write out the points, as in 25%, 50%, 75%)"
        if not 0 < value <= 100:
            return "is not more than 0% and at most 100%"
    elif value != int(value) or value < 1:
        return "is not a whole number of 1 or more"
    return Milestone(unit, int(value) if value == int(value) else float(value), repeating)


def due_milestones(
    milestones: Iterable[Milestone],
    *,
    previous: Position,
    current: Position,
    epoch_length: int,
    epochs: int,
) -> tuple[DueMilestone, ...]:
    """Return the milestones that were reached after ``previous`` and not later than ``current``.

    OneTrainer reports its progress after every step and once more after every epoch, with the epoch counted
    and its steps back at 0. Both are the same point of the run, so nothing is due twice.

    Args:
        milestones: As from `parse_milestones`.
        previous: The position of the last call; when a run is resumed, the one it is resumed at.
        current: The position now.
        epoch_length: Steps in an epoch. OneTrainer only estimates it: steps beyond it count as its last one.
        epochs: Epochs of the whole run.

    Returns:
        In the order of ``milestones``, occurrences of a repeating one from the earliest on.
    """

    def progress(position: Position) -> Fraction:
        """Return how many epochs are done, in fractions: exact, as 7 % of 100 steps in floats is the 8th."""
        if epoch_length < 1:
            return Fraction(position.epoch)
        return position.epoch + Fraction(min(position.epoch_step, epoch_length), epoch_length)

    def points(milestone: Milestone) -> Iterator[int | float]:
        if milestone.unit is Unit.PERCENT:
            target = Fraction(str(milestone.amount)) * epochs / 100
            if progress(previous) < target <= progress(current):
                yield milestone.amount
            return
        amount = int(milestone.amount)
        before, now = previous.global_step, current.global_step
        if milestone.unit is Unit.EPOCHS:
            before, now = previous.epoch, current.epoch
        if milestone.repeating:
            yield from range((before // amount + 1) * amount, now + 1, amount)
        elif before < amount <= now:
            yield amount

    return tuple(DueMilestone(milestone, point) for milestone in milestones for point in points(milestone))
