"""What OneTrainer asks its saver to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class SaveRequest:
    """One call of OneTrainer's saver.

    Attributes:
        save: OneTrainer's own method.
        model: The model.
        model_type: Its type.
        model_format: The format to write; ``INTERNAL`` for a backup.
        dtype: The dtype of the file, None for the weights' own.
        more: What a newer OneTrainer passes besides, by position; handed on as it is.
        more_named: The same by name.
    """

    save: Callable[..., Any]
    model: Any
    model_type: Any
    model_format: Any
    dtype: torch.dtype | None
    more: tuple[Any, ...] = ()
    more_named: Mapping[str, Any] = field(default_factory=dict)

    def as_backup(self) -> SaveRequest:
        """The same moment as a backup, as OneTrainer itself asks for one."""
        internal = type(self.model_format)["INTERNAL"]
        return replace(self, model_format=internal, dtype=None)

    def write(self, destination: Path) -> None:
        """Have OneTrainer write it somewhere.

        Raises:
            Exception: Whatever its saver raises.
        """
        self.save(
            self.model,
            self.model_type,
            self.model_format,
            str(destination),
            self.dtype,
            *self.more,
            **self.more_named,
        )
