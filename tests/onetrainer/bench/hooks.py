"""Hooks for the bench's own tests; run in OneTrainer's python, see ``Job.hook``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def failing_saves(trainer: Any) -> Iterator[None]:
    """Every save fails, as on a full disk, but for backups."""
    original = trainer.create_model_saver

    def create_failing_saver() -> Any:
        saver = original()
        save = saver.save

        def fail_or_save(*arguments: Any, **named: Any) -> Any:
            if "output_model_destination" in named:  # backups are asked for by position
                raise OSError(28, "No space left on device")
            return save(*arguments, **named)

        saver.save = fail_or_save
        return saver

    trainer.create_model_saver = create_failing_saver
    yield
