"""Both sets judged: OneTrainer's validation is done for the EMA too, on the same batches and noise."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onetrainer_ema_select.host.seams import VALIDATION_SEAMS, check_live, mismatches
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.host.validation_pass import ValidationPass, concept_labels
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.validation import HISTORY, HistoryEntry, ValidationRecord, append_history, judge

VALIDATE = "_GenericTrainer__validate"

#: The TensorBoard run of the EMA, a folder inside that of OneTrainer's own: the same tags, so that both curves are
#: drawn into one chart.
CURVES = "EMA"


class Judge:
    """Follows the validations of one run, on its first process.

    Attributes:
        attached: Whether there are any to follow.
    """

    def __init__(self, session: Session) -> None:
        """Prepare; nothing is wrapped."""
        self._session = session
        self._board: Any = None
        self._failures: set[str] = set()
        self.attached = False

    def attach(self) -> None:
        """Follow OneTrainer's validation, if it is on. One that is not as expected stays as it is."""
        session, trainer = self._session, self._session.trainer
        if not (session.ema_on and getattr(session.config, "validation", False)):
            return
        wrong = mismatches(check_live(VALIDATION_SEAMS))
        original = getattr(trainer, VALIDATE, None)
        if wrong or original is None:
            session.reporter.problem(
                "Both sets cannot be judged by validation loss with this OneTrainer; everything else works. "
                + " ".join(wrong or (f"{type(trainer).__name__} has no {VALIDATE}.",))
            )
            return
        setattr(trainer, VALIDATE, functools.partial(self._validate, original))
        self.attached = True

    def detach(self) -> None:
        """Put OneTrainer's validation back, and close the curves."""
        vars(self._session.trainer).pop(VALIDATE, None)
        board, self._board = self._board, None
        if board is not None:
            self._attempt("The EMA's validation curve could not be closed", board.close)

    def _validate(self, original: Callable[..., Any], train_progress: Any, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if session.ema is None:
            return original(train_progress, *args, **kwargs)
        session.ema.settle()
        watched = ValidationPass(session.trainer.model_setup, session.ema.tracks)
        with watched.watching():
            result = original(train_progress, *args, **kwargs)
        # None of both: no validation was due.
        if watched.non_ema or watched.error is not None:
            session.reporter.status("Calculating the validation loss of the EMA")
            watched.repeat(session.model)
            self._attempt(
                "The validation loss of the EMA could not be computed; training goes on, and the next validation "
                "tries again",
                lambda: self._conclude(watched, train_progress),
            )
        return result

    def _conclude(self, watched: ValidationPass, progress: Any) -> None:
        session = self._session
        if watched.error is not None:
            raise watched.error
        record = judge(
            step=progress.global_step + 1,  # OneTrainer validates before it counts the step
            epoch=progress.epoch,
            labels=concept_labels(watched.concepts),
            ema=watched.ema,
            non_ema=[loss.item() for loss in watched.non_ema],
        )
        session.judged = record
        session.reporter.say(f"Validation after {record.step} steps: {record.text}.")
        self._attempt(
            "The EMA's validation loss could not be drawn in TensorBoard",
            lambda: self._draw(record, progress.global_step),
        )
        self._attempt(
            f"The validation could not be added to {FOLDER}/{HISTORY}",
            lambda: append_history(session.workspace / FOLDER / HISTORY, self._entry(record)),
        )

    def _entry(self, record: ValidationRecord) -> HistoryEntry:
        return HistoryEntry(
            **record.model_dump(),
            run=self._session.run,
            leg=self._session.plan.leg.id,
            created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    def _draw(self, record: ValidationRecord, step: int) -> None:
        """Draw the EMA's losses under the tags and at the steps of OneTrainer's own."""
        own = getattr(self._session.trainer, "tensorboard", None)
        if own is None:
            return
        if self._board is None:
            self._board = type(own)(str(Path(own.log_dir) / CURVES))
        for concept in record.concepts:
            self._board.add_scalar(f"loss/validation_step/{concept.label}", _drawn(concept.ema), step)
        if len(record.concepts) > 1:
            self._board.add_scalar("loss/validation_step/total_average", _drawn(record.ema), step)
        self._board.flush()

    def _attempt(self, failure: str, action: Callable[[], object]) -> None:
        """Do something whose failure is reported, once, and no reason to end a training."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - see above
            if failure not in self._failures:
                self._failures.add(failure)
                self._session.reporter.problem(f"{failure}. Further failures of this kind are not reported.", error)


def follow_validation(session: Session) -> None:
    """Judge both sets of a run. To be called on its first process: OneTrainer validates there alone."""
    session.judge = Judge(session)
    session.judge.attach()


def _drawn(loss: float | None) -> float:
    return math.nan if loss is None else loss
