"""Models as they lie on the disk, files or folders: their tensors by name, and what they say of themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.errors import StoreError
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.recognise import MODEL_INDEX, refuse_other
from onetrainer_ema_select.tensor_files import INDEX_ENDING, read_folder, read_safetensors
from onetrainer_ema_select.tensor_set import Entry, TensorSet
from onetrainer_ema_select.workspace import FOLDER_METADATA

_SAFETENSORS = (".safetensors", ".sft")


@dataclass(frozen=True)
class Model:
    """A model for inference, or a file of any kind with tensors in it.

    Attributes:
        path: The file or folder.
        tensors: What it holds. Names are the file's keys; where several files or folders make up the model, with
            the file's name without its ending, or the folder's, before them.
        metadata: Of the file's header; of a folder, of its ``ema_select.json`` and its first file.
    """

    path: Path
    tensors: TensorSet
    metadata: Mapping[str, str]


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a safetensors file, or a folder of them; headers are read, no tensors.

    Raises:
        StoreError: If there is none, or it is damaged or of another format.
        BackupError: If a folder holds no model, saying what it looks like.
    """
    place = Path(path)
    if not place.exists():
        raise StoreError(f"There is no {place}. Name a backup, or a model: a file or a folder.", path=place)
    if place.is_file():
        if place.suffix.lower() not in _SAFETENSORS:
            raise StoreError(
                f"{place} is not a safetensors file, and other formats are not read here: they can hold programs. Save "
                "the model as safetensors, or name its backup.",
                path=place,
            )
        entries, metadata = read_safetensors(place)
        return Model(place, TensorSet(entries), metadata)
    return _open_folder(place)


def _open_folder(folder: Path) -> Model:
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    own = sorted(folder.glob("*.safetensors"))
    if any(folder.glob(f"*{INDEX_ENDING}")) or len(own) == 1:
        found, metadata = read_folder(folder)
        entries |= found
    else:
        for file in own:
            found, said = read_safetensors(file)
            entries |= {f"{file.stem}.{key}": entry for key, entry in found.items()}
            metadata = metadata or said
    # In a model that has no index of its parts, folders may be anything: backups, embeddings, other models.
    for part in sorted(folder.iterdir()) if (folder / MODEL_INDEX).is_file() else ():
        if part.is_dir() and not part.name.startswith("."):
            found, said = read_folder(part)
            entries |= {f"{part.name}.{key}": entry for key, entry in found.items()}
            metadata = metadata or said
    if not entries:
        refuse_other(folder)  # says so where it is a workspace, and which of its backups to name
    return Model(folder, TensorSet(entries), {**metadata, **_marks(folder)})


def _marks(folder: Path) -> dict[str, str]:
    """What the plugin has noted beside a model that is a folder."""
    try:
        raw = json.loads((folder / FOLDER_METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {f"{FOLDER}.{str(key).removeprefix(f'{FOLDER}.')}": str(value) for key, value in raw.items()}
