"""Keep, save and choose between the EMA and the non-EMA weights of a OneTrainer run.

Everything named here is imported on first use, so that `import onetrainer_ema_select` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onetrainer_ema_select.backups import Backup, open_backup
    from onetrainer_ema_select.errors import (
        BackupError,
        EmaSelectError,
        ExportError,
        HostMismatchError,
        HostNotFoundError,
        ManifestError,
        NamesError,
        PostHocError,
        ResumeError,
        SettingsError,
        StoreError,
    )
    from onetrainer_ema_select.host.export import ExportResult, export
    from onetrainer_ema_select.host.export.synthesize import Synthesized, synthesize
    from onetrainer_ema_select.settings import EmaSelectSettings, WeightSet, parse_settings
    from onetrainer_ema_select.tensor_set import TensorSet
    from onetrainer_ema_select.tracks import WeightTracks
    from onetrainer_ema_select.workspace import newest_complete_backup, scan_workspace

__version__ = "0.1.0"

__all__ = [
    "Backup",
    "BackupError",
    "EmaSelectError",
    "EmaSelectSettings",
    "ExportError",
    "ExportResult",
    "HostMismatchError",
    "HostNotFoundError",
    "ManifestError",
    "NamesError",
    "PostHocError",
    "ResumeError",
    "SettingsError",
    "StoreError",
    "Synthesized",
    "TensorSet",
    "WeightSet",
    "WeightTracks",
    "__version__",
    "export",
    "newest_complete_backup",
    "open_backup",
    "parse_settings",
    "scan_workspace",
    "synthesize",
]

MODULES = {
    "Backup": "backups",
    "EmaSelectSettings": "settings",
    "ExportResult": "host.export",
    "Synthesized": "host.export.synthesize",
    "TensorSet": "tensor_set",
    "WeightSet": "settings",
    "WeightTracks": "tracks",
    "export": "host.export",
    "newest_complete_backup": "workspace",
    "open_backup": "backups",
    "parse_settings": "settings",
    "scan_workspace": "workspace",
    "synthesize": "host.export.synthesize",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{MODULES.get(name, 'errors')}")
    return getattr(module, name)
