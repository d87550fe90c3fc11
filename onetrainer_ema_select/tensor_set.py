"""A set of weights: named tensors that lie in files and are read one at a time, or a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from onetrainer_ema_select.errors import StoreError

_AGAIN = "Copy or download it once more, or name another one."


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a safetensors file, and its key there."""

    file: Path
    key: str


class Entry(Protocol):
    """A tensor that has not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype_name(self) -> str:
        """Torch's name of its dtype, or the format's own for one that torch does not have."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""

    def read(self, first: int, last: int) -> Tensor:
        """The elements from `first` to before `last`, in the order of memory, as one dimension."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `begin` and `nbytes` say where its bytes are, from the file's start."""

    place: Place
    shape: tuple[int, ...]
    dtype_name: str
    begin: int
    nbytes: int

    def read(self, first: int, last: int) -> Tensor:
        """Read these elements from the file.

        Plain reading, not a memory map: nothing is held open, and what has been read can be given back.

        Raises:
            StoreError: If torch does not have the dtype, or the file cannot be read.
        """
        dtype = getattr(torch, self.dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise StoreError(
                f"{self.place.key} in {self.place.file} is of the dtype {self.dtype_name}, which this version of torch "
                "cannot read. Name a model in another precision, or update torch.",
                path=self.place.file,
                key=self.place.key,
            )
        buffer = torch.empty((last - first) * dtype.itemsize, dtype=torch.uint8)
        try:
            with self.place.file.open("rb") as file:
                file.seek(self.begin + first * dtype.itemsize)
                read = file.readinto(buffer.numpy().data) if buffer.numel() else 0
        except OSError as error:
            raise unreadable(self.place.file, f"cannot be read ({error.strerror or error})") from error
        if read != buffer.numel():
            raise unreadable(self.place.file, "became shorter while it was read")
        return buffer.view(dtype)


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of a `torch.save` archive, of which the system reads the parts that are looked at."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype_name(self) -> str:
        """Torch's name of its dtype."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.tensor.numel() * self.tensor.element_size()

    def read(self, first: int, last: int) -> Tensor:
        """A copy of these elements; of a tensor that is not contiguous, all are read for it."""
        return self.tensor.reshape(-1)[first:last].clone()


class TensorSet(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for; what a set of weights looks like from outside.

    A mapping: `set[name]` reads one tensor into memory of its own, on the CPU, in the dtype it is stored in.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """Take over the entries, in their order."""
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor; the caller may change it.

        Raises:
            KeyError: If there is none of that name.
            StoreError: If it cannot be read.
        """
        return self.read(name, 0, self.numel(name)).reshape(self.shape(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def close(self) -> None:
        """Let go of the files: nothing can be read any more. A mapped file cannot be deleted or replaced on Windows."""
        self._entries.clear()

    def view(self, name: str) -> Tensor:
        """One tensor without a copy of it in memory, where its file can be mapped; writing into it changes no file.

        Raises:
            KeyError: If there is none of that name.
            StoreError: If it cannot be read.
        """
        entry = self._entries[name]
        return entry.tensor if isinstance(entry, MappedTensor) else self[name]

    def entry(self, name: str) -> Entry:
        """A tensor that has not been read: its shape, dtype and bytes.

        Raises:
            KeyError: If there is none of that name.
        """
        return self._entries[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the set's order."""
        return tuple(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self._entries.values())

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(self.numel, self))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._entries[name].shape

    def numel(self, name: str) -> int:
        """How many elements a tensor has, without reading it."""
        return math.prod(self.shape(name))

    def dtype_name(self, name: str) -> str:
        """Torch's name of a tensor's dtype (`bfloat16`), or the format's own for one that torch does not have."""
        return self._entries[name].dtype_name

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without reading it.

        Raises:
            StoreError: If it is one that this version of torch does not have.
        """
        found = getattr(torch, self.dtype_name(name), None)
        return found if isinstance(found, torch.dtype) else self._entries[name].read(0, 0).dtype

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Read a piece of a tensor: the elements from `first` to before `last`, as one dimension.

        Raises:
            KeyError: If there is none of that name.
            StoreError: If it cannot be read.
        """
        return self._entries[name].read(first, last)


def unreadable(path: Path, problem: str) -> StoreError:
    """The error for a file that is missing, damaged or of another kind; `problem` follows its name."""
    return StoreError(f"{path} {problem}. {_AGAIN}", path=path)
