"""The one file that `enable` puts into OneTrainer, and `disable` takes out again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from onetrainer_ema_select.errors import EmaSelectError

DROPIN_NAME = "ema_select_dropin.py"

#: OneTrainer imports every file of this folder at its start.
DROPIN_FOLDER = Path("modules", "modelSetup")

#: By its first line `disable` knows the file as ours, also one that another version wrote.
FIRST_LINE = "# Written by `onetrainer-ema-select enable`; `onetrainer-ema-select disable` removes it."

#: What is put there: a file of this folder that nothing here imports. Read as text, so that its line ends are the
#: same wherever this package was unpacked.
DROPIN_TEXT = Path(__file__).with_name("dropin_file.py").read_text(encoding="utf-8")


def dropin_path(directory: Path) -> Path:
    """Where the file lies in the OneTrainer folder `directory`."""
    return directory / DROPIN_FOLDER / DROPIN_NAME


def is_enabled(directory: Path) -> bool:
    """Whether the file is there and ours, of this version or another."""
    return is_ours(dropin_path(directory))


def is_current(directory: Path) -> bool:
    """Whether the file is there and exactly what this version writes."""
    path = dropin_path(directory)
    return path.is_file() and path.read_bytes() == DROPIN_TEXT.encode()


def enable(directory: Path) -> Path:
    """Put the file into the OneTrainer folder `directory`, or renew it.

    Returns:
        Its path.

    Raises:
        EmaSelectError: A file of that name is there that is not ours, or it cannot be written.
    """
    path = dropin_path(directory)
    if path.exists() and not is_ours(path):
        raise EmaSelectError(
            f"{path} exists and is not the plugin's file. Nothing was changed. Move it away and run enable again.",
            path=str(path),
            expected=FIRST_LINE,
        )
    try:
        write_whole(path, DROPIN_TEXT)
    except OSError as error:
        raise EmaSelectError(
            f"{path} cannot be written: {error.strerror or error}. "
            "Nothing was changed. Run enable as the user that owns the OneTrainer folder.",
            path=str(path),
        ) from error
    return path


def disable(directory: Path) -> bool:
    """Remove the file, and what Python compiled it to.

    Returns:
        Whether there was one.

    Raises:
        EmaSelectError: A file of that name is there that is not ours, or it cannot be removed.
    """
    path = dropin_path(directory)
    if not path.exists():
        return False
    if not is_ours(path):
        raise EmaSelectError(
            f"{path} is not the plugin's file, so it stays. Look at it, and delete it yourself if it may go.",
            path=str(path),
            expected=FIRST_LINE,
        )
    try:
        path.unlink()
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
    except OSError as error:
        raise EmaSelectError(
            f"{error.filename} cannot be removed: {error.strerror or error}. Close OneTrainer and run disable again.",
            path=str(path),
        ) from error
    return True


def is_ours(path: Path) -> bool:
    """Whether a file begins with the line that every version of the plugin writes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().rstrip(b"\r\n") == FIRST_LINE.encode()


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old one or the new one, never a part."""
    # no .py: OneTrainer would import what an interrupt leaves behind
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are private; OneTrainer may be run by another user than the one that enables
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
