"""The two tracks of a run: the live weights, and their exponential moving average beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onetrainer_ema_select.averaging import (
    Averager,
    begin_average,
    take_up_average,
    wait_for_transfers,
)
from onetrainer_ema_select.errors import EmaSelectError, TrackError
from onetrainer_ema_select.length import Pace
from onetrainer_ema_select.schedule import is_update_step, warmup_decay

if TYPE_CHECKING:
    from onetrainer_ema_select.power_tracks import PendingUpdate, PowerTracks

_SEED_OFFSET = 0x5EED0000


@dataclass
class _InFlight:
    """A swap that has begun: what is needed to finish it after an interrupt at any point."""

    name: str
    held: Tensor
    to_ema: bool
    parameter_written: bool = False


class WeightTracks:
    """Keeps an EMA of named parameters and exchanges it with them, bit for bit, on request.

    The parameters themselves are the live track. They are only ever changed in place, by :meth:`show_ema`
    and :meth:`show_live`; their ``.data`` is never replaced and no ``Parameter`` object is ever exchanged,
    because optimizers, hooks and offloading hold on to both.

    Exchanging goes by state, not by toggling: asking twice for the same set does nothing, and an interrupt
    (Ctrl-C) between any two instructions is made good by the next call.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        decay: float,
        device: torch.device | str,
        dtype: torch.dtype | None = torch.float32,
        update_step_interval: int = 1,
        initial: MutableMapping[str, Tensor] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Start the average from the parameters as they are, or take up a saved one.

        Args:
            named_parameters: The parameters in the host's order under unique, stable names. They are kept by
                reference.
            decay: Upper bound of the decay an update; the warm-up of :func:`schedule.warmup_decay` stays below.
            device: Where the averages live.
            dtype: Their dtype; ``None`` keeps each parameter's own.
            update_step_interval: Every how many optimizer steps the average moves.
            initial: Saved averages by name. Each one used is taken out of the mapping and kept *without* a
                copy where device and dtype already fit, so that no second set is ever in memory.
            pace: Gives the updates their weights in place of ``decay`` and its warm-up, for a half-life.

        Raises:
            TrackError: If a name occurs twice, or a saved average has another shape than its parameter.
        """
        self.decay = decay
        self.device = torch.device(device)
        self.dtype = dtype
        self.update_step_interval = update_step_interval
        self.updates = 0
        self.pace = pace
        self.beside: PowerTracks | None = None
        self._averager = Averager()
        self._parameters: dict[str, Tensor] = {}
        # None stands for "shares the live weight": a parameter that does not train and has no saved average.
        # Its average is itself, and a float32 copy of a quantized base could be larger than the machine.
        self._averages: dict[str, Tensor | None] = {}
        # In the order they were swapped (a dict keeps it): they are swapped back in reverse.
        self._swapped: dict[str, None] = {}
        self._stash: dict[str, Tensor] = {}
        # Of those in the stash, the ones whose parameter holds the whole average: an interrupt may come between.
        self._copied: set[str] = set()
        self._in_flight: _InFlight | None = None
        for name, parameter in named_parameters:
            if name in self._parameters:
                raise TrackError(
                    f"Two parameters have the name {name!r}; every parameter needs a name of its own. "
                    "Please report this with the model type and training method.",
                    key=name,
                )
            self._parameters[name] = parameter
            saved = initial.pop(name, None) if initial is not None else None
            self._averages[name] = self._begin(name, parameter, saved)

    def _begin(self, name: str, parameter: Tensor, saved: Tensor | None) -> Tensor | None:
        if saved is not None and parameter.is_floating_point():
            if saved.shape != parameter.shape:
                raise TrackError(
                    f"The saved average of {name!r} has the shape {tuple(saved.shape)}, the parameter has "
                    f"{tuple(parameter.shape)}. Set ema_select.resume_ema to RESTART to begin a new average.",
                    key=name,
                    expected=str(tuple(parameter.shape)),
                    found=str(tuple(saved.shape)),
                )
            return take_up_average(saved, parameter, device=self.device, dtype=self.dtype)
        if not parameter.requires_grad or not parameter.is_floating_point():
            return None
        return self._copy(parameter)

    def _copy(self, parameter: Tensor) -> Tensor:
        return begin_average(parameter, device=self.device, dtype=self.dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """The stable names, in the host's order."""
        return tuple(self._parameters)

    @property
    def showing_ema(self) -> bool:
        """Whether any parameter holds its average right now."""
        return bool(self._swapped or self._stash or self._in_flight)

    @property
    def stash_nbytes(self) -> int:
        """Bytes of the CPU's memory that an exchange takes: live weights of another dtype than their average."""
        pairs = ((self._averages[name], parameter) for name, parameter in self._parameters.items())
        return sum(live.nbytes for average, live in pairs if average is not None and average.dtype != live.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the averages take on their device."""
        return sum(average.nbytes for average in self._averages.values() if average is not None)

    def average(self, name: str) -> Tensor | None:
        """The average of one parameter (an alias, not a copy), or None where it is the live weight itself.

        Only meaningful while the live weights are shown: during an exchange the slot may hold them.
        """
        return self._averages[name]

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Name and average (aliases), in the host's order; the live weight where a parameter shares it."""
        self.show_live()
        for name, average in self._averages.items():
            yield name, self._parameters[name].detach() if average is None else average

    # -- averaging ---------------------------------------------------------------------------------------

    def get_current_decay(self, optimization_step: int) -> float:
        """Decay of the update at this optimizer step (0-based)."""
        if self.pace is not None:
            return 1.0 - self.pace.weight(optimization_step)
        return warmup_decay(optimization_step, self.decay)

    def decay_per_update(self) -> float:
        """Decay that the updates come to; ``decay`` where a half-life in epochs cannot be converted yet."""
        if self.pace is None:
            return self.decay
        try:
            return self.pace.decay()
        except EmaSelectError:
            return self.decay

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor], optimization_step: int) -> None:
        """Move the averages towards the parameters, if an update is due at this optimizer step.

        Args:
            parameters: The parameters in the order of :attr:`names`; the objects given to ``__init__``.
            optimization_step: 0-based number of the optimizer step that was just done.
        """
        self.show_live()
        due = is_update_step(optimization_step, self.update_step_interval)
        others, failure = self._prepare_others(optimization_step)
        if due or others is not None:
            self._update(parameters, optimization_step, others, due=due)
        if failure is not None:
            raise failure

    def _prepare_others(self, optimization_step: int) -> tuple[PendingUpdate | None, Exception | None]:
        """What is due of the tracks beside this one, or what has failed: this average moves all the same."""
        try:
            return (None if self.beside is None else self.beside.prepare(optimization_step)), None
        except Exception as error:  # noqa: BLE001 - raised by the caller, after the update
            return None, error

    def _update(
        self, parameters: Iterable[Tensor], optimization_step: int, others: PendingUpdate | None, *, due: bool
    ) -> None:
        rows: list[tuple[Tensor | None, ...]] = []
        live: list[Tensor] = []
        for name, parameter in zip(self._averages, parameters, strict=True):
            trains = parameter.requires_grad
            average = self._averages[name] if trains and due else None
            if average is None and trains and due:  # began to train after the start: its average begins here
                self._averages[name] = self._copy(parameter)
            row = (average, *(others.averages(name) if others is not None else ()))
            if any(one is not None for one in row):
                rows.append(row)
                live.append(parameter)
        wait_for_transfers()
        self._move(rows, live, optimization_step, others, due=due)
        if others is not None:
            others.done()
        if due:
            self.updates += 1
            if self.pace is not None:
                self.pace.advance(optimization_step)

    def _move(
        self,
        rows: list[tuple[Tensor | None, ...]],
        live: list[Tensor],
        optimization_step: int,
        others: PendingUpdate | None,
        *,
        due: bool,
    ) -> None:
        weight = 0.0
        if due:
            weight = (
                1.0 - self.get_current_decay(optimization_step)
                if self.pace is None
                else self.pace.weight(optimization_step)
            )
        weights, seeds = (others.weights, others.seeds) if others is not None else ((), ())
        columns = [[row[place] for row in rows] for place in range(1 + len(weights))]
        # Away from the small numbers that hosts seed their own rounding with: the same noise in both would bias it.
        seed = optimization_step + _SEED_OFFSET
        self._averager.update_several(columns, live, weights=(weight, *weights), seeds=(seed, *seeds))

    # -- exchanging --------------------------------------------------------------------------------------

    @contextmanager
    def exchanged(self) -> Iterator[WeightTracks]:
        """Have the averages in the model for a while; the live weights are back when it ends, however it ends."""
        try:
            self.show_ema()
            yield self
        finally:
            self.show_live()

    @torch.no_grad()
    def show_ema(self) -> None:
        """Put every average into its parameter, in place. Does nothing where it is there already.

        Where dtypes match the two are swapped (extra memory: the largest tensor); elsewhere the live weights
        are kept aside on the CPU, in their own dtype.
        """
        self._settle()
        wait_for_transfers()
        for name, average in self._averages.items():
            if average is None or name in self._swapped or name in self._copied:
                continue
            parameter = self._parameters[name]
            if average.dtype == parameter.dtype:
                self._swap(name, to_ema=True)
            else:
                if name not in self._stash:
                    # Kept before the parameter is touched, so that show_live can undo it from here on.
                    self._stash[name] = parameter.detach().to("cpu", copy=True)
                parameter.detach().copy_(average)
                self._copied.add(name)

    @torch.no_grad()
    def show_live(self) -> None:
        """Put every live weight back into its parameter, bit for bit. Does nothing where it is there already."""
        if self.showing_ema:
            wait_for_transfers()
        self._settle()
        for name in reversed(tuple(self._swapped)):
            self._swap(name, to_ema=False)
        for name in reversed(tuple(self._stash)):
            self._copied.discard(name)
            self._parameters[name].detach().copy_(self._stash[name])
            del self._stash[name]

    def _swap(self, name: str, *, to_ema: bool) -> None:
        self._in_flight = _InFlight(name, self._parameters[name].detach().clone(), to_ema)
        self._settle()

    def _settle(self) -> None:
        """Finish a swap that has begun. Every line may be repeated, so an interrupt anywhere does no harm."""
        flight = self._in_flight
        if flight is None:
            return
        parameter = self._parameters[flight.name].detach()
        slot = self._averages[flight.name]
        if slot is not None:
            if not flight.parameter_written:
                parameter.copy_(slot)
                flight.parameter_written = True
            slot.copy_(flight.held)
            if flight.to_ema:
                self._swapped[flight.name] = None
            else:
                self._swapped.pop(flight.name, None)
        self._in_flight = None

    # -- as the host calls it ----------------------------------------------------------------------------

    def copy_ema_to(self, parameters: Iterable[Tensor], store_temp: bool = True) -> None:
        """Show the averages. The live weights are always kept, whatever ``store_temp`` says."""
        del parameters, store_temp  # the parameters are known, and losing the live weights is never wanted
        self.show_ema()

    def copy_temp_to(self, parameters: Iterable[Tensor]) -> None:
        """Show the live weights again; harmless when they are shown already."""
        del parameters
        self.show_live()

    @property
    def ema_parameters(self) -> list[Tensor]:
        """The averages as a list in the host's order (aliases)."""
        return [average for _, average in self.averages()]

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Move the averages to another device or dtype."""
        self.show_live()
        self.device = self.device if device is None else torch.device(device)
        self.dtype = self.dtype if dtype is None else dtype
        for name, average in self._averages.items():
            if average is not None:
                self._averages[name] = average.to(self.device, dtype or average.dtype)

    def state_dict(self) -> dict[str, Any]:
        """What the host's ``ema.pt`` holds: ``decay``, and the averages as a list in its order (aliases)."""
        return {"decay": self.decay_per_update(), "ema_parameters": self.ema_parameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the averages of a host ``ema.pt``, by position; its decay only where there is none here.

        Raises:
            TrackError: If there are more or fewer tensors than parameters, or a shape differs. Nothing has
                been changed then.
        """
        saved = list(state_dict["ema_parameters"])
        check_positions(saved, list(self._parameters.values()))
        self.show_live()
        self.decay = self.decay or state_dict.get("decay", self.decay)
        for name, average in zip(self._parameters, saved, strict=True):
            self._averages[name] = self._begin(name, self._parameters[name], average)


def check_positions(saved: list[Tensor], parameters: list[Tensor]) -> None:
    """Refuse a list of averages that cannot belong to these parameters by position.

    Raises:
        TrackError: Naming both counts, or the first position whose shapes differ.
    """
    advice = (
        "The set of trained weights has changed since that backup, and a backup of plain OneTrainer names no "
        "parameters, so they cannot be matched. Restore the old layer filter and training settings, or set "
        "ema_select.resume_ema to RESTART and ema_select.resume_weights to NON_EMA."
    )
    if len(saved) != len(parameters):
        raise TrackError(
            f"The saved average holds {len(saved)} tensors, the model trains {len(parameters)}. {advice}",
            expected=str(len(parameters)),
            found=str(len(saved)),
        )
    for position, (average, parameter) in enumerate(zip(saved, parameters, strict=True)):
        if average.shape != parameter.shape:
            raise TrackError(
                f"Tensor {position} of the saved average has the shape {tuple(average.shape)}, the model's "
                f"has {tuple(parameter.shape)}. {advice}",
                expected=str(tuple(parameter.shape)),
                found=str(tuple(average.shape)),
            )
