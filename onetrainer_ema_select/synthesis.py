"""A mixture of snapshots, read from their files piece by piece."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
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

# Pieces of snapshots side by side. It stays in the cache between reading and adding: with four times as much it
# takes twice as long, and with a quarter there are too many small steps (measured with 20 snapshots).
_STACK_BYTES: Final = 5 << 20
# So many snapshots at a time, and one to which they are compared: of more, the pieces would become too small.
_ROWS: Final = 32
# Files that stay open. macOS allows a process 256, many Linux systems 1,024, and others are open beside these. The
# rest are opened for each piece, which takes a small part of the time of reading it.
_MOST_OPEN: Final = 128
# Reading out of the cache of the system and adding take about the same time each.
_WORKERS: Final = max(2, min(4, os.cpu_count() or 2))
_SUM_TOLERANCE: Final = 1e-6
# Reads at a place, so that threads can share a handle; Windows has none such.
_PREADV: Final = getattr(os, "preadv", None)
_TOO_MANY: Final = (errno.EMFILE, errno.ENFILE)


class Synthesis(TensorSet):
    """The weighted sum of several safetensors files; each tensor is made when it is asked for.

    Coefficients of mixed sign would amplify the rounding of a plain sum. Since they sum to one, it is made as
    ``reference + sum of coefficient * (snapshot - reference)``. The snapshots lie near each other, so the rounding
    is that of their distances, and the result is off by hardly more than its own rounding to float32.

    Every byte of the files whose coefficient is not 0 is read once, beside one tensor 5 MiB a thread are held in
    memory. A context manager, as it keeps files open (128 at most, however many there are); not shared between
    threads.
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
        self._handles = _Files(self.files)
        self._piece = max(_STACK_BYTES // (4 * min(len(pairs), _ROWS + 1)), 1)
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(_WORKERS):
            self._workers.put(_Worker(self._handles, weights, self._piece))
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="synthesis")
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
        piece = self._piece
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
        self._handles.close()


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


class _Files:
    """Files that are read at any place by several threads at once, with one handle each, or none."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._kept: list[_Handle] = []
        with ExitStack() as opened:
            try:
                for file in files[:_MOST_OPEN]:
                    self._kept.append(opened.enter_context(_Handle(file)))
            except OSError as error:
                if error.errno not in _TOO_MANY:
                    raise _unreadable(Path(error.filename), error) from error
                # Others have nearly used up what the system allows. One at a time and thread will do.
                opened.close()
                self._kept.clear()
            self._opened = opened.pop_all()

    def read(self, place: int, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on of the file at this place; returns how many there were."""
        try:
            if place < len(self._kept):
                return self._kept[place].read(offset, target)
            with _Handle(self._files[place]) as handle:
                return handle.read(offset, target)
        except OSError as error:
            raise _unreadable(self._files[place], error) from error

    def close(self) -> None:
        self._opened.close()


class _Handle:
    """An open file without a position, so that threads can share it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, offset: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `offset` on; returns how many there were."""
        done = 0
        while done < len(target):
            read = self._read(offset + done, target[done:])
            if read == 0:
                break
            done += read
        return done

    def _read(self, offset: int, target: memoryview) -> int:
        if _PREADV is not None:
            return int(_PREADV(self.file.fileno(), [target], offset))
        with self._lock:
            self.file.seek(offset)
            return self.file.readinto(target)

    def __enter__(self) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _unreadable(file: Path, error: OSError) -> StoreError:
    if error.errno in _TOO_MANY:
        return StoreError(
            f"{file} cannot be opened, as this process has as many files open as the system allows it. Allow it more "
            "(on Linux and macOS with `ulimit -n 4096` in the same terminal, before the command), and try again.",
            path=file,
        )
    return unreadable(file, f"cannot be read ({error.strerror or error})")


class _Worker:
    """What one thread needs: memory for a piece of several files."""

    def __init__(self, files: _Files, weights: NDArray[np.float32], piece: int) -> None:
        self._files = files
        self._weights = weights
        self._stack = np.empty((min(len(weights), _ROWS) + 1, piece), dtype=np.float32)
        self._sum = np.empty(piece if len(weights) > _ROWS else 0, dtype=np.float32)
        self._raw = torch.empty(0, dtype=torch.uint8)

    def mix(self, parts: Sequence[StoredTensor], first: int, last: int, mixed: Tensor) -> None:
        """Read these elements of every file and write their mixture into `mixed`.

        With numpy, which uses no threads of its own here: torch's would wait for each other after every step, and on
        a busy machine that is most of the time.
        """
        length = last - first
        reference, total = self._stack[-1, :length], mixed.numpy()
        others = len(parts) - 1
        self._read(others, parts[others], first, torch.from_numpy(reference))
        if others == 0:
            total[:] = reference
            return
        for begin in range(0, others, _ROWS):
            end = min(begin + _ROWS, others)
            differences = self._stack[: end - begin, :length]
            for place in range(begin, end):
                self._read(place, parts[place], first, torch.from_numpy(differences[place - begin]))
            np.subtract(differences, reference, out=differences)
            added = self._sum[:length] if begin else total
            np.einsum("i,ij->j", self._weights[begin:end], differences, out=added)
            if begin:
                np.add(total, added, out=total)
        np.add(total, reference, out=total)

    def _read(self, place: int, part: StoredTensor, first: int, target: Tensor) -> None:
        dtype: torch.dtype = getattr(torch, part.dtype_name)
        nbytes = target.numel() * dtype.itemsize
        direct = dtype is torch.float32
        if not direct and self._raw.numel() < nbytes:
            self._raw = torch.empty(nbytes, dtype=torch.uint8)
        raw = target.view(torch.uint8) if direct else self._raw[:nbytes]
        if nbytes and self._files.read(place, part.begin + first * dtype.itemsize, raw.numpy().data) != nbytes:
            raise unreadable(part.place.file, "became shorter while it was read")
        if not direct:
            target.copy_(raw.view(dtype))


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
