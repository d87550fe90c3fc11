"""What rounding to 16 bits takes from an average: measured against what the two sets differ by."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from onetrainer_ema_select.comparison import CHUNK, Advance
from onetrainer_ema_select.rounding import SIXTEEN_BITS, stochastic_variance
from onetrainer_ema_select.tensor_set import TensorSet


@dataclass
class RoundingLoss:
    """Sums over the weights that rounding changes anything about: those with more bits in the average than in the file.

    The measure is the distance between the two sets, ‖ema - live‖: what a user who compares them wants to see. The
    weights that the run began with are in no backup.

    Attributes:
        dtypes: That the file has.
        elements: Weights.
        squares_apart: Sum of the squares of ema - live.
        squares_lost: Of round(ema) - ema, to the nearest.
        squares_noise: The same of stochastic rounding, expected.
        kept: Sum of the products of round(ema) - round(live) with ema - live, to the nearest.
        different: Weights in which the two sets differ.
        same: Of these, those that are the same in files rounded to the nearest.
    """

    dtypes: set[torch.dtype] = field(default_factory=set)
    elements: int = 0
    squares_apart: float = 0.0
    squares_lost: float = 0.0
    squares_noise: float = 0.0
    kept: float = 0.0
    different: int = 0
    same: int = 0

    @property
    def lost(self) -> float | None:
        """‖round(ema) - ema‖ / ‖ema - live‖, rounded to the nearest; None where the two sets are the same."""
        return self._share(math.sqrt(self.squares_lost))

    @property
    def noise(self) -> float | None:
        """The same of stochastic rounding: the root of the expected square, so of a typical file."""
        return self._share(math.sqrt(self.squares_noise))

    @property
    def left(self) -> float | None:
        """What is left of the difference in its own direction, rounded to the nearest: 1 is all.

        ⟨round(ema) - round(live), ema - live⟩ / ‖ema - live‖². Of stochastic rounding it is 1 on average.
        """
        return None if self.squares_apart == 0 else self.kept / self.squares_apart

    @property
    def same_share(self) -> float | None:
        """Share of the weights in which the sets differ that are the same in files rounded to the nearest."""
        return self.same / self.different if self.different else None

    def _share(self, length: float) -> float | None:
        return None if self.squares_apart == 0 else length / math.sqrt(self.squares_apart)


def measure_rounding(
    ema: TensorSet,
    live: TensorSet,
    pairs: Iterable[tuple[str, str]],
    *,
    dtype: torch.dtype | None,
    advance: Advance = lambda _: None,
) -> RoundingLoss | None:
    """Measure what a file would lose.

    Args:
        ema: The average.
        live: The other set, in the weights' own dtypes.
        pairs: A name in the average and one in the other set, of tensors of the same shape.
        dtype: That the file is asked for in; None for the weights' own.
        advance: Told how many bytes have been read.

    Returns:
        None where nothing is rounded to 16 bits. Numbers of which one is NaN or Inf are left out.

    Raises:
        StoreError: If a tensor cannot be read.
    """
    found = RoundingLoss()
    for one, other in pairs:
        target = dtype or live.dtype(other)
        own = ema.dtype(one)
        if target not in SIXTEEN_BITS or not own.is_floating_point or own.itemsize <= target.itemsize:
            continue
        found.dtypes.add(target)
        size = ema.numel(one)
        for first in range(0, size, CHUNK):
            last = min(first + CHUNK, size)
            average, weight = ema.read(one, first, last), live.read(other, first, last)
            advance((average.element_size() + weight.element_size()) * (last - first))
            _add(found, average.float(), weight.float(), target)
    return found if found.elements else None


def _add(found: RoundingLoss, average: torch.Tensor, weight: torch.Tensor, target: torch.dtype) -> None:
    rounded, rounded_weight = average.to(target), weight.to(target)
    finite = rounded.isfinite() & rounded_weight.isfinite()
    if not bool(finite.all()):
        average, weight = average[finite], weight[finite]
        rounded, rounded_weight = rounded[finite], rounded_weight[finite]
    apart = average.double() - weight.double()
    lost = rounded.double() - average.double()
    left = rounded.double() - rounded_weight.double()
    differs = apart != 0
    found.elements += average.numel()
    found.squares_apart += float(apart.dot(apart))
    found.squares_lost += float(lost.dot(lost))
    found.squares_noise += float(stochastic_variance(average, target).sum())
    found.kept += float(left.dot(apart))
    found.different += int(differs.sum())
    found.same += int((differs & (left == 0)).sum())
