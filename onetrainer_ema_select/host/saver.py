"""The saver's seam: both sets at every save, and backups that know what they hold."""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onetrainer_ema_select import store
from onetrainer_ema_select.host.backup import write_backup
from onetrainer_ema_select.host.equal_parts import correct_parts
from onetrainer_ema_select.host.ledger import SaveRecord
from onetrainer_ema_select.host.length import ema_record
from onetrainer_ema_select.host.metadata import (
    STOCHASTIC_MARK,
    Marked,
    average_marks,
    mark_files,
    moment_marks,
    title_of,
)
from onetrainer_ema_select.host.pinned import pin
from onetrainer_ema_select.host.processes import raise_together
from onetrainer_ema_select.host.request import SaveRequest
from onetrainer_ema_select.host.session import Session, session_of
from onetrainer_ema_select.naming import paired_name, set_suffix, shortened
from onetrainer_ema_select.rounding import StochasticRounding, rounds
from onetrainer_ema_select.settings import SaveRounding, WeightSet
from onetrainer_ema_select.state_dict_view import StateDictView
from onetrainer_ema_select.workspace import OUTPUT_FOLDER, SAVE_FOLDER

# Bytes of trained weights. A sweep takes a tenth of a second or more, which is longer than to save a small adapter.
_COLLECT_ABOVE = 200_000_000


def create_saver(original: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_saver``, which every process calls once its setup is done.

    Raises:
        Exception: What has kept the first process from starting, on all of them.
    """
    saver = original(trainer, *args, **kwargs)
    session = session_of(trainer.config)
    if session is None:
        return saver
    raise_together(session.failed_start)
    if saver is None:
        return saver
    original_save = saver.save

    def save(
        model: Any,
        model_type: Any,
        output_model_format: Any,
        output_model_destination: str,
        dtype: torch.dtype | None,
        *more: Any,
        **more_named: Any,
    ) -> None:
        session.settle()
        session.publisher.collect(wait=True)
        if session.drift is not None:
            session.drift.before_save()
        destination = Path(output_model_destination)
        request = SaveRequest(original_save, model, model_type, output_model_format, dtype, more, more_named)
        if str(output_model_format) == "INTERNAL":
            write_backup(session, request, destination)
        elif session.ending:
            SetWriter(session, request).write_final(destination)
        else:
            SetWriter(session, request).write(destination)

    saver.save = save
    return saver


@dataclass(frozen=True)
class _Written:
    """A set that is written in private, and what brings it to its place."""

    staging: store.Staging
    marks: dict[str, str]
    title: str
    submit: Callable[[], None]


class SetWriter:
    """Writes the sets that are due at one save through OneTrainer's own saver."""

    def __init__(self, session: Session, request: SaveRequest) -> None:
        """Note what OneTrainer asked for."""
        self._session = session
        self._request = request
        self._progress = request.model.train_progress
        self._milestones: tuple[str, ...] = ()
        self._final = False
        self._sets: tuple[WeightSet, ...] = ()
        self._waiting: set[WeightSet] = set()
        self._errors: dict[WeightSet, Exception] = {}

    def write_final(self, destination: Path) -> None:
        """Write the final output, and first a milestone that was due at the very last step.

        Each set is on the disk when this returns; one whose place fails goes to :data:`workspace.OUTPUT_FOLDER`. A
        failure is kept for the end of the run, so that OneTrainer can finish its own.
        """
        session = self._session
        if session.milestones.unsaved:
            # OneTrainer serves a save before the next batch, and there is none.
            with contextlib.suppress(Exception):  # reported by write(), and the milestone stays owed
                SetWriter(session, self._request).write(self._in_training_destination())
            session.publisher.collect(wait=True)
            if session.milestones.unsaved:
                session.lost.append(f"the milestone {', '.join(session.milestones.unsaved)}")
        elif session.milestones.pending:
            self._pin(session.milestones.pending)
        paths = {
            weight_set: path
            for weight_set, path in self._paths(destination, session.sets_written(milestone=True)).items()
            if weight_set not in session.final_done
        }
        self._final = True
        self._write_sets(paths, after="It is tried in another place.")
        session.publisher.collect(wait=True)
        self._final = False
        second = {
            weight_set: session.workspace / OUTPUT_FOLDER / shortened(paths[weight_set].name)
            for weight_set in self._errors
        }
        reasons = dict(self._errors)
        self._errors.clear()
        self._write_sets(second, after="It is lost.")
        session.publisher.collect(wait=True)
        for weight_set, place in second.items():
            name = f"the final {set_suffix(weight_set)} output"
            if weight_set in self._errors:
                session.lost.append(f"{name} ({reasons[weight_set]})")
            else:
                session.lost.append(f"{name} at {paths[weight_set]} ({reasons[weight_set]}); it is in {place} instead")
        if session.post_hoc is not None:
            session.post_hoc.snapshot()  # last, likewise

    def write(self, destination: Path) -> None:
        """Write a save during training. The files appear at their places while it goes on.

        Raises:
            Exception: What the primary set's saver raised, for OneTrainer to show as its own. A failure of
                the other set is reported and does not hide that this one is there.
        """
        pending, post_hoc = self._session.milestones.pending, self._session.post_hoc
        self._milestones = self._session.milestones.unsaved
        paths = self._paths(destination, self._session.sets_written(milestone=bool(self._milestones)))
        after = "It is owed." if self._session.ending else "Training goes on, and the next due save tries again."
        self._write_sets(paths, after=after)
        self._pin(pending)
        if pending and post_hoc is not None and post_hoc.at_backups and not self._session.ending:
            post_hoc.snapshot()  # last: on a disk that is nearly full, the sets and the backup come first
        primary = next(iter(paths))
        if primary in self._errors:
            raise self._errors[primary]

    def _pin(self, milestones: tuple[str, ...]) -> None:
        """Leave the backups that milestones ask for. What is interrupted is done again, what has failed is not."""
        watch = self._session.milestones
        pin(self._session, self._request, self._session.settings.pinned_milestones(milestones))
        self._session.pinned.update(milestones)
        watch.served(tuple(name for name in milestones if name in watch.saved))

    def _paths(self, destination: Path, sets: tuple[WeightSet, ...]) -> dict[WeightSet, Path]:
        """Where each set belongs."""
        primary, *others = sets
        beside = {
            weight_set: destination.with_name(paired_name(destination.name, set_suffix(weight_set)))
            for weight_set in others
        }
        return {primary: destination, **beside}

    def _write_sets(self, paths: dict[WeightSet, Path], *, after: str) -> None:
        """Write each set; one that fails does not keep the other from being written.

        Args:
            paths: Where each belongs.
            after: What is said to happen after a failure.
        """
        self._waiting = set(paths)
        self._sets = tuple(paths)
        if not paths:
            return
        first = next(iter(paths.values()))
        self._session.space.before("save", first, count=len(paths), dtype=self._request.dtype)
        equal, held = self._session.equal_parts, None
        equal.begin()
        for position, (weight_set, path) in enumerate(paths.items()):
            if position > 0:
                self._free_copies()
                self._session.reporter.say(f"Saving {set_suffix(weight_set)} to {path}")
            try:
                written = self._write_one(path, weight_set, after, twin=first if position > 0 else None)
            except Exception as error:  # noqa: BLE001 - the other set must still be written
                self._failed(path, weight_set, after, error)
                continue
            if position == 0 and equal.guessed:
                held = written  # what it says of its parts is known to be true only after the second
                continue
            if held is not None:
                self._let_go(held)
                held = None
            written.submit()
        if held is not None:
            self._let_go(held)

    def _let_go(self, held: _Written) -> None:
        """Publish a first set, with what it said of its parts put right."""
        wrong = self._session.equal_parts.wrong()
        try:
            correct_parts(held.staging.path, wrong, marks=held.marks, title=held.title)
        except OSError as error:
            self._session.reporter.problem(
                f"A part of {held.staging.destination} says of itself that it is of both sets; it is not.", error
            )
        held.submit()

    def _free_copies(self) -> None:
        """OneTrainer's savers leave whole copies of a model in cycles, which nothing else frees in time."""
        parameters = self._request.model.parameters.parameters()
        if sum(parameter.nbytes for parameter in parameters) > _COLLECT_ABOVE:
            gc.collect()

    def _failed(self, path: Path, weight_set: WeightSet, after: str, error: Exception) -> None:
        self._errors[weight_set] = error
        self._session.reporter.problem(
            f"The {set_suffix(weight_set)} set could not be saved to {path}. {after} Check the disk space and the "
            "folder.",
            error,
        )

    def _write_one(self, path: Path, weight_set: WeightSet, after: str, *, twin: Path | None) -> _Written:
        """Write one set in private; ``twin`` is the place of the first set where this is the second."""
        session = self._session
        marks = self._marks(weight_set)
        title = title_of(path, str(weight_set), self._progress)
        staging = store.Staging(path, workspace=session.workspace)
        try:
            with contextlib.ExitStack() as stack:
                # Noted in the session first: an interrupt in their undoing is made good by settle().
                both = " and ".join(map(str, self._sets))
                common = self._common_marks(), title_of(twin or path, both, self._progress)

                def equal(tensor_hash: str | None) -> tuple[dict[str, str], str] | None:
                    same = session.equal_parts.is_equal(tensor_hash, second=twin is not None)
                    return common if same and staging.path.is_dir() else None

                marked = Marked(self._request.model, marks, title=title, equal=equal)
                session.undo.append(marked)
                stack.enter_context(marked)
                rounding = self._rounding(weight_set)
                if weight_set is WeightSet.EMA or rounding is not None:
                    value_of = self._values(weight_set)
                    view = StateDictView(session.sites, value_of, dtype=self._request.dtype, rounding=rounding)
                    session.undo.append(view)
                    stack.enter_context(view)
                self._request.write(stack.enter_context(staging.writing()))
            session.undo.clear()
            mark_files(staging.path, marks)
        except BaseException:
            staging.discard()
            raise

        record = self._record(path, weight_set)

        def placed(beside: tuple[store.Replaced, ...]) -> None:
            self._note(record, beside)

        def done(error: Exception | None) -> None:
            if error is not None:
                self._failed(path, weight_set, after, error)
                return
            self._waiting.discard(weight_set)
            if not self._waiting:
                watch = session.milestones
                watch.saved |= frozenset(self._milestones)
                watch.served(tuple(name for name in self._milestones if name in session.pinned))

        # A later run may write its final output into the same folder again, a save's folder is of one moment.
        rewritten = self._final or not path.is_relative_to(session.workspace / SAVE_FOLDER)
        share = None
        if twin is not None and staging.path.is_dir():
            share = functools.partial(self._share, staging, twin, rewritten=rewritten)
        submit = functools.partial(session.publisher.submit, staging, placed=placed, done=done, prepare=share)
        return _Written(staging, marks, title, submit)

    def _share(self, staging: store.Staging, twin: Path, *, rewritten: bool) -> None:
        """Parts that were not trained are the same in both sets. Runs on the publisher's thread."""
        try:
            staging.share(twin, rewritten=rewritten)
        except OSError as error:
            self._session.reporter.problem(f"{staging.path.name} takes more space than it would have to.", error)

    def _record(self, path: Path, weight_set: WeightSet) -> SaveRecord:
        return SaveRecord(
            path=path,
            set=weight_set,
            step=self._progress.global_step,
            epoch=self._progress.epoch,
            milestones=self._milestones,
            run=self._session.run,
            leg=self._session.plan.leg.id,
            final=self._final,
        )

    def _note(self, record: SaveRecord, beside: tuple[store.Replaced, ...]) -> None:
        """List a set that is at its place. Runs on the publisher's thread."""
        session, path = self._session, record.path
        for replaced in beside:
            session.reporter.problem(
                f"{replaced.wanted} could not be replaced ({replaced.reason}): the new one lies beside it as "
                f"{replaced.actual.name}. Close what holds the old one open, and rename it."
            )
            path = replaced.actual if replaced.wanted == path else path
        session.space.after("save", path)
        try:
            session.ledger.add(record.model_copy(update={"path": path}))
        except Exception as error:  # noqa: BLE001 - the model itself is on the disk, and must not count as lost
            # Only a milestone might be written twice after a crash.
            session.reporter.problem(f"{path} was saved, but could not be noted in the list of saves.", error)

    def _common_marks(self) -> dict[str, str]:
        """What is said of a part that is the same in all sets of this moment."""
        session = self._session
        return moment_marks(
            self._progress, self._sets, run=session.run, leg=session.plan.leg.id, milestones=self._milestones
        )

    def _marks(self, weight_set: WeightSet) -> dict[str, str]:
        session = self._session
        marks = {**self._common_marks(), "ema_select.set": str(weight_set)}
        if weight_set is WeightSet.EMA:
            record = ema_record(session, file="", step=self._progress.global_step)
            marks |= average_marks(record) if record is not None else {}
        return marks | (STOCHASTIC_MARK if self._rounding(weight_set) is not None else {})

    def _rounding(self, weight_set: WeightSet) -> StochasticRounding | None:
        """What rounds in the place of OneTrainer's saver; None where that is to round, or nothing is rounded."""
        session, dtype = self._session, self._request.dtype
        if session.settings.save_rounding is SaveRounding.NEAREST:
            return None
        value_of = self._values(weight_set)
        for name, parameter in self._live().items():
            value = value_of(name)
            if value is not None and rounds(dtype, own=parameter.dtype, held=value.dtype):
                return StochasticRounding(session.run, self._progress.global_step)
        return None

    def _values(self, weight_set: WeightSet) -> Callable[[str], torch.Tensor | None]:
        """What a set has for a stable name."""
        return self._session.average if weight_set is WeightSet.EMA else self._live().get

    def _live(self) -> dict[str, torch.Tensor]:
        """The live weights by stable name, the very tensors."""
        return dict(zip(self._session.names, self._request.model.parameters.parameters(), strict=True))

    def _in_training_destination(self) -> Path:
        """Where OneTrainer would have put this save during training."""
        config = self._session.config
        time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        progress = self._progress.filename_string()
        name = f"{config.save_filename_prefix}{time}-save-{progress}{self._request.model_format.file_extension()}"
        return self._session.workspace / "save" / name
