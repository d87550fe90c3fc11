"""What a run has to tell the user of the window, where the status line is overwritten as soon as it ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence

_lock = threading.Lock()
_left: list[str] = []


def leave(texts: Sequence[str]) -> None:
    """Leave texts to be shown when the run has stopped; outside the window nobody takes them."""
    with _lock:
        _left.extend(text for text in texts if text not in _left)


def take() -> tuple[str, ...]:
    """The texts that were left since the last call."""
    with _lock:
        texts = tuple(_left)
        _left.clear()
    return texts
