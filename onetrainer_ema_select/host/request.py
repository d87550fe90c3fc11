"""What OneTrainer asks its saver to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    save: Callable[..., Any]
    model: Any
    model_type: Any
    model_format: Any
    dtype: torch.dtype | None

    def write(self, destination: Path) -> None:
        """Have OneTrainer write it somewhere.

        Raises:
            Exception: Whatever its saver raises.
        """
        self.save(
            model=self.model,
            model_type=self.model_type,
            output_model_format=self.model_format,
            output_model_destination=str(destination),
            dtype=self.dtype,
        )
