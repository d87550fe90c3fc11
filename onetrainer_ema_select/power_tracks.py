"""Power-function averages of a run, beside its ordinary one: what post-hoc EMA is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onetrainer_ema_select.averaging import Averager, begin_average, take_up_average, wait_for_transfers
from onetrainer_ema_select.errors import PostHocError, TrackError
from onetrainer_ema_select.posthoc import Profile, gamma_from_sigma_rel, power_decay
from onetrainer_ema_select.schedule import is_update_step

# Away from the seeds of the ordinary average, which count its updates from a number of their own.
_SEED_OFFSET = 0x9057_0000_0000
_MOST_TRACKS = 1 << 8


@dataclass(frozen=True)
class PendingUpdate:
    """An update of all power-function tracks that is due; whoever makes it calls :meth:`done` afterwards.

    Attributes:
        time: The time that the tracks come to by it.
        weights: Of each track, ``1 - decay``.
        seeds: Of each track, for the rounding of 16-bit averages.
    """

    tracks: PowerTracks
    time: float
    weights: tuple[float, ...]
    seeds: tuple[int, ...]

    def averages(self, name: str) -> tuple[Tensor | None, ...]:
        """One parameter's average in each track (aliases); begun now where it did not train before."""
        return self.tracks.averages(name)

    def done(self) -> None:
        """Note that every average has been moved."""
        self.tracks.advance(self.time)


class PowerTracks:
    """Keeps power-function EMAs of several lengths, all moved in one pass over the parameters.

    The weight of each update is exact for the time since the last one (:func:`posthoc.power_decay`), however far
    apart they are. The parameters are only read. Time is whatever the caller counts (images, or steps), from the
    run's beginning; what a track holds depends on the ratios of times alone.

    To make no second pass over the parameters, give them to the ordinary tracks:
    ``weight_tracks.beside = power_tracks`` lets :meth:`WeightTracks.step` move these too (needs ``time_of``). Without
    an ordinary average, call :meth:`step` after each optimizer step that is :meth:`due`, with the live weights shown.

    State to save for an exact resume: :meth:`sets`, :attr:`time`, :attr:`updates`, and :attr:`begun_at` of each.

    Attributes:
        interval: Optimizer steps from one update to the next.
        time: When the tracks were last updated; where they began, if they never were.
        updates: How many updates there were.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        sigma_rels: Iterable[float],
        device: torch.device | str,
        dtype: torch.dtype | None = torch.float32,
        interval: int = 1,
        begun_at: float | Mapping[float, float] = 0.0,
        time: float = 0.0,
        updates: int = 0,
        initial: Mapping[float, MutableMapping[str, Tensor]] | None = None,
        time_of: Callable[[int], float] | None = None,
    ) -> None:
        """Start the tracks from the parameters as they are, or take up saved ones.

        Args:
            named_parameters: The parameters under unique, stable names, kept by reference. Those that do not
                train have no average here until they do.
            sigma_rels: The lengths.
            device: Where the averages live.
            dtype: Their dtype; ``None`` keeps each parameter's own, with stochastic rounding where that has 16 bits.
            interval: Every how many optimizer steps the tracks are updated.
            begun_at: When the saved tracks began; by length where they began at different times. New ones (those
                that ``initial`` does not hold) begin at ``time``.
            time: When the saved tracks were last updated; with new ones only, how far training has come. A track
                that begins at 0 leaves out what the parameters were then at its first update.
            updates: How many updates there were.
            initial: Saved averages by length and name. Each one used is taken out of its mapping and kept
                *without* a copy where device and dtype already fit.
            time_of: The time after an optimizer step (0-based), for :meth:`prepare`.

        Raises:
            PostHocError: If there is no such length, or a track was updated last before it began.
            TrackError: If a name occurs twice, or a saved average has another shape than its parameter.
        """
        self.device = torch.device(device)
        self.dtype = dtype
        self.interval = interval
        self.time = float(time)
        self.updates = updates
        self._time_of = time_of
        self._gammas = {sigma_rel: gamma_from_sigma_rel(sigma_rel) for sigma_rel in sorted(set(sigma_rels))}
        if len(self._gammas) > _MOST_TRACKS:
            raise PostHocError(f"{len(self._gammas)} lengths were asked for, at most {_MOST_TRACKS} are possible.")
        self._begun_at = {sigma_rel: self._begin_of(sigma_rel, begun_at, initial) for sigma_rel in self._gammas}
        self._averager = Averager()
        self._parameters: dict[str, Tensor] = {}
        self._sets: dict[float, dict[str, Tensor]] = {sigma_rel: {} for sigma_rel in self._gammas}
        for name, parameter in named_parameters:
            if name in self._parameters:
                raise TrackError(
                    f"Two parameters have the name {name!r}; every parameter needs a name of its own. "
                    "Please report this with the model type and training method.",
                    key=name,
                )
            self._parameters[name] = parameter
            for sigma_rel, averages in self._sets.items():
                saved = (initial or {}).get(sigma_rel, {}).pop(name, None)
                if saved is not None and parameter.is_floating_point():
                    averages[name] = self._take_up(name, parameter, saved)
                elif _trains(parameter) or self._is_held(name, parameter, initial):
                    averages[name] = self._copy(parameter)

    def _is_held(
        self, name: str, parameter: Tensor, initial: Mapping[float, MutableMapping[str, Tensor]] | None
    ) -> bool:
        """Whether another length has an average of a weight that does not train any more: a new one needs it too."""
        saved = any(name in averages for averages in (initial or {}).values())
        return parameter.is_floating_point() and (saved or any(name in averages for averages in self._sets.values()))

    def _begin_of(
        self,
        sigma_rel: float,
        begun_at: float | Mapping[float, float],
        initial: Mapping[float, MutableMapping[str, Tensor]] | None,
    ) -> float:
        if initial is None or sigma_rel not in initial:
            return self.time
        begin = float(begun_at.get(sigma_rel, self.time) if isinstance(begun_at, Mapping) else begun_at)
        if not 0 <= begin <= self.time:
            raise PostHocError(
                f"The track of sigma_rel {sigma_rel:g} began at {begin:g} and was last updated at {self.time:g}; time "
                "has to go on from its beginning. Please report this.",
                found=f"{begin:g}, {self.time:g}",
            )
        return begin

    def _take_up(self, name: str, parameter: Tensor, saved: Tensor) -> Tensor:
        if saved.shape != parameter.shape:
            raise TrackError(
                f"The saved power-function average of {name!r} has the shape {tuple(saved.shape)}, the parameter has "
                f"{tuple(parameter.shape)}. Set ema_select.resume_ema to RESTART to begin new averages.",
                key=name,
                expected=str(tuple(parameter.shape)),
                found=str(tuple(saved.shape)),
            )
        return take_up_average(saved, parameter, device=self.device, dtype=self.dtype)

    def _copy(self, parameter: Tensor) -> Tensor:
        return begin_average(parameter, device=self.device, dtype=self.dtype)

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        """The lengths, the shortest first."""
        return tuple(self._gammas)

    @property
    def begun_at(self) -> Mapping[float, float]:
        """When each track began, by length."""
        return dict(self._begun_at)

    @property
    def nbytes(self) -> int:
        """Bytes that the averages take on their device."""
        return sum(average.nbytes for averages in self._sets.values() for average in averages.values())

    def sets(self) -> Mapping[float, Mapping[str, Tensor]]:
        """Every track's averages by name, in the parameters' order (aliases); by length, the shortest first."""
        return self._sets

    def profile(self, sigma_rel: float, *, interval_time: float = 0.0) -> Profile:
        """What a snapshot of one track holds, for :func:`posthoc.solve`.

        Args:
            sigma_rel: The track.
            interval_time: Time from one update to the next, in the unit of :attr:`time`.
        """
        return Profile(sigma_rel, self.time, interval_time, self._begun_at[sigma_rel])

    def averages(self, name: str) -> tuple[Tensor | None, ...]:
        """One parameter's average in each track (aliases); begun now where it began to train since.

        A weight that has stopped training goes on being averaged: time goes on, and its share of it grows.
        """
        found = [averages.get(name) for averages in self._sets.values()]
        parameter = self._parameters.get(name)
        if parameter is not None and _trains(parameter):
            for place, averages in enumerate(self._sets.values()):
                if found[place] is None:
                    found[place] = averages[name] = self._copy(parameter)
        return tuple(found)

    def due(self, optimization_step: int) -> bool:
        """Whether the tracks are updated after this optimizer step (0-based)."""
        return is_update_step(optimization_step, self.interval)

    def prepare(self, optimization_step: int) -> PendingUpdate | None:
        """The update that is due after this optimizer step (0-based), for a pass that moves other averages too."""
        if self._time_of is None or not self.due(optimization_step):
            return None
        return self.pending(self._time_of(optimization_step))

    def pending(self, time: float) -> PendingUpdate | None:
        """The update at this time; None where the tracks have come that far already.

        So it may be after a resume: a run that was ended right after an update had not counted its step yet.
        """
        if time <= self.time:
            return None
        weights = tuple(1.0 - power_decay(self.time, time, gamma) for gamma in self._gammas.values())
        seeds = tuple(_SEED_OFFSET + self.updates * _MOST_TRACKS + place for place in range(len(weights)))
        return PendingUpdate(self, time, weights, seeds)

    def step(self, time: float) -> None:
        """Move all tracks towards the parameters, for the time since the last update; nothing if that is none.

        Args:
            time: How far training has come, in the unit of :attr:`time`.
        """
        update = self.pending(time)
        if update is None:
            return
        live: list[Tensor] = []
        rows: list[tuple[Tensor | None, ...]] = []
        for name, parameter in self._parameters.items():
            row = update.averages(name)
            if any(average is not None for average in row):
                live.append(parameter)
                rows.append(row)
        wait_for_transfers()
        columns = [[row[place] for row in rows] for place in range(len(self._sets))]
        self._averager.update_several(columns, live, weights=update.weights, seeds=update.seeds)
        update.done()

    def advance(self, time: float) -> None:
        """Note that the averages have been moved to this time; :meth:`PendingUpdate.done` calls it."""
        self.time = float(time)
        self.updates += 1


def _trains(parameter: Tensor) -> bool:
    return parameter.requires_grad and parameter.is_floating_point()
