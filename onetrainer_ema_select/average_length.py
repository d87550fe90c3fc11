"""How long the average of a backup is: from what the plugin noted, or from the configuration it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onetrainer_ema_select.length import Average
from onetrainer_ema_select.manifest import EmaRecord


def average_of(
    record: EmaRecord | None,
    config: Mapping[str, Any] | None,
    *,
    decay: float | None = None,
    progress: Mapping[str, int] | None = None,
) -> Average | None:
    """What the length of a backup's average comes from.

    Args:
        record: The plugin's; None for a backup that was made without it.
        config: OneTrainer's configuration of the time, as JSON has it.
        decay: As the file of the average says, where there is no record; else the configuration's is taken.
        progress: ``global_step``, ``epoch`` and ``epoch_step`` of the backup, which tell how long an epoch was.

    Returns:
        None where it cannot be told.
    """
    said = config or {}
    progress = progress or {}
    if record is not None:
        decay, interval = record.decay, record.update_step_interval
    else:
        decay = _number(said.get("ema_decay")) if decay is None else decay
        interval = _whole(said.get("ema_update_step_interval")) or 0
    if decay is None or interval < 1:
        return None
    accumulation = record.accumulation if record is not None else None
    images = record.images_per_step if record is not None else None
    epoch = record.steps_per_epoch if record is not None else None
    if images is None and not said.get("multi_gpu"):  # how many GPUs there were, nothing says
        images = _whole(said.get("batch_size"))
    if epoch is None and progress.get("epoch"):
        epoch = (progress["global_step"] - progress.get("epoch_step", 0)) // progress["epoch"]
    return Average(
        decay,
        interval,
        typed=record.half_life if record is not None else "",
        accumulation=accumulation or _whole(said.get("gradient_accumulation_steps")) or 1,
        images_per_step=images,
        steps_per_epoch=epoch if epoch and epoch > 0 else None,
    )


def run_steps(average: Average, config: Mapping[str, Any] | None) -> int | None:
    """Steps of the whole run, None where that cannot be told."""
    epochs = _whole((config or {}).get("epochs"))
    return None if epochs is None or average.steps_per_epoch is None else epochs * average.steps_per_epoch


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
