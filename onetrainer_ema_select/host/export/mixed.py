"""A backup with a post-hoc average in the place of its EMA: its structure, the weights of the mixture. No host here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from onetrainer_ema_select.backups import Backup, open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.export.messages import ExportOrder, MixtureOrder
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.tensor_set import Entry, TensorSet


@dataclass(frozen=True)
class MixedTensor:
    """A tensor of a mixture, made when it is read."""

    mixture: Synthesis
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.mixture.entry(self.name).shape)

    @property
    def dtype_name(self) -> str:
        """Torch's name of its dtype."""
        return "float32"

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return 4 * math.prod(self.shape)

    def read(self, first: int, last: int) -> Tensor:
        """These elements, in the order of memory."""
        return self.mixture.read(self.name, first, last)


@dataclass(frozen=True)
class KeptTensor:
    """A tensor of another set, for a parameter that has no average because it does not train."""

    tensors: TensorSet
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.tensors.shape(self.name)

    @property
    def dtype_name(self) -> str:
        """Torch's name of its dtype."""
        return self.tensors.dtype_name(self.name)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.tensors.numel(self.name) * self.tensors.dtype(self.name).itemsize

    def read(self, first: int, last: int) -> Tensor:
        """These elements, in the order of memory."""
        return self.tensors.read(self.name, first, last)


def open_ordered(order: ExportOrder) -> Backup:
    """The backup of an order, with what is asked for in the place of its EMA.

    Raises:
        EmaSelectError: If it cannot be opened, or a snapshot cannot be read.
    """
    opened = open_backup(order.backup)
    return opened if order.mixture is None else with_mixture(opened, order.mixture)


def with_mixture(opened: Backup, order: MixtureOrder) -> Backup:
    """The backup as if the average were its EMA, of the average's moment.

    Raises:
        EmaSelectError: If a snapshot cannot be read.
    """
    mixture = Synthesis(order.files, order.coefficients)
    live = opened.sets[WeightSet.NON_EMA]
    named = [record.name for record in opened.manifest.parameters] if opened.manifest is not None else []
    entries: dict[str, Entry] = {}
    for name in named:
        if name in mixture:
            entries[name] = MixedTensor(mixture, name)
        elif name in live:
            entries[name] = KeptTensor(live, name)
    entries |= {name: MixedTensor(mixture, name) for name in mixture if name not in entries}
    return dataclasses.replace(
        opened,
        step=order.step,
        epoch=order.epoch,
        epoch_step=order.epoch_step,
        sets={WeightSet.NON_EMA: live, WeightSet.EMA: TensorSet(entries)},
        named=True,
    )
