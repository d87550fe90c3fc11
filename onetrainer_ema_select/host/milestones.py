"""Milestones of a run: which are due, and which still wait for OneTrainer to serve the save."""

from __future__ import annotations

from typing import Any

from onetrainer_ema_select.schedule import Position, due_milestones, parse_milestones


class MilestoneWatch:
    """Follows OneTrainer's progress.

    Attributes:
        pending: Names of the milestones that are due but not written yet. OneTrainer serves a save before the
            next batch, and only when no gradient is pending.
        saved: Of those, the ones whose models are on the disk, and only their backup is not.
    """

    def __init__(self, text: str) -> None:
        """Read the milestones.

        Args:
            text: As in the settings, checked already.
        """
        self._milestones = parse_milestones(text)
        self._previous: Position | None = None
        self.pending: tuple[str, ...] = ()
        self.saved: frozenset[str] = frozenset()

    @property
    def unsaved(self) -> tuple[str, ...]:
        """Those of the pending ones whose models are not on the disk."""
        return tuple(name for name in self.pending if name not in self.saved)

    def begin(self, train_progress: Any) -> None:
        """Note where the run begins; what lies before is done or owed by ``pending``."""
        self._previous = position(train_progress)

    def advance(self, train_progress: Any, *, epoch_length: int, epochs: int) -> bool:
        """Take note of OneTrainer's progress.

        Args:
            train_progress: OneTrainer's progress object.
            epoch_length: Steps in the current epoch.
            epochs: Epochs of the run.

        Returns:
            Whether a milestone has become due.
        """
        current = position(train_progress)
        if self._previous is None:
            self._previous = current
        due = due_milestones(
            self._milestones,
            previous=self._previous,
            current=current,
            epoch_length=epoch_length,
            epochs=epochs,
        )
        self._previous = current
        new = tuple(milestone.name for milestone in due if milestone.name not in self.pending)
        self.pending += new
        return bool(new)

    def served(self, names: tuple[str, ...]) -> None:
        """Strike out milestones that are on the disk."""
        self.pending = tuple(name for name in self.pending if name not in names)
        self.saved -= frozenset(names)


def position(train_progress: Any) -> Position:
    """OneTrainer's progress as a position."""
    return Position(
        global_step=train_progress.global_step,
        epoch=train_progress.epoch,
        epoch_step=train_progress.epoch_step,
    )
