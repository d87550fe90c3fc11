"""Two sets measured on the same batches: their mean difference, and how sure that is (Student's paired t-test)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CLEAR = 0.01
"""Below this probability of chance a difference is called clear."""
PROBABLE = 0.1
"""Below this one it is called probable."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences.

    Attributes:
        mean: Of the first minus the second.
        standard_error: Of that mean, from the sample's own spread; None for fewer than two pairs, and where it is
            too large for a double.
    """

    mean: float
    standard_error: float | None


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two measurements of the same things, pair by pair.

    What a pair has in common, such as an image that is hard for any weights, is in both and cancels; so this tells
    smaller differences than the two means and their own spreads could.

    Args:
        first: Finite numbers, at least one.
        second: As many, in the same order.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return PairedDifference(mean, None)
    error = math.hypot(*(difference - mean for difference in differences)) / math.sqrt(count * (count - 1))
    return PairedDifference(mean, error if math.isfinite(error) else None)


def chance(mean: float, standard_error: float, count: int) -> float:
    """Probability of a mean difference at least this large, either way, if there is none (Student 1908).

    Args:
        mean: Mean of the paired differences.
        standard_error: Of that mean.
        count: Pairs, at least two.

    Returns:
        The two-sided p-value of the paired t-test, with ``count - 1`` degrees of freedom.
    """
    if standard_error == 0:
        return 1.0 if mean == 0 else 0.0
    return two_sided_t(mean / standard_error, count - 1)


def two_sided_t(t: float, degrees: int) -> float:
    """Probability of a value beyond ``t`` or ``-t`` in Student's distribution with a whole number of degrees.

    The finite sums of Abramowitz and Stegun, *Handbook of Mathematical Functions*, equations 26.7.3 (odd) and 26.7.4
    (even), in the angle ``atan(t / sqrt(degrees))``.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    # Odd: cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 + ...; even: 1 + 1/2 cos^2 + (1 3)/(2 4) cos^4 + ...
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    inside = (angle + sine * total) * 2 / math.pi if odd else sine * total
    return max(0.0, 1.0 - inside)
