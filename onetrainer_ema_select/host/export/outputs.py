"""Where the written sets go, checked before anything is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import ExportError
from onetrainer_ema_select.integrity import read_safetensors_header
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.naming import companions, paired_name, set_suffix, split
from onetrainer_ema_select.store import TENSOR_SUFFIXES
from onetrainer_ema_select.workspace import BACKUP_FOLDER

# Headers, configs and tokenizers beside the tensors.
_BESIDE_TENSORS = 8_000_000

_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def output_paths(
    output: Path, *, sets: Sequence[WeightSet], backup: Path, ending: str, name: str = ""
) -> dict[WeightSet, Path]:
    """The place of each set; the first one gets the plain name.

    Args:
        output: As the user gave it, absolute. An existing folder takes single files under the backup's name.
        sets: What is to be written.
        backup: The backup, for the name.
        ending: Of a single file, ``.safetensors``; empty where the format is a folder.
        name: For a file in a folder that exists, in the place of the backup's name; without ending.

    Raises:
        ExportError: The place is not for models.
    """
    _, given, _ = split(output.name)
    if ending and output.is_dir() and not given:
        plain = f"{name or backup.name}{ending}"
        paths = {each: output / (plain if name else paired_name(plain, set_suffix(each))) for each in sets}
    else:
        if ending and not given:
            output = output.with_name(f"{output.name}{ending}")
        first, *others = sets
        paths = {first: output}
        paths.update({each: output.with_name(paired_name(output.name, set_suffix(each))) for each in others})
    folder = backup.resolve()
    # A backup that was copied elsewhere may have its model beside it.
    forbidden = folder.parent if folder.parent.name == BACKUP_FOLDER else folder
    for path in paths.values():
        if path.resolve().is_relative_to(forbidden):
            raise ExportError(
                f"{path} lies among the backups, where OneTrainer takes every folder for a backup. Choose a place "
                "elsewhere, for instance in OneTrainer's folder `models`.",
                path=path,
            )
    return paths


def check_places(paths: dict[WeightSet, Path], *, is_folder: bool, format_name: str, overwrite: bool) -> None:
    """Refuse what exists, is of the other kind, or cannot be written, and a folder that would look like a file.

    Raises:
        ExportError: Naming the place.
    """
    for path in paths.values():
        if not is_folder and path.is_dir():
            raise ExportError(
                f"{format_name} is a single file, but {path} is a folder. Give another name with --output.", path=path
            )
        if is_folder and path.is_file():
            raise ExportError(
                f"{format_name} is a folder, but {path} is a file. Give another name with --output.", path=path
            )
        if format_name == "DIFFUSERS" and split(path.name)[1]:
            raise ExportError(
                f"DIFFUSERS is a folder, and {path.name} would look like a file. Give a name without "
                f"{split(path.name)[1]}, or another --format.",
                path=path,
            )
        _check_place(path, overwrite=overwrite)


def _check_place(path: Path, *, overwrite: bool) -> None:
    there = [path, *(path.with_name(name) for name in companions(path.name))]
    taken = [
        place for place in there if place.is_file() or place.is_symlink() or (place.is_dir() and any(place.iterdir()))
    ]
    if taken and not overwrite:
        raise ExportError(
            f"{taken[0]} is there already. Give another name with --output, or replace it with --overwrite.",
            path=taken[0],
        )
    parent = existing_parent(path)
    if not parent.is_dir():
        raise ExportError(f"{path} cannot be written: {parent} is a file. Give another place with --output.", path=path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(
            f"{path} cannot be written: the folder {parent} is not writable. Give another place with --output, or "
            "make it writable.",
            path=path,
        )


def check_no_mixture(written: Path, target: Path) -> None:
    """Refuse to write a folder over one that holds weights of another division, which loaders would go on reading.

    Args:
        written: The new folder, still in private.
        target: What is there.

    Raises:
        ExportError: Naming a file that would stay.
    """
    if not (written.is_dir() and target.is_dir()):
        return
    for file in sorted(target.rglob("*")):
        weights = file.suffix in TENSOR_SUFFIXES or file.name.endswith(".index.json")
        if weights and file.is_file() and not (written / file.relative_to(target)).is_file():
            raise ExportError(
                f"{target} holds {file.relative_to(target).as_posix()}, which is none of the files that would replace "
                "it, and programs would read both. Delete the folder, or give another name with --output.",
                path=target,
            )


def existing_parent(path: Path) -> Path:
    """The nearest thing above a path that exists."""
    for parent in path.parents:
        if os.path.lexists(parent):
            return parent
    return path


def expected_bytes(backup: Path, *, itemsize: int | None) -> int:
    """About how large one written set will be, from the headers of the backup's files.

    Args:
        backup: The backup.
        itemsize: Bytes of the dtype that is written; None for the weights' own.
    """
    total = 0
    for file in backup.rglob("*.safetensors"):
        if FOLDER in file.relative_to(backup).parts:
            continue  # averages of the plugin, of which none goes into the output
        try:
            header = read_safetensors_header(file)
        except (OSError, ValueError):
            continue  # found and reported by who opens the backup
        for name, entry in header.items():
            if name != "__metadata__" and isinstance(entry, dict):
                total += _entry_bytes(entry, itemsize)
    return total


def _entry_bytes(entry: dict[str, object], itemsize: int | None) -> int:
    begin, end = entry["data_offsets"]  # type: ignore[misc]
    size: int = end - begin  # type: ignore[has-type]
    own = _FLOAT_BYTES.get(str(entry.get("dtype")))
    return size if itemsize is None or own is None else size // own * itemsize


def check_space(paths: dict[WeightSet, Path], *, each: int) -> int:
    """Refuse where the sets do not fit.

    Returns:
        The free bytes at the first place.

    Raises:
        ExportError: Naming what is needed and what is free.
    """
    first = next(iter(paths.values()))
    usage = shutil.disk_usage(existing_parent(first))
    free = usage.free
    needed = (each + _BESIDE_TENSORS) * len(paths)
    if usage.total and free < needed:
        raise ExportError(
            f"There is not enough space for {first}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free. "
            "Free some, give another place with --output, or write fewer bits with --dtype BFLOAT_16.",
            path=first,
            expected=f"{needed} bytes",
            found=f"{free} bytes",
        )
    return free
