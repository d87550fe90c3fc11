"""`demo`: the whole cycle on a CPU."""

from __future__ import annotations


def demo() -> None:
    """Show the cycle."""
