"""The training loop's seams: where a run begins, what it resumes from, its progress and its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules.util import multi_gpu_util

from onetrainer_ema_select.errors import SECTION, EmaSelectError
from onetrainer_ema_select.host.decision import decide
from onetrainer_ema_select.host.judging import follow_validation
from onetrainer_ema_select.host.length import loaded_lines
from onetrainer_ema_select.host.processes import decided_by_first
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.host.session import Session, clear_leftovers, session_of
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.settings import WeightSet


def create_model_loader(original: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_loader``, the first thing that OneTrainer's ``start`` calls.

    Raises:
        EmaSelectError: If the run would be useless: wrong settings, or a set that the backup does not hold.
    """
    section = getattr(trainer.config, SECTION, None)
    if section is None:
        return original(trainer, *args, **kwargs)
    stale = session_of(trainer.config)
    if stale is not None:  # a start that failed before its end
        stale.close()
    if not section.asks_for_plugin():
        mistakes = section.mistakes()
        if mistakes and multi_gpu_util.is_master():
            Reporter(trainer.callbacks.on_update_status).say(
                f"The plugin is off for this run ({SECTION}.enabled is false). {mistakes}"
            )
        return original(trainer, *args, **kwargs)
    try:
        settings = section.settings()  # every process has the same configuration
        session = Session(trainer, settings, decided_by_first(lambda: decide(settings, trainer.config)))
    except EmaSelectError as error:
        # The window shows only that there was an error.
        Reporter(trainer.callbacks.on_update_status).show(error)
        raise
    session.register()
    _attach(session)
    return original(trainer, *args, **kwargs)


def last_backup_path(original: Callable[..., str | None], config: Any, *args: Any, **kwargs: Any) -> str | None:
    """Stand in for ``TrainConfig.get_last_backup_path``: the backup that the plan was made for."""
    session = session_of(config)
    if session is None:
        return original(config, *args, **kwargs)
    return None if session.backup is None else str(session.backup)


def _attach(session: Session) -> None:
    """Follow the run by wrapping functions of its own objects, which are put back when it ends."""
    trainer, callbacks = session.trainer, session.trainer.callbacks
    master = multi_gpu_util.is_master()
    original_train = trainer.train
    original_end = trainer.end

    def train(*args: Any, **kwargs: Any) -> Any:
        session.training = True
        try:
            return original_train(*args, **kwargs)
        except BaseException:
            # OneTrainer's `end` may never come.
            session.checksums.stop()
            session.publisher.collect(wait=True)
            session.reporter.repeat_problems()
            raise

    def end(*args: Any, **kwargs: Any) -> None:
        session.ending = True
        try:
            session.settle()
            if master:
                _take_up_final_output(session)
            original_end(*args, **kwargs)
            session.publisher.collect(wait=True)
            session.finish_checksums()
        except BaseException:
            session.reporter.repeat_problems()
            raise
        finally:
            trainer.__dict__.pop("train", None)
            trainer.__dict__.pop("end", None)
            callbacks.__dict__.pop("on_update_train_progress", None)
            if session.judge is not None:
                session.judge.detach()
            session.close()
        if master:
            session.finish()

    trainer.train = train
    trainer.end = end
    if master:  # OneTrainer saves on the first process only
        _follow_progress(session)
        follow_validation(session)
        try:
            clear_leftovers(session)
        except OSError as error:
            session.reporter.problem("What an interrupted run left unfinished could not be removed.", error)
        for sentence in session.skipped:
            session.reporter.say(sentence)


def _follow_progress(session: Session) -> None:
    callbacks, trainer = session.trainer.callbacks, session.trainer
    original_progress = callbacks.on_update_train_progress

    def on_update_train_progress(train_progress: Any, max_step: int, max_epoch: int, *args: Any, **kwargs: Any) -> Any:
        try:
            session.publisher.collect(wait=False)
            if not session.length_said:  # only now is it known how long an epoch is
                session.length_said = True
                for line in loaded_lines(session, epoch_length=max_step, epochs=max_epoch):
                    session.reporter.say(line)
            if session.post_hoc is not None:
                session.post_hoc.follow(train_progress, epoch_length=max_step, epochs=max_epoch)
            if session.milestones.advance(train_progress, epoch_length=max_step, epochs=max_epoch):
                trainer.commands.save()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
            session.reporter.problem("The plugin could not follow the progress; a milestone may be missed.", error)
        return original_progress(train_progress, max_step, max_epoch, *args, **kwargs)

    callbacks.on_update_train_progress = on_update_train_progress


def _take_up_final_output(session: Session) -> None:
    """Have OneTrainer write what is missing of the final output, where a resumed run has nothing left to train.

    By itself it would write none then, and what an earlier end could not write would stay lost.
    """
    trainer, model, contents = session.trainer, session.model, session.contents
    if contents is None or not session.training or getattr(trainer, "one_step_trained", None) is not False:
        return
    if getattr(session.config, "only_cache", False) or model.train_progress.epoch < session.config.epochs:
        return
    sets = session.sets_written(milestone=True)
    session.final_done = session.ledger.finals(
        step=contents.step,
        run=session.run,
        leg=session.plan.leg.id,
        folder=Path(session.config.output_model_destination).parent,
    )
    missing = [set_suffix(weight_set) for weight_set in sets if weight_set not in session.final_done]
    loaded_average = session.plan.weights is WeightSet.EMA or session.mixture is not None
    if loaded_average or not (missing or session.milestones.pending):
        session.reporter.say("Nothing is left to train: the backup is of the end of the run. Nothing was written.")
        return
    what = f"the final output ({' and '.join(missing)})" if missing else "what is owed of the milestones"
    session.reporter.say(f"Nothing is left to train, but {what} is missing; it is written now.")
    trainer.one_step_trained = True
