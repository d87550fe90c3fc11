"""The average as OneTrainer sees it: the object that it keeps as ``model.ema``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.interrupts import interrupts_deferred
from onetrainer_ema_select.tracks import WeightTracks


class HostEma:
    """Speaks OneTrainer's language and delegates to :class:`WeightTracks`.

    OneTrainer copies the EMA into the model before samples and before saves alike. A save needs no copy (see
    :class:`state_dict_view.StateDictView`), so here copying only notes what is wanted, and the sampler's wrap
    does it when a sample is really made. That keeps a save from ever touching a live weight.
    """

    def __init__(self, tracks: WeightTracks, *, failed: Callable[[int, Exception], None]) -> None:
        """Wrap tracks; nothing is shown.

        ``updated`` may be set to what is told the optimizer step and the decay of every update, right after it.

        Args:
            tracks: The tracks.
            failed: Told the optimizer step and the error when an update fails: training goes on then.
        """
        self.tracks = tracks
        self._failed = failed
        self.ema_wanted = False
        self.updated: Callable[[int, float], None] | None = None

    def before_sample(self) -> None:
        """Put the set that OneTrainer asked for into the model. Stays until it asks for the other one."""
        if self.ema_wanted:
            self.tracks.show_ema()
        else:
            self.tracks.show_live()

    def settle(self) -> None:
        """Have the live weights in the model, whatever was interrupted before."""
        self.ema_wanted = False
        self.tracks.show_live()

    def copy_ema_to(self, parameters: Iterable[Tensor], *_: Any, **__: Any) -> None:
        """Note that the EMA is wanted."""
        del parameters
        self.ema_wanted = True

    def copy_temp_to(self, parameters: Iterable[Tensor], *_: Any, **__: Any) -> None:
        """Go back to the live weights."""
        del parameters
        self.settle()

    def get_current_decay(self, optimization_step: int, *_: Any, **__: Any) -> float:
        """Decay of the update at this optimizer step, or of the next one where none is due at it."""
        if self.tracks.pace is not None:
            # OneTrainer draws it at every optimizer step, and by a half-life it depends on the time that has passed.
            optimization_step += -(optimization_step + 1) % self.tracks.update_step_interval
        try:
            return self.tracks.get_current_decay(optimization_step)
        except EmaSelectError:  # OneTrainer only draws it; the update itself reports this
            return self.tracks.decay

    def step(self, parameters: Iterable[Tensor], optimization_step: int, *_: Any, **__: Any) -> None:
        """Average, if an update is due. A failure is reported and does not end the training."""
        self.tracks.show_live()  # outside: a run that cannot have its own weights back must not go on
        updates, decay = self.tracks.updates, self.get_current_decay(optimization_step)
        try:
            with interrupts_deferred():
                self.tracks.step(parameters, optimization_step)
        except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
            self._failed(optimization_step, error)
        if self.updated is not None and self.tracks.updates > updates:
            self.updated(optimization_step, decay)

    @property
    def decay(self) -> float:
        """Decay that the updates come to."""
        return self.tracks.decay_per_update()

    @property
    def ema_parameters(self) -> list[Tensor]:
        """The averages in OneTrainer's order."""
        return self.tracks.ema_parameters

    def state_dict(self) -> dict[str, Any]:
        """What OneTrainer writes into ``ema.pt``."""
        return self.tracks.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what stands in an ``ema.pt``."""
        self.tracks.load_state_dict(state_dict)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Move the averages."""
        self.tracks.to(device, dtype)
