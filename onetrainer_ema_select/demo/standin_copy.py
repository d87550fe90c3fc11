"""Copies of the stand-in, to train in: it is written into, as OneTrainer's folder is."""

from __future__ import annotations

import shutil
from pathlib import Path

SOURCE = Path(__file__).absolute().parent / "standin"


def copy_standin(destination: Path) -> Path:
    """Copy the stand-in for OneTrainer's folder.

    Args:
        destination: The new folder; its parents are made.

    Returns:
        The same.

    Raises:
        FileExistsError: It is there already.
        OSError: It cannot be written.
    """
    shutil.copytree(SOURCE, destination, ignore=shutil.ignore_patterns("__pycache__"))
    return destination
