"""What OneTrainer's validation says of both sets: which one has the lower loss, by how much, and how sure that is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.paired import CLEAR, PROBABLE, chance, paired_difference

HISTORY = "validation.jsonl"
"""In ``WORKSPACE/ema_select``: a line for each validation of its runs."""

_Loss = Annotated[float, Field(allow_inf_nan=False)] | None
_Count = Annotated[int, Field(ge=0, le=2**53)]


class Sureness(str, Enum):
    """How sure a difference is."""

    CLEAR = "clear"
    PROBABLE = "probable"
    UNKNOWN = "cannot be told"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ConceptLosses(_Record):
    """Mean losses of one concept's batches; None for a mean that is not a finite number."""

    label: str
    batches: _Count
    ema: _Loss
    non_ema: _Loss


class ValidationRecord(_Record):
    """One validation of both sets.

    Attributes:
        step: Steps done. OneTrainer's TensorBoard counts the step that was just done from 0: one less.
        epoch: Epochs finished.
        batches: Batches of all concepts together; OneTrainer's have one image each.
        ema: Mean loss of the EMA over all of them; None where it is not a finite number.
        non_ema: Likewise.
        difference: Mean over the batches of the EMA's loss less the non-EMA weights'; None where one is not finite.
        standard_error: Of that difference; None where it cannot be told, as from one batch.
        concepts: The same by concept, under the labels that OneTrainer gives them.
    """

    step: _Count
    epoch: _Count
    batches: _Count
    ema: _Loss
    non_ema: _Loss
    difference: _Loss = None
    standard_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    concepts: tuple[ConceptLosses, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def better(self) -> WeightSet | None:
        """The set with the lower loss; None where they are equal, or neither is a finite number."""
        if self.ema is None or self.non_ema is None:
            if self.ema is self.non_ema:
                return None
            return WeightSet.NON_EMA if self.ema is None else WeightSet.EMA
        # Not by `difference`: what is said and what is chosen are the two losses that everybody sees.
        if self.ema == self.non_ema:
            return None
        return WeightSet.EMA if self.ema < self.non_ema else WeightSet.NON_EMA

    @computed_field  # type: ignore[prop-decorator]
    @property
    def sure(self) -> Sureness:
        """How sure it is that the better set is better, for further images of the same kind."""
        if self.better is None:
            return Sureness.UNKNOWN
        if self.ema is None or self.non_ema is None:
            return Sureness.CLEAR
        if self.difference is None or self.standard_error is None or self.batches < 2:
            return Sureness.UNKNOWN
        probability = chance(self.difference, self.standard_error, self.batches)
        if probability < CLEAR:
            return Sureness.CLEAR
        return Sureness.PROBABLE if probability < PROBABLE else Sureness.UNKNOWN

    @property
    def losses_text(self) -> str:
        """Both losses, the better one first."""
        both = (f"EMA {loss_text(self.ema)}", f"non-EMA {loss_text(self.non_ema)}")
        first, second = reversed(both) if self.better is WeightSet.NON_EMA else both
        return f"{first} against {second}"

    @property
    def sure_text(self) -> str:
        """How large the difference is and how sure, in a few words."""
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        if self.ema is None or self.non_ema is None:
            return f"not a finite number; {batches}"
        if self.better is None:
            return f"no difference; {batches}"
        difference = abs(self.ema - self.non_ema)
        error = "" if self.standard_error is None else f" ± {loss_text(self.standard_error)}"
        whether = "cannot be told whether that is chance" if self.sure is Sureness.UNKNOWN else str(self.sure.value)
        return f"difference {loss_text(difference)}{error}, {whether}; {batches}"

    @property
    def text(self) -> str:
        """All of it in one phrase."""
        name = {WeightSet.EMA: "EMA", WeightSet.NON_EMA: "non-EMA", None: "neither"}[self.better]
        return f"better: {name} (validation loss: {self.losses_text}; {self.sure_text}, measured at step {self.step})"

    def as_json(self) -> dict[str, Any]:
        """What other programs are told; see docs/json.md."""
        return {
            "better": "" if self.better is None else set_suffix(self.better),
            "sure": self.sure.value,
            "ema": self.ema,
            "non_ema": self.non_ema,
            "difference": self.difference,
            "standard_error": self.standard_error,
            "batches": self.batches,
            "step": self.step,
            "epoch": self.epoch,
            "concepts": [concept.model_dump() for concept in self.concepts],
            "text": self.text,
        }


class HistoryEntry(ValidationRecord):
    """A line of the history: a validation, and which stretch of which run it belongs to."""

    run: str
    leg: str = ""
    created: str = ""


def loss_text(loss: float | None) -> str:
    """A loss for people."""
    return "not finite" if loss is None else f"{loss:.4g}"


def judge(
    *, step: int, epoch: int, labels: Sequence[str], ema: Sequence[float], non_ema: Sequence[float]
) -> ValidationRecord:
    """Sum up the losses of one validation.

    Args:
        step: Steps done.
        epoch: Epochs finished.
        labels: Each batch's concept.
        ema: Each batch's loss with the EMA, in the same order; may hold NaN and infinities.
        non_ema: With the non-EMA weights.

    Raises:
        ValueError: If there is no batch, or the three are not of one length.
    """
    both = list(zip(labels, ema, non_ema, strict=True))
    if not both:
        raise ValueError("a validation without a batch says nothing")
    parts = {label: [pair for name, *pair in both if name == label] for label in dict.fromkeys(labels)}
    # In OneTrainer's order, a sum for each concept and then over them, so that its numbers and ours are the same.
    sums = {label: [sum(losses) for losses in zip(*own, strict=True)] for label, own in parts.items()}
    concepts = [
        ConceptLosses(
            label=label, batches=len(own), ema=_mean(sums[label][0], len(own)), non_ema=_mean(sums[label][1], len(own))
        )
        for label, own in parts.items()
    ]
    totals = [_mean(sum(losses), len(both)) for losses in zip(*sums.values(), strict=True)]
    paired = None if None in totals else paired_difference(ema, non_ema)
    if paired is not None and not math.isfinite(paired.mean):
        paired = None
    return ValidationRecord(
        step=step,
        epoch=epoch,
        batches=len(both),
        ema=totals[0],
        non_ema=totals[1],
        difference=None if paired is None else paired.mean,
        standard_error=None if paired is None else paired.standard_error,
        concepts=tuple(concepts),
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if math.isfinite(total) else None


# -- the history ---------------------------------------------------------------------------------------------


def append_history(path: Path, entry: HistoryEntry) -> None:
    """Add a line to a workspace's history; what is there is not touched.

    Raises:
        OSError: If the file system refuses. At worst the file ends in half a line then, which readers pass over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = entry.model_dump_json() + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a process that died while it wrote
                line = "\n" + line
        file.write(line.encode())


def read_history(path: Path) -> tuple[HistoryEntry, ...]:
    """All validations of a workspace, in the order of their first lines; of one done twice, the later.

    A run that goes on from a backup comes by the steps after it again. Lines that cannot be read are passed over.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    if not path.is_file():
        return ()
    found: dict[tuple[str, str, int], HistoryEntry] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = HistoryEntry.model_validate(json.loads(line))
        except (ValueError, RecursionError, ValidationError):
            continue
        found[entry.run, entry.leg, entry.step] = entry
    return tuple(found.values())
