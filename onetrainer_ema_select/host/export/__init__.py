"""A model out of a backup, through OneTrainer's own loader, setup and saver.

OneTrainer is loaded in a process of its own (``worker``), with the memory given back when it ends; everything
else here runs in the caller's and needs no OneTrainer.
"""

from onetrainer_ema_select.host.export.launch import export, trained_names
from onetrainer_ema_select.host.export.messages import ExportedSet, ExportResult, Progress

__all__ = ["ExportResult", "ExportedSet", "Progress", "export", "trained_names"]
