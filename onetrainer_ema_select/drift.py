"""How far the two sets of a run are apart, a part of the model at a time, and a sample of both.

Only reads. The weights are gone through in pieces: what this takes beside them does not depend on their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# 1 MiB of float32: the difference of a piece is still in the cache when it is squared. The sum over a piece is
# float32's (a piece of positive numbers: off by some 1e-6), the sum over the pieces Python's float64.
_PIECE = 1 << 18
# Fewer weights that differ are as good as none.
_SAME_SHARE = 1e-3
# A difference of this size of the weights is that of the last bit of float32.
_SAME_DISTANCE = 2.0**-23

Pair = tuple[str, Tensor, Tensor]
"""A weight's stable name, its average and the live weight."""


@dataclass(frozen=True)
class Distance:
    """Sums over some weights: of the squared differences between the sets, and of the squared live weights."""

    squared_difference: float = 0.0
    squared_live: float = 0.0

    @property
    def relative(self) -> float:
        """Length of the difference, ``|average - live| / |live|``; 0 where there is neither."""
        if self.squared_live == 0.0:
            return 0.0 if self.squared_difference == 0.0 else float("inf")
        return float((self.squared_difference / self.squared_live) ** 0.5)

    def __add__(self, other: Distance) -> Distance:
        """Return the sums over both."""
        return Distance(self.squared_difference + other.squared_difference, self.squared_live + other.squared_live)


@dataclass(frozen=True)
class Sample:
    """The same few weights of both sets, spread evenly over all of them.

    Attributes:
        ema: Averages, float32 on the CPU; a copy.
        live: The live weights, the same.
        differing: How many of them differ once both are rounded as in the files.
        in_files: How far they are apart then, and how long the live ones are.
    """

    ema: Tensor
    live: Tensor
    differing: int = 0
    in_files: Distance = Distance()

    @property
    def same(self) -> bool:
        """Whether files of both sets are as good as equal.

        So it is where fewer than one weight in 1,000 differs, or where what differs is next to nothing: weights that
        were 0 differ however little they have moved.
        """
        few = self.differing < _SAME_SHARE * len(self.live)
        return few or (len(self.live) > 0 and self.in_files.relative < _SAME_DISTANCE)


def part_of(name: str) -> str:
    """The part of the model that a weight belongs to, such as ``unet`` or ``text_encoder_lora``."""
    return name.partition(".")[0]


@torch.no_grad()
def distances(pairs: Iterable[Pair]) -> dict[str, Distance]:
    """Return the distance of each part of the model, in the order in which the parts come.

    Args:
        pairs: Both tensors of a pair have the same shape; dtypes and devices may differ. What lies on another
            device than its average comes over in pieces.
    """
    parts: dict[str, Distance] = {}
    scratch: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for name, average, live in pairs:
        device = average.device
        if device not in scratch:
            scratch[device] = (torch.empty(_PIECE, device=device), torch.empty(_PIECE, device=device))
        first, second = scratch[device]
        sums: list[Tensor] = []
        for average_piece, live_piece in _pieces(average.detach(), live.detach()):
            count = average_piece.numel()
            weight = live_piece
            if live_piece.dtype is not torch.float32 or live_piece.device != device:
                weight = second[:count].copy_(live_piece)  # converts and transfers
            difference = torch.sub(average_piece, weight, out=first[:count])
            sums.append(torch.stack((difference.dot(difference), weight.dot(weight))))
        if sums:
            # Once a weight: on CUDA this waits for the device.
            total = torch.stack(sums).double().sum(0).tolist()
            parts[part_of(name)] = parts.get(part_of(name), Distance()) + Distance(*total)
    return parts


@torch.no_grad()
def sample(pairs: Sequence[Pair], *, size: int, file_dtype: torch.dtype | None) -> Sample:
    """Take about ``size`` weights of both sets, every n-th of all of them: always the same ones.

    Args:
        pairs: As for :func:`distances`.
        size: How many to take; all where there are fewer.
        file_dtype: What files are rounded to; None for each live weight's own dtype.
    """
    stride = max(1, -(-sum(average.numel() for _, average, _ in pairs) // size))
    ema: list[Tensor] = []
    weights: list[Tensor] = []
    differing = offset = 0
    in_files = Distance()
    for _, average, live in pairs:
        first_place = min(-offset % stride, average.numel())
        places = torch.arange(first_place, average.numel(), stride)
        offset += average.numel()
        if not len(places):
            continue
        first, second = _take(average.detach(), places), _take(live.detach(), places)
        dtype = file_dtype or live.dtype
        in_file, other = (tensor.to(dtype).double() for tensor in (first, second))
        differing += int((in_file != other).sum())
        in_files += Distance(float((in_file - other).square().sum()), float(other.square().sum()))
        ema.append(first.float())
        weights.append(second.float())
    if not ema:
        return Sample(torch.empty(0), torch.empty(0))
    return Sample(torch.cat(ema), torch.cat(weights), differing, in_files)


def _take(tensor: Tensor, places: Tensor) -> Tensor:
    """The elements at these places of the tensor as if it were flat, on the CPU."""
    if tensor.dim() == 0:
        return tensor.reshape(1).cpu()
    # By index, because flattening one that is not contiguous would copy all of it.
    indices = [index.to(tensor.device) for index in _unravel(places, tuple(tensor.shape))]
    return tensor[tuple(indices)].cpu()


def _unravel(places: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    indices: list[Tensor] = []
    for length in reversed(shape):
        indices.append(places % length)
        places = places // length
    return indices[::-1]


def _pieces(average: Tensor, live: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Both in pieces of the same elements, each flat and at most `_PIECE` long."""
    if average.is_contiguous() and live.is_contiguous():
        return zip(average.view(-1).split(_PIECE), live.view(-1).split(_PIECE), strict=True)
    # Row by row; only a row is ever copied.
    rows = zip(average.unbind(0), live.unbind(0), strict=True)
    return (piece for row, other in rows for piece in _pieces(row.contiguous(), other.contiguous()))
