"""Which models a workspace's runs have written: one small file that milestones are looked up in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onetrainer_ema_select import store
from onetrainer_ema_select.manifest import FOLDER

FILE = "saves.json"


class Ledger:
    """The list of saves in ``WORKSPACE/ema_select/saves.json``."""

    def __init__(self, workspace: Path) -> None:
        """Read the list; one that cannot be read counts as empty."""
        self._path = workspace / FOLDER / FILE
        self._entries: list[dict[str, Any]] = []
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._entries = [entry for entry in raw["saves"] if isinstance(entry, dict)]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            self._entries = []

    def add(self, *, path: Path, weight_set: str, step: int, epoch: int, milestones: tuple[str, ...]) -> None:
        """Add a save that is whole.

        Raises:
            OSError: If the list cannot be written.
        """
        self._entries.append(
            {
                "path": str(path),
                "set": weight_set,
                "step": step,
                "epoch": epoch,
                "milestones": list(milestones),
            }
        )
        store.write_json(self._path, {"version": 1, "saves": self._entries})

    def still_pending(self, milestones: tuple[str, ...], *, step: int) -> tuple[str, ...]:
        """Of milestones that a backup made at ``step`` was still owed, those that were not written after all.

        A milestone is due at the same moment as a backup now and then; the backup comes first, and knows only
        that the save is to follow.
        """
        done = {
            name
            for entry in self._entries
            if entry.get("step") == step and isinstance(entry.get("milestones"), list)
            for name in entry["milestones"]
            if isinstance(name, str)
        }
        return tuple(name for name in milestones if name not in done)
