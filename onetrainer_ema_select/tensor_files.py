"""What files of tensors hold: safetensors, folders of them, and OneTrainer's averages. No tensor is read."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import torch
from torch import Tensor

from onetrainer_ema_select.integrity import archive_problem, read_safetensors_header
from onetrainer_ema_select.tensor_set import MappedTensor, Place, StoredTensor, unreadable

INDEX_ENDING = ".safetensors.index.json"

# What the safetensors format calls torch's dtypes. It knows more (of less than a byte), which torch has not.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """What a safetensors file says it holds; no tensor is read.

    Returns:
        Its tensors by key, in the order of the header, and its metadata.

    Raises:
        StoreError: If it cannot be read or is damaged.
    """
    try:
        header = read_safetensors_header(path)
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise ValueError("has an unreadable header: its metadata is not a table")
        entries = {key: _entry(Place(path, key), raw, start) for key, raw in header.items()}
    except ValueError as error:
        raise unreadable(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror or error})") from error
    return entries, {str(key): str(value) for key, value in metadata.items()}


def _entry(place: Place, raw: object, start: int) -> StoredTensor:
    bad = f"has an unreadable header: {place.key!r}"
    if not isinstance(raw, dict):
        raise ValueError(f"{bad} is not described")
    shape, offsets, dtype = raw.get("shape"), raw.get("data_offsets"), raw.get("dtype")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{bad} has no shape or no place")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or not isinstance(dtype, str):
        raise ValueError(f"{bad} has no dtype or no place")
    name = _DTYPES.get(dtype, dtype)
    size = offsets[1] - offsets[0]
    known = getattr(torch, name, None)
    if size < 0 or (isinstance(known, torch.dtype) and size != math.prod(shape) * known.itemsize):
        raise ValueError(f"{bad} has {size} bytes, which is not what its shape {tuple(shape)} in {name} takes")
    return StoredTensor(place, tuple(shape), name, start + offsets[0], size)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a component's folder: all shards, and of several variants one.

    Raises:
        StoreError: If an index cannot be read, or a shard is missing.
    """
    indexes = sorted(folder.glob(f"*{INDEX_ENDING}"), key=lambda path: (len(path.name), path.name))
    if not indexes:
        return sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.name), path.name))
    index = indexes[0]
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise unreadable(index, "cannot be read: it is no index of shards") from error
    if missing:
        raise unreadable(index, f"names {missing[0]}, which is missing")
    return [folder / shard for shard in shards]


def read_folder(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a component's folder by key, and the metadata of its first file.

    A tensor that several files hold (variants of one model) is taken from the one with the shortest name.

    Raises:
        StoreError: If a file cannot be read, is damaged or missing.
    """
    entries: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(folder):
        found, said = read_safetensors(file)
        if entries.keys().isdisjoint(found):
            entries |= found
            metadata = metadata or said
    return entries, metadata


def read_averages(path: Path) -> tuple[list[MappedTensor], float | None]:
    """The averages of OneTrainer's `ema.pt`, in its order and without names, and their decay.

    Raises:
        StoreError: If it cannot be read or is not what OneTrainer writes.
    """
    if problem := archive_problem(path):
        raise unreadable(path, problem)
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message goes on to say how to run what is in there
        problem = "holds more than tensors and numbers, which could be a program, or is damaged; it was not read"
        raise unreadable(path, problem) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError) as error:
        raise unreadable(path, f"cannot be read ({str(error).splitlines()[0] if str(error) else error!r})") from error
    tensors = state.get("ema_parameters") if isinstance(state, dict) else None
    if not isinstance(tensors, list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise unreadable(path, "holds no list ema_parameters of tensors, so OneTrainer did not write it")
    decay = state.get("decay")
    number = float(decay) if isinstance(decay, int | float) else None
    return [MappedTensor(tensor.detach()) for tensor in tensors], number
