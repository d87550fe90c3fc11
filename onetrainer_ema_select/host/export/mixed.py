"""A backup with a post-hoc average in the place of its EMA: its structure, the weights of the mixture. No host here."""

from __future__ import annotations

import dataclasses

from onetrainer_ema_select.backups import Backup, open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.export.messages import ExportOrder, MixtureOrder
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.tensor_set import Entry, TensorSet


def open_ordered(order: ExportOrder) -> Backup:
    """The backup of an order, with what is asked for in the place of its EMA.

    Raises:
        EmaSelectError: If it cannot be opened, or a snapshot cannot be read.
    """
    opened = open_backup(order.backup)
    return opened if order.mixture is None else with_mixture(opened, order.mixture)


def with_mixture(opened: Backup, order: MixtureOrder) -> Backup:
    """The backup as if the average were its EMA, of the average's moment.

    What is among its trained weights and has no average, because it did not train, stays as it is.

    Raises:
        EmaSelectError: If a snapshot cannot be read.
    """
    mixture = Synthesis(order.files, order.coefficients)
    live = opened.sets[WeightSet.NON_EMA]
    named = [record.name for record in opened.manifest.parameters] if opened.manifest is not None else []
    entries: dict[str, Entry] = {
        name: mixture.entry(name) if name in mixture else live.entry(name)
        for name in named
        if name in mixture or name in live
    }
    entries |= {name: mixture.entry(name) for name in mixture if name not in entries}
    return dataclasses.replace(
        opened,
        step=order.step,
        epoch=order.epoch,
        epoch_step=order.epoch_step,
        sets={WeightSet.NON_EMA: live, WeightSet.EMA: TensorSet(entries)},
        named=True,
    )
