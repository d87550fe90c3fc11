"""A mixture of snapshots, read from their files tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from onetrainer_ema_select.tensor_files import read_safetensors
from onetrainer_ema_select.tensor_set import StoredTensor


class Synthesis(Mapping[str, Tensor]):
    """The weighted sum of several safetensors files, as a mapping from name to tensor; made when asked for.

    Coefficients of mixed sign would amplify the rounding of a plain sum. Since they sum to one, it is made as
    ``reference + sum of coefficient * (snapshot - reference)``: the differences of float32 snapshots that lie near
    each other are exact or nearly so, so the result is off by hardly more than its own rounding to float32.

    Every byte of the files whose coefficient is not 0 is read once; a context manager, as it holds them open.
    """

    def __init__(self, files: Sequence[Path], coefficients: Sequence[float]) -> None:
        """Open the snapshots.

        Args:
            files: Snapshots with the same tensors, in float32 or 16 bits.
            coefficients: One for each, summing to one. A file whose coefficient is 0 is not looked at.

        Raises:
            StoreError: If a file cannot be read, is damaged, or holds other tensors than the others.
            ValueError: If the coefficients do not sum to one or are not as many as the files.
        """
        raise NotImplementedError

    def __getitem__(self, name: str) -> Tensor:
        """Make one tensor, in float32 and on the CPU; the caller may change it.

        A tensor that is not of a floating dtype is taken from the file with the largest coefficient, as it is.

        Raises:
            KeyError: If there is none of that name.
            StoreError: If a file cannot be read.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def entry(self, name: str) -> StoredTensor:
        """Shape and bytes of a tensor as it lies in the reference file, without reading it."""
        raise NotImplementedError

    def read(self, name: str, first: int, last: int) -> Tensor:
        """The elements from `first` to before `last` of one tensor, in the order of memory, as one dimension."""
        raise NotImplementedError

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


_ = read_safetensors
