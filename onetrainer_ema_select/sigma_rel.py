"""Lengths of power-function averages as text. Needs neither torch nor numpy, so that settings can be read at once."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

SHORTEST: Final = 0.005
LONGEST: Final = 0.28
"""The lengths that can be asked for. The mean of all weights so far, gamma 0, has the sigma_rel 0.2887."""

_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


def parse_sigma_rels(text: str) -> tuple[float, ...]:
    """Read lengths such as ``0.05, 0.10``: comma-separated, in any order; full-width characters are accepted.

    Returns:
        Each length once, the shortest first; none for an empty text.

    Raises:
        ValueError: Some cannot be read; the message names each of them with the reason.
    """
    found: set[float] = set()
    problems: list[str] = []
    for piece in re.split(r"[,;、]", unicodedata.normalize("NFKC", text)):
        words = " ".join(piece.split())
        if not words:
            continue
        if not _NUMBER.fullmatch(words):
            problems.append(f'"{words}" is not a number such as 0.05')
        elif not SHORTEST <= float(words) <= LONGEST:
            problems.append(f'"{words}" is not from {SHORTEST} to {LONGEST}')
        else:
            found.add(float(words))
    if problems:
        raise ValueError(", ".join(problems))
    return tuple(sorted(found))
