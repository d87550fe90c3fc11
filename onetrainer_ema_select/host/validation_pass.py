"""One validation of OneTrainer's, watched, and done once more with the EMA in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.memory import free_memory
from onetrainer_ema_select.host.random_state import RandomState
from onetrainer_ema_select.tracks import WeightTracks

#: Bytes of batches that are kept before they are used. More than that costs further exchanges of the weights.
KEPT_BYTES = 512 * 1024 * 1024

_QUIET_SECONDS = 2
# What the random states of a call take: Python's own are a tuple of 625 numbers.
_STATE_BYTES = 40 * 1024


@dataclass
class _Call:
    """What OneTrainer gave to its two functions for a batch, and the random states before it."""

    random: RandomState
    batch: dict[str, Any]
    moved: dict[int, torch.device]
    predict: tuple[tuple[Any, ...], dict[str, Any]]
    loss: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


@dataclass
class ValidationPass:
    """Notes each batch of a validation while OneTrainer goes through it, and repeats them with the EMA.

    The batches themselves are kept, so that nothing is loaded, decoded or encoded twice; what is random in the model
    (dropout) sees the same random numbers both times, and the random states are afterwards as OneTrainer left them.

    Attributes:
        setup: OneTrainer's model setup, whose ``predict`` and ``calculate_loss`` are followed.
        tracks: The two sets.
        kept_bytes: When batches take more than this, they are repeated at once to be let go.
        concepts: Of each batch so far its concept's name, path and seed.
        non_ema: Of each batch so far OneTrainer's own loss.
        ema: Of each batch that was repeated the EMA's.
    """

    setup: Any
    tracks: WeightTracks
    kept_bytes: int = KEPT_BYTES
    concepts: list[tuple[str, str, int]] = field(default_factory=list)
    non_ema: list[Tensor] = field(default_factory=list)
    ema: list[float] = field(default_factory=list)
    error: Exception | None = None
    _calls: list[_Call] = field(default_factory=list)
    _bytes: int = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the two functions for a while; OneTrainer gets what they return, unchanged."""
        own_predict, own_loss = self.setup.predict, self.setup.calculate_loss
        before = {name: vars(self.setup)[name] for name in ("predict", "calculate_loss") if name in vars(self.setup)}

        def predict(model: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._guarded(lambda: self._note(batch, (args, kwargs)))
            return own_predict(model, batch, *args, **kwargs)

        def calculate_loss(model: Any, batch: dict[str, Any], data: Any, *args: Any, **kwargs: Any) -> Any:
            loss = own_loss(model, batch, data, *args, **kwargs)
            self._guarded(lambda: self._note_loss(loss, (args, kwargs)))
            if self._bytes > self.kept_bytes:
                self.repeat(model, own_predict, own_loss)
            return loss

        self.setup.predict, self.setup.calculate_loss = predict, calculate_loss
        try:
            yield
        finally:
            for name in ("predict", "calculate_loss"):
                vars(self.setup).pop(name, None)
            vars(self.setup).update(before)

    def repeat(
        self, model: Any, predict: Callable[..., Any] | None = None, calculate_loss: Callable[..., Any] | None = None
    ) -> None:
        """Compute the EMA's losses of the batches that are kept, and let go of these. A failure ends up in `error`.

        Args:
            model: OneTrainer's model.
            predict: The setup's own function, where it is being followed.
            calculate_loss: Likewise.

        Raises:
            Exception: If the live weights could not be put back. A run that cannot have them must not go on.
        """
        calls, self._calls, self._bytes = self._calls, [], 0
        if not calls or self.error is not None:
            return
        predict, calculate_loss = predict or self.setup.predict, calculate_loss or self.setup.calculate_loss
        debug = getattr(self.setup, "debug_mode", False)
        before = RandomState.now()
        try:
            self._check_memory()
            # The pictures of its debug mode are to be of the live weights, as without the plugin.
            self.setup.debug_mode = False
            with torch.no_grad(), self.tracks.exchanged():
                for call in tqdm(calls, desc="validation of the EMA", delay=_QUIET_SECONDS, leave=False):
                    call.random.restore()
                    batch = {key: _moved(value, call.moved) for key, value in call.batch.items()}
                    data = predict(model, batch, *call.predict[0], **call.predict[1])
                    loss = calculate_loss(model, batch, data, *call.loss[0], **call.loss[1])
                    self.ema.append(loss.item())
        except Exception as error:  # noqa: BLE001 - kept for the caller: no reason to end a training
            self.error = error
        finally:
            self.setup.debug_mode = debug
            before.restore()
        self.tracks.show_live()

    def _check_memory(self) -> None:
        """Refuse an exchange that the memory will not hold: where it runs out, the system ends the whole run.

        Raises:
            EmaSelectError: If it will not.
        """
        needed, free = self.tracks.stash_nbytes, free_memory()
        if free is not None and needed > free:
            raise EmaSelectError(
                f"The live weights have to be kept aside meanwhile, which takes {needed / 1e9:.1f} GB of memory; "
                f"{free / 1e9:.1f} GB are free. Free memory, or set ema_select.ema_dtype to PARAMETER, which needs "
                "none.",
                expected=f"{needed / 1e9:.1f} GB",
                found=f"{free / 1e9:.1f} GB",
            )

    def _note(self, batch: dict[str, Any], given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        moved: dict[int, torch.device] = {}
        kept = {key: _kept(value, moved) for key, value in batch.items()}
        self.concepts.append((kept["concept_name"][0], kept["concept_path"][0], int(kept["concept_seed"])))
        self._calls.append(_Call(RandomState.now(), kept, moved, given))
        self._bytes += _STATE_BYTES + sum(tensor.nbytes for tensor in _tensors(kept))

    def _note_loss(self, loss: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._calls[-1].loss = given
        self.non_ema.append(loss.detach())

    def _guarded(self, note: Callable[[], None]) -> None:
        """Note something, unless that has failed before; OneTrainer's own validation must not end by it."""
        if self.error is not None:
            return
        try:
            note()
        except Exception as error:  # noqa: BLE001 - see above
            self.error = error
            self._calls.clear()
            self._bytes = 0


def concept_labels(concepts: list[tuple[str, str, int]]) -> list[str]:
    """The labels that OneTrainer's TensorBoard has for batches of these concepts.

    A concept's name, or where it has none the last part of its path; further concepts of the same name get a number.
    Concepts are told apart by their seeds.
    """
    by_seed: dict[int, str] = {}
    for name, path, seed in concepts:
        if seed in by_seed:
            continue
        plain = label = name or PurePath(path).name
        number = 0
        while label in by_seed.values():
            number += 1
            label = f"{plain}({number})"
        by_seed[seed] = label
    return [by_seed[seed] for _, _, seed in concepts]


def _kept(value: Any, moved: dict[int, torch.device]) -> Any:
    """The same value with its tensors on the CPU: what is kept must not take a GPU's memory.

    Args:
        value: Part of a batch. Tensors that are on the CPU are kept without a copy, containers are copied.
        moved: Gets the device of each tensor that was moved, by the kept tensor's id.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value
        kept = value.to("cpu")
        moved[id(kept)] = value.device
        return kept
    if isinstance(value, dict):
        return {key: _kept(inner, moved) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_kept(inner, moved) for inner in value)
    return value


def _moved(value: Any, moved: dict[int, torch.device]) -> Any:
    """The value as it was given to :func:`_kept`."""
    if isinstance(value, Tensor):
        return value.to(moved[id(value)]) if id(value) in moved else value
    if isinstance(value, dict):
        return {key: _moved(inner, moved) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(inner, moved) for inner in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
