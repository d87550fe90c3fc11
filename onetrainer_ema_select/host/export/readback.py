"""Every tensor that is written is read back and compared.

Writers call ``safetensors.torch.save_file``, some by a name of their own that they import once. So this has to be
in place before they are imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from onetrainer_ema_select.errors import ExportError
from onetrainer_ema_select.integrity import read_safetensors_header
from onetrainer_ema_select.store import flush

_CHUNK = 1 << 20
_THREADS = 2


@dataclass(frozen=True)
class CheckedFile:
    """A file that holds what it was given.

    Attributes:
        path: Where it was written.
        tensors: How many it holds.
        size_bytes: Of the file.
        nonfinite: Names of tensors with NaN or Inf in them.
    """

    path: Path
    tensors: int
    size_bytes: int
    nonfinite: tuple[str, ...]


class ReadBack:
    """Stands in for ``safetensors.torch.save_file`` and keeps what it has found."""

    def __init__(self) -> None:
        """Check nothing yet."""
        self.files: list[CheckedFile] = []
        self._save = safetensors.torch.save_file

    def install(self) -> None:
        """Take the place of the writer's function, for the rest of the process."""
        safetensors.torch.save_file = self._checked

    def _checked(self, tensors: Mapping[str, Tensor], filename: Any, *args: Any, **kwargs: Any) -> None:
        self._save(dict(tensors), filename, *args, **kwargs)
        self.files.append(compare_file(Path(filename), tensors))


def compare_file(path: Path, tensors: Mapping[str, Tensor]) -> CheckedFile:
    """Compare a file with what it was to hold, bit for bit, a few MiB at a time; it is flushed meanwhile.

    Raises:
        ExportError: It holds something else.
        OSError: It cannot be read or flushed.
    """
    try:
        header: dict[str, Any] = dict(read_safetensors_header(path))
    except ValueError as error:
        raise ExportError(f"{path.name} {error} right after it was written. {_ADVICE}", path=path) from error
    header.pop("__metadata__", None)
    if set(header) != set(tensors):
        raise ExportError(f"{path.name} does not hold the tensors that were written. {_ADVICE}", path=path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    # The largest first, and each of two threads takes the next: reading and comparing are done outside of Python.
    waiting = sorted(tensors, key=lambda name: tensors[name].nbytes)
    with ThreadPoolExecutor(max_workers=_THREADS + 1) as pool:
        flushed = pool.submit(flush, path)

        def work() -> list[str]:
            return list(_compare_next(path, tensors, waiting, places=header, start=start))

        found = [pool.submit(work) for _ in range(_THREADS)]
        nonfinite = {name for each in found for name in each.result()}
        flushed.result()
    ordered = tuple(name for name in tensors if name in nonfinite)
    return CheckedFile(path, len(tensors), path.stat().st_size, ordered)


def _compare_next(
    path: Path, tensors: Mapping[str, Tensor], waiting: list[str], *, places: dict[str, Any], start: int
) -> Iterator[str]:
    """Compare what is waiting, and name those that hold NaN or Inf."""
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while waiting:
            try:
                name = waiting.pop()
            except IndexError:  # the other thread was faster
                return
            flat = tensors[name].detach().to("cpu").contiguous().view(-1)
            file.seek(start + places[name]["data_offsets"][0])
            if flat.numel() and not _same(file, flat.view(torch.uint8), buffer):
                raise ExportError(f"{name} in {path.name} is not what was written. {_ADVICE}", path=path, key=name)
            if flat.is_floating_point() and not _is_finite(flat):
                yield name


_ADVICE = "The disk or the memory of this machine may be faulty. Export to another disk, and check this one."


def _same(file: Any, expected: Tensor, buffer: bytearray) -> bool:
    view = memoryview(buffer)
    for piece in expected.split(_CHUNK):
        filled = 0
        while filled < piece.numel():
            count = file.readinto(view[filled : piece.numel()])
            if not count:
                return False
            filled += count
        if not torch.equal(torch.frombuffer(buffer, dtype=torch.uint8, count=filled), piece):
            return False
    return True


def _is_finite(flat: Tensor) -> bool:
    # A sum is one pass without a second tensor; only an overflow of it has to be looked at more closely.
    for piece in flat.split(_CHUNK):
        if piece.element_size() == 1:
            return True  # 8 bits: of quantized weights, which have no sum
        if not bool(piece.sum(dtype=torch.float32).isfinite()) and not bool(piece.isfinite().all()):
            return False
    return True
