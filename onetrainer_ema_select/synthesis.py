"""A mixture of snapshots, read from their files piece by piece."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onetrainer_ema_select.errors import StoreError
from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import Entry, StoredTensor, TensorSet, unreadable

# Pieces of all snapshots side by side. It stays in the cache between reading and adding: with four times as much it
# takes twice as long, and with a quarter there are too many small steps (measured with 20 snapshots).
_STACK_BYTES: Final = 5 << 20
_SMALLEST_PIECE: Final = 1 << 12
# Reading out of the cache of the system and adding take about the same time each.
_WORKERS: Final = max(2, min(4, os.cpu_count() or 2))
_SUM_TOLERANCE: Final = 1e-6


class Synthesis(TensorSet):
    """The weighted sum of several safetensors files; each tensor is made when it is asked for.

    Coefficients of mixed sign would amplify the rounding of a plain sum. Since they sum to one, it is made as
    ``reference + sum of coefficient * (snapshot - reference)``. The snapshots lie near each other, so the rounding
    is that of their distances, and the result is off by hardly more than its own rounding to float32.

    Every byte of the files whose coefficient is not 0 is read once, beside one tensor 5 MiB a thread are held in
    memory. A context manager, as it keeps the files open; not shared between threads.
    """

    def __init__(self, files: Sequence[Path], coefficients: Sequence[float]) -> None:
        """Open the snapshots.

        Args:
            files: Snapshots with the same tensors, of any floating dtype. What is no floating dtype is taken from
                the file with the largest coefficient, as it is.
            coefficients: One for each, summing to one. A file whose coefficient is 0 is not looked at.

        Raises:
            StoreError: If a file cannot be read, is damaged, or holds other tensors than the others; or the
                coefficients are none that sum to one.
        """
        pairs = [(file, weight) for file, weight in zip(files, coefficients, strict=True) if weight != 0]
        if not pairs or not abs(math.fsum(weight for _, weight in pairs) - 1) <= _SUM_TOLERANCE:
            raise StoreError(
                f"The shares of {len(files)} snapshots sum to {math.fsum(coefficients):g}; they have to sum to 1. "
                "Please report this."
            )
        # The reference last; of the largest coefficient, because it takes no part in the rounding.
        pairs.sort(key=lambda pair: abs(pair[1]))
        self.files = tuple(file for file, _ in pairs)
        contents = [read_safetensors(file)[0] for file in self.files]
        for file, content in zip(self.files, contents, strict=True):
            _check_alike(file, content, self.files[-1], contents[-1])
        weights = np.array([weight for _, weight in pairs[:-1]], dtype=np.float32)
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="synthesis")
        try:
            for _ in range(_WORKERS):
                worker = _Worker(self.files, weights)
                self._all.append(worker)
                self._workers.put(worker)
        except BaseException:
            self.close_files()
            raise
        super().__init__(
            {
                name: _MixedTensor(self, tuple(content[name] for content in contents))
                if _is_floating(contents[-1][name])
                else contents[-1][name]
                for name in contents[-1]
            }
        )

    def entry(self, name: str) -> Entry:
        """A tensor that has not been made: its shape, dtype and bytes."""
        return self._entries[name]

    def mix(self, parts: Sequence[StoredTensor], first: int, last: int) -> Tensor:
        """The mixture of these elements of one tensor, float32 and of one dimension.

        Raises:
            StoreError: If a file cannot be read.
        """
        mixed = torch.empty(last - first)
        piece = self._all[0].piece
        starts = iter(range(first, last, piece))
        lock = threading.Lock()

        def work() -> None:
            worker = self._workers.get()
            try:
                for start in _taken(starts, lock):
                    end = min(start + piece, last)
                    worker.mix(parts, start, end, mixed[start - first : end - first])
            finally:
                self._workers.put(worker)

        if last - first <= piece:
            work()
        else:
            for job in [self._pool.submit(work) for _ in range(_WORKERS)]:
                job.result()
        return mixed

    def __enter__(self) -> Synthesis:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files; nothing can be read any more."""
        super().close()
        self.close_files()

    def close_files(self) -> None:
        """Close the files and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.close()


@dataclass(frozen=True)
class _MixedTensor:
    """A tensor that is made of those of several files; `parts` are in the order of the synthesis."""

    synthesis: Synthesis
    parts: tuple[StoredTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[-1].shape

    @property
    def dtype_name(self) -> str:
        return "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * 4

    def read(self, first: int, last: int) -> Tensor:
        return self.synthesis.mix(self.parts, first, last)


class _Worker:
    """What one thread needs: the files, and memory for a piece of each."""

    def __init__(self, files: Sequence[Path], weights: NDArray[np.float32]) -> None:
        self.piece = max(_STACK_BYTES // (4 * len(files)), _SMALLEST_PIECE)
        self._files = files
        self._weights = weights
        self._stack = np.empty((len(files), self.piece), dtype=np.float32)
        self._raw = torch.empty(0, dtype=torch.uint8)
        self._handles: list[FileIO] = []
        try:
            for file in files:
                self._handles.append(file.open("rb", buffering=0))
        except OSError as error:
            self.close()
            raise unreadable(Path(error.filename), f"cannot be read ({error.strerror or error})") from error

    def mix(self, parts: Sequence[StoredTensor], first: int, last: int, mixed: Tensor) -> None:
        """Read these elements of every file and write their mixture into `mixed`.

        With numpy, which uses no threads of its own here: torch's would wait for each other after every step, and on
        a busy machine that is most of the time.
        """
        length = last - first
        for row, handle, part in zip(self._stack, self._handles, parts, strict=True):
            self._read(handle, part, first, torch.from_numpy(row[:length]))
        reference, total = self._stack[-1, :length], mixed.numpy()
        if len(parts) == 1:
            total[:] = reference
            return
        differences = self._stack[:-1, :length]
        np.subtract(differences, reference, out=differences)
        np.einsum("i,ij->j", self._weights, differences, out=total)
        np.add(total, reference, out=total)

    def _read(self, handle: FileIO, part: StoredTensor, first: int, target: Tensor) -> None:
        dtype: torch.dtype = getattr(torch, part.dtype_name)
        nbytes = target.numel() * dtype.itemsize
        direct = dtype is torch.float32
        if not direct and self._raw.numel() < nbytes:
            self._raw = torch.empty(nbytes, dtype=torch.uint8)
        raw = target.view(torch.uint8) if direct else self._raw[:nbytes]
        try:
            handle.seek(part.begin + first * dtype.itemsize)
            read = handle.readinto(raw.numpy().data) if nbytes else 0
        except OSError as error:
            raise unreadable(part.place.file, f"cannot be read ({error.strerror or error})") from error
        if read != nbytes:
            raise unreadable(part.place.file, "became shorter while it was read")
        if not direct:
            target.copy_(raw.view(dtype))

    def close(self) -> None:
        for handle in self._handles:
            handle.close()


def _taken(starts: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    """The next start that no other thread has taken, until there are none."""
    while True:
        with lock:
            start = next(starts, None)
        if start is None:
            return
        yield start


def _is_floating(entry: StoredTensor) -> bool:
    dtype = getattr(torch, entry.dtype_name, None)
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _check_alike(
    file: Path, content: dict[str, StoredTensor], reference: Path, expected: dict[str, StoredTensor]
) -> None:
    """Refuse a snapshot that does not hold what the reference holds."""
    advice = (
        "The set of trained weights has changed between the two, so they cannot be mixed. Ask for a length and a time "
        "whose snapshots are all of one kind, or `export` a set instead."
    )

    def refuse(what: str, key: str) -> StoreError:
        return StoreError(f"{file} {what}, unlike {reference}. {advice}", path=file, key=key)

    missing = [name for name in expected if name not in content]
    if missing:
        raise refuse(f"does not hold {_some(missing)}", missing[0])
    more = [name for name in content if name not in expected]
    if more:
        raise refuse(f"holds {_some(more)}", more[0])
    for name, entry in expected.items():
        if content[name].shape != entry.shape or _is_floating(content[name]) != _is_floating(entry):
            raise refuse(
                f"holds {name} in the shape {content[name].shape} and {content[name].dtype_name} instead of "
                f"{entry.shape} and {entry.dtype_name}",
                name,
            )


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
