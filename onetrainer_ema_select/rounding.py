"""How weights of 32 bits come into files of 16: to the nearest, or up and down at random with the right mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onetrainer_ema_select.averaging import stochastic_round_
from onetrainer_ema_select.choices import SaveRounding
from onetrainer_ema_select.errors import SECTION

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
"""The dtypes that are rounded to."""

# 2**20 numbers at a time: what it takes beside the result does not grow with the tensor. A constant, because the
# random numbers go to the pieces in turn.
_CHUNK = 1 << 20


def run_rounding(config: Mapping[str, Any] | None) -> SaveRounding:
    """How the saves of a run are rounded, as OneTrainer's configuration in a backup says; else to the nearest."""
    section = (config or {}).get(SECTION)
    own = section.get("save_rounding") if isinstance(section, dict) else None
    return SaveRounding.STOCHASTIC if own == str(SaveRounding.STOCHASTIC) else SaveRounding.NEAREST


def rounds(dtype: torch.dtype | None, *, own: torch.dtype, held: torch.dtype) -> bool:
    """Whether a file of 16 bits takes some from a weight.

    Args:
        dtype: That the file was asked for in; None for the weights' own.
        own: The model's own dtype of the weight.
        held: What the set holds the weight in.
    """
    target = dtype or own
    return target in SIXTEEN_BITS and held != target


@dataclass(frozen=True)
class StochasticRounding:
    """Rounds weights at random so that each is right on average (:func:`averaging.stochastic_round_`).

    The random numbers depend on the run, the step and the weight's name alone. So a file that is written twice is the
    same twice, and an export is the same as the save of its step. Both sets get the same ones: where the two are
    equal, their files are equal too.

    Attributes:
        run: The run's identifier; empty where it is not known.
        step: OneTrainer's ``global_step``.
    """

    run: str
    step: int

    def __call__(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Round one weight.

        Args:
            name: Its stable name.
            value: Of any floating dtype and shape, on any device; only read.
            dtype: To round to.

        Returns:
            The rounded weight on the CPU in that dtype; the value itself where it has that dtype, or where the dtype
            is none of :data:`SIXTEEN_BITS`.
        """
        value = value.detach()
        if value.dtype == dtype or dtype not in SIXTEEN_BITS or not value.is_floating_point():
            return value
        # On the CPU wherever the weight is: another device would draw other numbers from the same seed.
        generator = torch.Generator().manual_seed(self._seed(name))
        result = torch.empty(value.shape, dtype=dtype)
        pieces = value.reshape(-1).split(_CHUNK)
        for target, piece in zip(result.view(-1).split(_CHUNK), pieces, strict=True):
            exact = piece.to("cpu", torch.float32)
            if dtype == torch.bfloat16:
                target.copy_(_random_bfloat16(exact, generator=generator))
            else:
                stochastic_round_(target, exact.clone(), generator=generator)
                nearest = exact.to(dtype)
                torch.where(nearest.float() == exact, nearest, target, out=target)  # minus zero stays that
            # Where the format ends there is no upper neighbour.
            if not bool(target.isfinite().all()) or not bool(exact.isfinite().all()):
                torch.where(exact.isfinite() & target.isfinite(), target, exact.to(dtype), out=target)
        return result

    def _seed(self, name: str) -> int:
        digest = hashlib.sha256(f"{self.run}\0{self.step}\0{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def _random_bfloat16(exact: Tensor, *, generator: torch.Generator) -> Tensor:
    """The same as :func:`averaging.stochastic_round_` into bfloat16, in a quarter of the time.

    A bfloat16 number is the upper half of a float32 one. Adding 16 random bits to the lower half carries into the
    upper one with a probability of the lower half over 2**16, which is the share of the way to the next number.

    Args:
        exact: float32, contiguous, of one dimension; only read. What comes of NaN and of what is too large is no number
            to rely on.
        generator: Of the CPU.
    """
    count = exact.numel()
    # Four weights' bits in one draw.
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    noise = drawn.view(torch.int16)[:count].to(torch.int32).bitwise_and_(0xFFFF)
    return noise.add_(exact.view(torch.int32)).bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def stochastic_variance(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean square error of each weight when it is rounded at random, exactly.

    A number between two neighbours of the grid that are ``s`` apart, at a share ``p`` of the way, becomes the upper one
    with the probability ``p``. Its error is ``(1 - p) s`` then, else ``-p s``: of mean 0 and mean square
    ``s**2 p (1 - p)`` (from the definition in Gupta et al. 2015, arXiv 1502.02551, section 3.1).

    Args:
        value: float32 or float64; only read.
        dtype: One of :data:`SIXTEEN_BITS`.

    Returns:
        float64, of the value's shape.
    """
    exact = value.double().abs()
    nearest = value.abs().to(dtype)
    error = exact - nearest.double()
    # The grid's next number is the next bit pattern, on the value's other side.
    other = (nearest.view(torch.int16) + torch.where(error > 0, 1, -1).to(torch.int16)).view(dtype).double()
    return torch.where(error == 0, 0.0, error.abs() * (other - exact).abs())
