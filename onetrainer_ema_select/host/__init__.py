"""The only part of the package that knows OneTrainer.

:func:`arm` is what the drop-in file and the ``train`` verb call; everything else follows from it.
"""

from onetrainer_ema_select.host.install import arm, disarm

__all__ = ["arm", "disarm"]
