"""What a LoRA's average leaves out: its factors are averaged, and their product is what the model sees.

A LoRA adds ``alpha / rank * B A`` to a weight, with the factors ``A`` (lora_down) and ``B`` (lora_up). With a bar for
the average, and any weights that sum to one::

    avg(B A) = avg(B) avg(A) + avg((B - avg(B)) (A - avg(A)))

which is the definition of a covariance, and exact. The last term is the gap. A backup holds the average of the factors
and one sample of them, the live weights; ``(B_live - avg(B)) (A_live - avg(A))`` is that sample's share of the gap.
Where the weights drift evenly it is the gap itself: of an exponential average of the age ``t``, both are the drift
times ``t`` squared. Where they mostly jitter, the samples cancel in the average, and the gap is smaller.

Products are never formed. Of two factors ``U`` (out, r) and ``V`` (r, in)::

    ‖U V‖² = tr(Vᵀ Uᵀ U V) = tr((Uᵀ U) (V Vᵀ))

takes two square matrices of the rank r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onetrainer_ema_select.tensor_set import TensorSet

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
# Of LoHa, LoKr and OFT: products of more than two factors, or none at all.
_OTHERS = (".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lokr_w2_a", ".oft_R.weight")


@dataclass(frozen=True)
class ProductGap:
    """Norms over all layers of a LoRA together, as one long vector.

    Attributes:
        layers: That have two factors.
        others: Layers of a kind whose product is no product of two factors, and that are left out.
        gap: ‖Δ(B A)‖: the live weights' share of what the average of the factors leaves out.
        apart: ‖avg(B) avg(A) - B_live A_live‖: how far what the two sets add is apart.
        ema: ‖avg(B) avg(A)‖: what the EMA adds.
    """

    layers: int
    others: int
    gap: float
    apart: float
    ema: float

    @property
    def of_distance(self) -> float | None:
        """The gap over the distance between the sets; None where that is 0."""
        return self.gap / self.apart if self.apart else None

    @property
    def of_ema(self) -> float | None:
        """The gap over what the EMA adds; None where that is 0."""
        return self.gap / self.ema if self.ema else None


def product_gap(ema: TensorSet, live: TensorSet, *, alphas: Mapping[str, str]) -> ProductGap | None:
    """Measure the gap of a LoRA from the two sets of one backup; DoRA's magnitudes are left out.

    Args:
        ema: The average of the factors.
        live: The live factors, by the same names.
        alphas: What ``alpha`` of a layer is called in ``live``, by the name of its lora_down.

    Returns:
        None where there is no LoRA.

    Raises:
        StoreError: If a tensor cannot be read.
    """
    others = sum(name.endswith(_OTHERS) for name in ema)
    layers, squares = 0, torch.zeros(3, dtype=torch.float64)
    for down in ema:
        up = f"{down.removesuffix(DOWN)}{UP}"
        if not down.endswith(DOWN) or up not in ema or down not in live or up not in live:
            continue
        layers += 1
        squares += layer_squares(_factors(ema, down, up), _factors(live, down, up)) * _scale(live, down, alphas) ** 2
    if not layers and not others:
        return None
    gap, apart, added = (math.sqrt(max(float(one), 0.0)) for one in squares)
    return ProductGap(layers=layers, others=others, gap=gap, apart=apart, ema=added)


def layer_squares(ema: tuple[Tensor, Tensor], live: tuple[Tensor, Tensor]) -> Tensor:
    """Squares of the three norms of :class:`ProductGap`, of one layer without its scale.

    Args:
        ema: The average of A (r, in) and B (out, r), float64.
        live: The same of the live weights.

    Returns:
        Of shape (3,): of the gap, of the distance, of what the EMA adds.
    """
    (average_a, average_b), (live_a, live_b) = ema, live
    change_a, change_b = live_a - average_a, live_b - average_b
    # B_live A_live - avg(B) avg(A) as one product, so that nothing is lost where the two are close.
    apart_b, apart_a = torch.cat([average_b, change_b], dim=1), torch.cat([change_a, live_a], dim=0)
    return torch.stack(
        [
            product_square(change_b, change_a),
            product_square(apart_b, apart_a),
            product_square(average_b, average_a),
        ]
    )


def product_square(left: Tensor, right: Tensor) -> Tensor:
    """‖left right‖², of (out, r) and (r, in), without forming the product; a scalar."""
    return ((left.T @ left) * (right @ right.T)).sum()


def _factors(tensors: TensorSet, down: str, up: str) -> tuple[Tensor, Tensor]:
    """A as (r, in) and B as (out, r), float64; a convolution's kernel counts as inputs, as OneTrainer multiplies it."""
    return tensors[down].double().flatten(1), tensors[up].double().flatten(1)


def _scale(live: TensorSet, down: str, alphas: Mapping[str, str]) -> float:
    """``alpha / rank``, as OneTrainer multiplies; alpha is taken as 1 where it is not known."""
    name = alphas.get(down, "")
    return (float(live[name]) if name in live else 1.0) / live.shape(down)[0]
