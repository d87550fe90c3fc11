"""What a run is told of its two sets, in words, with what to do."""

from __future__ import annotations

import torch


def same_to_rounding(step: int, *, file_dtype: torch.dtype | None) -> str:
    """The sets are equal in files.

    Args:
        step: Steps done.
        file_dtype: What files are rounded to; None for the weights' own dtype.
    """
    kind = "the weights' own precision" if file_dtype is None else str(file_dtype).removeprefix("torch.")
    return (
        f"After step {step:,} the two sets are the same to rounding: in {kind}, as in the files, fewer than one weight "
        "in 1,000 differs, or by next to nothing. Give the EMA a longer half-life, for example "
        "ema_select.ema_half_life=1 epochs. If the weights themselves hardly move, raise the learning rate, or train "
        "and save in a finer precision."
    )


def start_remains(share: float, *, ended: bool) -> str:
    """The average still holds much of what it began with.

    Args:
        share: Of the average at the end of the run.
        ended: Whether that is now.
    """
    what = "is still" if ended else "will still be"
    return (
        f"At the end of this run the EMA {what} to {share:.0%} what it began with: its decay is too long for this run, "
        "and it hardly leaves the start. Set ema_select.ema_half_life, for example to 1 epochs, or lower ema_decay or "
        "ema_update_step_interval. Until then the non-EMA set is the one that holds what was learnt."
    )


def swings(ratio: float, *, step: int) -> str:
    """The live weights jump about.

    Args:
        ratio: Of the distance between the sets to the way of the average; see :class:`swings.Swings`.
        step: Steps done.
    """
    return (
        f"The non-EMA weights swing: of late, up to step {step:,}, they were {ratio:.1f} times as far from the EMA as "
        "the EMA moves in its own length; in steady training that is 1 to 2. Which non-EMA weights a save gets is "
        "chance then: prefer the EMA set, or lower the learning rate."
    )
