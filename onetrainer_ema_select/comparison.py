"""How far two sets of weights are apart, in double precision, a few megabytes at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onetrainer_ema_select.tensor_set import TensorSet

# 4 MiB in double precision: what is held of a tensor does not grow with it.
CHUNK = 1 << 19

Advance = Callable[[int], object]
"""Told how many bytes have been read since the last time."""


@dataclass
class Count:
    """Numbers that are none, in one set of weights."""

    nan: int = 0
    inf: int = 0

    def add(self, values: Tensor) -> None:
        """Count those of a piece."""
        self.nan += int(values.isnan().sum())
        self.inf += int(values.isinf().sum())


@dataclass
class Distance:
    """Sums over pairs of numbers, of which both are finite.

    Attributes:
        elements: Pairs, also those left out because one is NaN or Inf.
        squares_a: Sum of the squares of the first.
        squares_b: Of the second.
        product: Sum of their products.
        squares_apart: Sum of the squares of their differences.
        largest: Largest absolute difference.
        same_bits: Whether all are the same, bit for bit and in the same dtype.
        a: NaN and Inf in the first.
        b: NaN and Inf in the second.
    """

    elements: int = 0
    squares_a: float = 0.0
    squares_b: float = 0.0
    product: float = 0.0
    squares_apart: float = 0.0
    largest: float = 0.0
    same_bits: bool = True
    a: Count = field(default_factory=Count)
    b: Count = field(default_factory=Count)

    @property
    def norm_a(self) -> float | None:
        """Length of the first, as one long vector; None where its square is too large for double precision."""
        return _finite(math.sqrt(self.squares_a))

    @property
    def norm_b(self) -> float | None:
        """Length of the second, likewise."""
        return _finite(math.sqrt(self.squares_b))

    @property
    def relative(self) -> float | None:
        """Length of the difference over the length of the first; None where only the first is all zero."""
        if self.squares_a == 0:
            return 0.0 if self.squares_apart == 0 else None
        return _finite(math.sqrt(self.squares_apart / self.squares_a))

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two; None where one is all zero."""
        if self.squares_a == 0 or self.squares_b == 0:
            return None
        cosine = _finite(self.product / (math.sqrt(self.squares_a) * math.sqrt(self.squares_b)))
        return None if cosine is None else max(-1.0, min(1.0, cosine))

    def add(self, first: Tensor, second: Tensor) -> None:
        """Take in a piece of each; both of one dimension and the same length."""
        self.elements += first.numel()
        if self.same_bits:
            self.same_bits = first.dtype == second.dtype and torch.equal(
                first.view(torch.uint8), second.view(torch.uint8)
            )
        one, other = _double(first), _double(second)
        finite = one.isfinite() & other.isfinite()
        if not bool(finite.all()):
            self.a.add(one)
            self.b.add(other)
            one, other = one[finite], other[finite]
        if one.numel() == 0:
            return
        apart = one - other
        self.squares_a += float(one.dot(one))
        self.squares_b += float(other.dot(other))
        self.product += float(one.dot(other))
        self.squares_apart += float(apart.dot(apart))
        self.largest = max(self.largest, float(apart.abs().max()))


@dataclass(frozen=True)
class Comparison:
    """Two sets of weights beside each other.

    Attributes:
        blocks: By the name of the block in the first set, those furthest apart first.
        total: All together.
    """

    blocks: Mapping[str, Distance]
    total: Distance


def compare(
    a: TensorSet, b: TensorSet, pairs: Iterable[tuple[str, str]], *, advance: Advance = lambda _: None
) -> Comparison:
    """Compare tensors of two sets, pair by pair.

    Args:
        a: The first set, which distances are relative to.
        b: The second.
        pairs: A name in the first and one in the second, of tensors of the same shape.
        advance: Told what has been read.

    Raises:
        StoreError: If a tensor cannot be read.
    """
    blocks: dict[str, Distance] = {}
    total = Distance()
    for one, other in pairs:
        block = blocks.setdefault(block_of(one), Distance())
        size = a.numel(one)
        for first in range(0, size, CHUNK):
            last = min(first + CHUNK, size)
            pieces = a.read(one, first, last), b.read(other, first, last)
            block.add(*pieces)
            advance(sum(piece.numel() * piece.element_size() for piece in pieces))
    for block in blocks.values():
        _sum_up(total, block)
    furthest = sorted(blocks.items(), key=lambda item: (-_order(item[1]), item[0]))
    return Comparison(blocks=dict(furthest), total=total)


def count(tensors: TensorSet, names: Sequence[str], *, advance: Advance = lambda _: None) -> Count:
    """Count NaN and Inf in some of a set's tensors.

    Raises:
        StoreError: If one cannot be read.
    """
    found = Count()
    for name in names:
        size = tensors.numel(name)
        for first in range(0, size, CHUNK):
            piece = tensors.read(name, first, min(first + CHUNK, size))
            if piece.is_floating_point() or piece.is_complex():
                found.add(_double(piece))
            advance(piece.numel() * piece.element_size())
    return found


def block_of(name: str) -> str:
    """The part of a model that a weight belongs to.

    A name up to and including its first part that is a number: ``unet.down_blocks.0``,
    ``text_encoder.text_model.encoder.layers.11``; parts end at a dot, in kohya's flat names
    (``lora_unet_down_blocks_0``) at an underscore. Where there is no number, the first two parts.
    """
    flat, dot, _ = name.partition(".")
    if flat.startswith("lora_") and dot:
        tokens = flat.split("_")
        number = next((place for place, token in enumerate(tokens) if token.isdecimal()), None)
        return flat if number is None else "_".join(tokens[: number + 1])
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return ".".join(parts[:2] if number is None else parts[: number + 1])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _double(values: Tensor) -> Tensor:
    if values.is_complex():
        values = torch.view_as_real(values).reshape(-1)
    return values.to(torch.float64)


def _order(distance: Distance) -> float:
    """What has become of nothing is furthest."""
    return math.inf if distance.relative is None else distance.relative


def _sum_up(total: Distance, part: Distance) -> None:
    total.elements += part.elements
    total.squares_a += part.squares_a
    total.squares_b += part.squares_b
    total.product += part.product
    total.squares_apart += part.squares_apart
    total.largest = max(total.largest, part.largest)
    total.same_bits = total.same_bits and part.same_bits
    for ours, theirs in ((total.a, part.a), (total.b, part.b)):
        ours.nan += theirs.nan
        ours.inf += theirs.inf
