"""The length of a run's average: the conversion of a half-life, and what is said of it."""

from __future__ import annotations

from typing import Any

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.length import Average, LengthUnit, Pace, parse_half_life
from onetrainer_ema_select.manifest import EmaRecord


def images_per_step(config: Any) -> int:
    """Images of one of OneTrainer's steps: a batch on every GPU."""
    from modules.util import multi_gpu_util  # the window, which shows sizes only, need not have it

    return int(config.batch_size * multi_gpu_util.world_size())


def steps_per_epoch(session: Session) -> int | None:
    """Steps of the epoch that is under way, as OneTrainer's progress bar has it; None before the data is loaded."""
    loader = getattr(session.trainer, "data_loader", None)
    if loader is None:
        return None
    try:
        return int(loader.get_data_set().approximate_length()) or None
    except Exception:  # noqa: BLE001 - before its first epoch has begun a data set may not know it
        return None


def make_pace(session: Session, record: EmaRecord | None, *, from_backup: bool) -> Pace | None:
    """What gives the updates their weights; None for OneTrainer's own decay.

    Args:
        session: The run; its model is loaded.
        record: Of the average that goes on; None where a new one begins.
        from_backup: Whether it comes from the backup that is resumed, and not from one that was set aside.
    """
    asked = parse_half_life(session.settings.ema_half_life)
    if asked is None:
        return None
    config = session.config

    def half_life() -> float:
        length = steps_per_epoch(session) if asked.unit is LengthUnit.EPOCHS else None
        steps = asked.steps(images_per_step=images_per_step(config), steps_per_epoch=length)
        if steps is None:
            raise EmaSelectError(
                f'ema_select.ema_half_life is "{asked.name}", and OneTrainer does not say how many steps an epoch '
                "has. Give it in images or steps.",
                key="ema_half_life",
            )
        return steps

    at_step: int = session.model.train_progress.global_step
    if record is not None and from_backup and record.half_life and record.updated_at_step is not None:
        at_step = record.updated_at_step
    # An average of OneTrainer's decay has left its beginning behind by its warm-up.
    age = 0.0 if session.starts_average else record.age if record is not None and record.half_life else None
    return Pace(
        half_life,
        interval=config.ema_update_step_interval,
        accumulation=config.gradient_accumulation_steps,
        at_step=at_step,
        age=age,
    )


def ema_record(session: Session, *, file: str, step: int) -> EmaRecord | None:
    """What is noted of the run's average; None without one."""
    if session.ema is None:
        return None
    tracks = session.ema.tracks
    pace = tracks.pace
    return EmaRecord(
        file=file,
        dtype=str(session.settings.ema_dtype),
        decay=tracks.decay_per_update(),
        update_step_interval=tracks.update_step_interval,
        updates=tracks.updates,
        step=step,
        half_life=session.settings.ema_half_life,
        age=None if pace is None else pace.age,
        updated_at_step=None if pace is None else pace.at_step,
        accumulation=session.config.gradient_accumulation_steps,
        images_per_step=images_per_step(session.config),
        steps_per_epoch=steps_per_epoch(session),
        start_share=None if session.drift is None else session.drift.age.start_share,
    )


def start_sentence(session: Session) -> str:
    """How long the average will be, as far as that is known before the data is loaded."""
    settings, config = session.settings, session.config
    if session.ema is None:
        return "ema_select.ema_half_life has no effect while EMA is off." if settings.ema_half_life else ""
    if settings.ema_half_life:
        taken = f"ema_select.ema_half_life is {settings.ema_half_life}, which takes the place of ema_decay"
        asked = parse_half_life(settings.ema_half_life)
        if asked is not None and asked.unit is LengthUnit.EPOCHS:
            return f"{taken}; what that is in steps and images is said when the data is loaded."
        average = _average(session, epoch_length=None)
        return f"{taken}: the EMA's half-life is {average.half_life.text}, a decay of {average.decay:.6g} an update."
    return (
        f"OneTrainer's ema_decay {config.ema_decay:g}, every {config.ema_update_step_interval} optimizer step(s): the "
        f"EMA's half-life is {_average(session, epoch_length=None).half_life.text} once its warm-up is over."
    )


def loaded_lines(session: Session, *, epoch_length: int, epochs: int) -> list[str]:
    """How long the average is, now that an epoch's length is known, and what is wrong with that."""
    if session.ema is None or epoch_length < 1:
        return []
    average = _average(session, epoch_length=epoch_length)
    run = epoch_length * epochs
    line = f"The EMA's half-life is {average.half_life.text}; an epoch has {epoch_length:,} steps, the run {run:,}"
    if average.typed:
        line += f". A decay of {average.decay:.6g} an update"
    else:
        line += f". OneTrainer's warm-up brings it to {average.half_life_at(run).text} by the end"
    return [f"{line}.", *(f"WARNING: {text}" for text in average.warnings(run_steps=run))]


def run_average(session: Session) -> Average:
    """What the length of the run's average comes from, as far as it is known by now."""
    return _average(session, epoch_length=steps_per_epoch(session))


def _average(session: Session, *, epoch_length: int | None) -> Average:
    config = session.config
    decay = config.ema_decay if session.ema is None else session.ema.tracks.decay_per_update()
    return Average(
        decay,
        config.ema_update_step_interval,
        typed=session.settings.ema_half_life,
        accumulation=config.gradient_accumulation_steps,
        images_per_step=images_per_step(config),
        steps_per_epoch=epoch_length,
    )
