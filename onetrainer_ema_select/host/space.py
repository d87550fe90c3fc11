"""Will it fit? What a save or a backup takes, against what is free where it goes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onetrainer_ema_select.settings import EmaDtype
from onetrainer_ema_select.workspace import size_of

if TYPE_CHECKING:
    from onetrainer_ema_select.host.session import Session

# AdamW keeps two values for each weight, in the weight's precision; others keep more or less. A backup that has
# been written says it exactly.
_OPTIMIZER_COPIES = 2


class SpaceWatch:
    """Says so when what is about to be written will not fit.

    The first time it goes by the weights; from then on by what was written the last time.
    """

    def __init__(self, session: Session) -> None:
        """Watch over one run."""
        self._session = session
        self._written: dict[str, int] = {}

    def before(self, kind: str, place: Path, *, count: int, dtype: torch.dtype | None) -> None:
        """Compare and, where it will not fit, print so; what cannot be found out is passed over.

        Args:
            kind: ``save``, ``backup`` or ``snapshot``.
            place: Where it goes; need not exist.
            count: How many of the kind are written.
            dtype: The dtype of a save's file, None for the weights' own.
        """
        with contextlib.suppress(Exception):  # a guess about space is no reason not to write
            needed = count * (self._written.get(kind) or self.estimate(kind, dtype))
            free = free_bytes(place)
            if free is None or needed <= free:
                return
            self._session.reporter.say(
                f"WARNING: {'Both sets' if count > 1 else f'The {kind}'} will take about {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free at {place.parent}. It is tried all the same; free some space."
            )

    def after(self, kind: str, place: Path) -> None:
        """Note what one of a kind takes, now that it is written."""
        self._written[kind] = size_of(place)

    def estimate(self, kind: str, dtype: torch.dtype | None) -> int:
        """Bytes of one save, backup or snapshot, by the weights: at least, as other parts may be in it."""
        session = self._session
        tracks = session.post_hoc.tracks.nbytes if session.post_hoc is not None else 0
        if kind == "snapshot":
            return tracks
        parameters = list(session.model.parameters.parameters())
        if kind == "save":
            return _model_bytes(session.model, str(session.config.training_method), parameters, dtype)
        model = _model_bytes(session.model, str(session.config.training_method), parameters, None)
        optimizer = 0 if session.config.optimizer.optimizer is None else _OPTIMIZER_COPIES * _bytes(parameters, None)
        exact = session.settings.ema_dtype is EmaDtype.FLOAT_32
        average = _bytes(parameters, torch.float32 if exact else None) if session.ema is not None else 0
        return model + optimizer + average + tracks


def free_bytes(place: Path) -> int | None:
    """Bytes free on the disk that a place is, or would be, on; None where that cannot be found out."""
    for folder in (place, *place.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def _model_bytes(model: Any, method: str, trained: list[torch.Tensor], dtype: torch.dtype | None) -> int:
    """A fine-tune is written whole, with the parts that were not trained; an adapter or embedding by itself."""
    if not method.startswith("FINE_TUNE"):
        return _bytes(trained, dtype)
    modules = [value for value in vars(model).values() if isinstance(value, nn.Module)]
    everything = {id(tensor): tensor for module in modules for tensor in module.parameters()}
    return _bytes(list(everything.values()) or trained, dtype)


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype | None) -> int:
    size = 0
    for tensor in tensors:
        convert = dtype is not None and tensor.is_floating_point()
        size += tensor.numel() * (dtype.itemsize if convert and dtype is not None else tensor.element_size())
    return size
