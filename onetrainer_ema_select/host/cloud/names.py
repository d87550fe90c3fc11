"""Which of the plugin's files come home from a cloud machine, by their names alone.

OneTrainer synchronises a workspace by the words `samples`, `save`, `backup` and `tensorboard` in a file's path, and
everything else always; of the final output it fetches the one file whose name it knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.naming import SUFFIXES, companions, paired_name, split
from onetrainer_ema_select.store import SIBLING_PREFIX, STAGING
from onetrainer_ema_select.workspace import PARKED_FOLDER

#: What the user writes before a path that is one of the cloud machine, in OneTrainer's own fields too.
REMOTE_PREFIX = "cloud:"

#: OneTrainer looks for these words among all parts of a path, also those above the workspace.
SYNC_WORDS = {
    "samples": "download_samples",
    "save": "download_saves",
    "backup": "download_backups",
    "tensorboard": "download_tensorboard",
}

# As `store` names what is about to take a JSON file's place.
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def is_temporary(parts: Sequence[str]) -> bool:
    """Whether a file is one that the plugin is still writing.

    Args:
        parts: Of its path, as `pathlib` gives them.
    """
    if any(part.startswith(SIBLING_PREFIX) for part in parts) or _inside(parts, (FOLDER, STAGING)):
        return True
    return FOLDER in parts and _TEMPORARY.fullmatch(parts[-1]) is not None


def is_parked(parts: Sequence[str]) -> bool:
    """Whether a file is of an EMA that was set aside; its size and use are those of a backup."""
    return _inside(parts, PARKED_FOLDER.parts)


def belongs_to_output(name: str, destination: str) -> bool:
    """Whether a file or folder is part of a final output.

    Args:
        name: Its name, without the folder it lies in.
        destination: The name that OneTrainer's `output_model_destination` ends in.

    Returns:
        True for either set, what a saver writes beside them, and what was left beside its place under another name
        because that could not be replaced (`model-new.safetensors`).
    """
    both = [destination, *(paired_name(destination, suffix) for suffix in SUFFIXES.values())]
    if any(name in (each, *companions(each)) for each in both):
        return True
    stem, ending, _ = split(name)
    return f"{re.sub(r'-new(-[0-9]+)?$', '', stem)}{ending}" in both


def remote_choice(value: str, *, local_workspace: Path, remote_workspace: PurePosixPath) -> str:
    """What `resume_backup` means on the cloud machine.

    Args:
        value: As the user typed it on this one.
        local_workspace: The workspace here.
        remote_workspace: The same there.

    Returns:
        Names as they are; paths into the workspace as paths there; others as they are, without `cloud:`.

    Raises:
        ResumeError: It is a folder of this machine only.
    """
    if value.startswith(REMOTE_PREFIX):
        return value.removeprefix(REMOTE_PREFIX)
    if "/" not in value and "\\" not in value:
        return value
    place, workspace = (os.path.normcase(os.path.abspath(path)) for path in (value, local_workspace))  # noqa: PTH100
    if Path(place).is_relative_to(workspace):
        parts = Path(os.path.abspath(value)).parts[len(Path(workspace).parts) :]  # noqa: PTH100 - keeps its case
        return str(remote_workspace.joinpath(*parts))
    if Path(value).exists():
        raise ResumeError(
            f"ema_select.resume_backup names {value}, a folder of this machine, but the run is to resume on the cloud "
            f"machine, and OneTrainer uploads no backups. Copy it into {remote_workspace}/backup there and type its "
            f"name, or type {REMOTE_PREFIX} and its path on the cloud machine.",
            key="resume_backup",
            path=value,
            found=value,
        )
    return value


def words_above(workspace: PurePosixPath) -> tuple[str, ...]:
    """The flags that decide about the whole workspace because of a word above it; the first one counts."""
    return tuple(flag for word, flag in SYNC_WORDS.items() if word in workspace.parts)


def _inside(parts: Sequence[str], folder: Sequence[str]) -> bool:
    width = len(folder)
    return any(tuple(parts[start : start + width]) == tuple(folder) for start in range(len(parts) - width))
