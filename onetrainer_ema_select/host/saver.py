"""The saver's seam: both sets at every save, and backups that know what they hold."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onetrainer_ema_select import __version__, store
from onetrainer_ema_select.host.backup import write_backup
from onetrainer_ema_select.host.metadata import mark_files, marked
from onetrainer_ema_select.host.request import SaveRequest
from onetrainer_ema_select.host.session import Session, session_of
from onetrainer_ema_select.naming import paired_name, set_suffix
from onetrainer_ema_select.settings import SaveSets, WeightSet
from onetrainer_ema_select.state_dict_view import StateDictView


def create_saver(original: Callable[[Any], Any], trainer: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_saver``."""
    saver = original(trainer)
    session = session_of(trainer.config)
    if session is None or saver is None:
        return saver
    original_save = saver.save

    def save(
        model: Any,
        model_type: Any,
        output_model_format: Any,
        output_model_destination: str,
        dtype: torch.dtype | None,
    ) -> None:
        session.settle()
        destination = Path(output_model_destination)
        request = SaveRequest(original_save, model, model_type, output_model_format, dtype)
        if str(output_model_format) == "INTERNAL":
            write_backup(session, request, destination)
        elif session.ending:
            SetWriter(session, request).write_final(destination)
        else:
            SetWriter(session, request).write(destination)

    saver.save = save
    return saver


class SetWriter:
    """Writes the sets that are due at one save through OneTrainer's own saver."""

    def __init__(self, session: Session, request: SaveRequest) -> None:
        """Note what OneTrainer asked for."""
        self._session = session
        self._request = request
        self._progress = request.model.train_progress

    def write_final(self, destination: Path) -> None:
        """Write the final output, and first a milestone that was due at the very last step.

        A failure is kept for the end of the run, so that OneTrainer can finish its own.
        """
        session = self._session
        if session.milestones.pending:
            # OneTrainer serves a save before the next batch, and there is none.
            with contextlib.suppress(Exception):  # reported by write(), and the milestone stays owed
                self.write(self._in_training_destination())
        errors = self._write_sets(destination, self._sets(both=True), milestones=())
        for weight_set, error in errors.items():
            session.lost.append(f"the final {set_suffix(weight_set)} output ({error})")

    def write(self, destination: Path) -> None:
        """Write a save during training.

        Raises:
            Exception: What the primary set's saver raised, for OneTrainer to show as its own. A failure of
                the other set is reported and does not hide that this one is there.
        """
        session = self._session
        due = session.milestones.pending
        sets = self._sets(both=bool(due))
        errors = self._write_sets(destination, sets, milestones=due)
        if not errors:
            session.milestones.served(due)
        primary = next(iter(sets))
        if primary in errors:
            raise errors[primary]

    def _sets(self, *, both: bool) -> tuple[WeightSet, ...]:
        """The sets to write, the one with OneTrainer's own name first."""
        if self._session.ema is None:
            return (WeightSet.NON_EMA,)
        choice, primary = self._session.settings.save_sets, self._session.settings.primary_set
        if choice is SaveSets.EMA:
            return (WeightSet.EMA,)
        if choice is SaveSets.NON_EMA:
            return (WeightSet.NON_EMA,)
        if choice is SaveSets.BOTH_AT_MILESTONES and not both:
            return (primary,)
        other = WeightSet.EMA if primary is WeightSet.NON_EMA else WeightSet.NON_EMA
        return (primary, other)

    def _write_sets(
        self, destination: Path, sets: tuple[WeightSet, ...], *, milestones: tuple[str, ...]
    ) -> dict[WeightSet, Exception]:
        """Write each set; one that fails does not keep the other from being written."""
        errors: dict[WeightSet, Exception] = {}
        for position, weight_set in enumerate(sets):
            path = destination
            if position > 0:
                path = destination.with_name(paired_name(destination.name, set_suffix(weight_set)))
                self._session.reporter.say(f"Saving {set_suffix(weight_set)} to {path}")
            try:
                self._write_one(path, weight_set, milestones)
            except Exception as error:  # noqa: BLE001 - the other set must still be written
                errors[weight_set] = error
                self._session.reporter.problem(
                    f"The {set_suffix(weight_set)} set could not be saved to {path}. Training goes on, and the next "
                    "due save tries again; check the disk space and the folder.",
                    error,
                )
        return errors

    def _write_one(self, path: Path, weight_set: WeightSet, milestones: tuple[str, ...]) -> None:
        session = self._session
        marks = self._marks(weight_set, milestones)
        progress = self._progress
        title = f"{path.stem} ({weight_set}, epoch {progress.epoch}, step {progress.global_step})"
        staging = store.Staging(path, workspace=session.workspace)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(marked(self._request.model, marks, title=title))
                if weight_set is WeightSet.EMA:
                    view = StateDictView(session.sites, session.average, dtype=self._request.dtype)
                    session.view = view  # so that an interrupt in its undoing is made good by settle()
                    stack.enter_context(view)
                self._request.write(staging.path)
            mark_files(staging.path, marks)
            staging.publish()
        finally:
            staging.discard()
        self._record(path, weight_set, milestones)

    def _record(self, path: Path, weight_set: WeightSet, milestones: tuple[str, ...]) -> None:
        progress = self._progress
        try:
            self._session.ledger.add(
                path=path,
                weight_set=str(weight_set),
                step=progress.global_step,
                epoch=progress.epoch,
                milestones=milestones,
            )
        except OSError as error:
            # The model itself is on the disk; only a milestone might be written twice after a crash.
            self._session.reporter.problem(f"{path} was saved, but could not be noted in the list of saves.", error)

    def _marks(self, weight_set: WeightSet, milestones: tuple[str, ...]) -> dict[str, str]:
        session, progress = self._session, self._progress
        marks = {
            "ema_select.set": str(weight_set),
            "ema_select.run": session.run,
            "ema_select.step": str(progress.global_step),
            "ema_select.epoch": str(progress.epoch),
            "ema_select.epoch_step": str(progress.epoch_step),
            "ema_select.version": __version__,
        }
        if milestones:
            marks["ema_select.milestone"] = ", ".join(milestones)
        if weight_set is WeightSet.EMA and session.ema is not None:
            tracks = session.ema.tracks
            marks["ema_select.decay"] = str(tracks.decay)
            marks["ema_select.updates"] = str(tracks.updates)
            marks["ema_select.update_step_interval"] = str(tracks.update_step_interval)
            marks["ema_select.precision"] = str(session.settings.ema_dtype)
        return marks

    def _in_training_destination(self) -> Path:
        """Where OneTrainer would have put this save during training."""
        config = self._session.config
        time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        progress = self._progress.filename_string()
        name = f"{config.save_filename_prefix}{time}-save-{progress}{self._request.model_format.file_extension()}"
        return self._session.workspace / "save" / name
