"""How much of the machine's memory is free."""

from __future__ import annotations


def free_memory() -> int | None:
    """Bytes that can be taken without anything being moved to the disk; None where nothing tells."""
    try:
        import psutil  # OneTrainer's environment has it; nothing else here needs it
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
