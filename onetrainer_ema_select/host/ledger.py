"""Which models a workspace's runs have written: one small file that later starts of a run look into."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path, PureWindowsPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onetrainer_ema_select import store
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.workspace import SAVE_FOLDER, is_save, save_metadata

FILE = "saves.json"


class SaveRecord(BaseModel):
    """One model on the disk.

    Attributes:
        path: The file or folder.
        weight_set: The set it holds.
        step: Steps done.
        epoch: Epochs finished.
        milestones: The milestones it was saved for.
        run: The run that wrote it; one workspace may have seen several.
        leg: The leg of that run: one that was taken back has come by the same steps again.
        final: Whether it is the final output, at its own place.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    path: Path
    weight_set: WeightSet = Field(alias="set")
    step: int
    epoch: int
    milestones: tuple[str, ...] = ()
    run: str = ""
    leg: str = ""
    final: bool = False


class Ledger:
    """The list of saves in ``WORKSPACE/ema_select/saves.json``."""

    def __init__(self, workspace: Path) -> None:
        """Read the list; what cannot be read of it counts as not written."""
        self._path = workspace / FOLDER / FILE
        self._saves = workspace / SAVE_FOLDER
        self._records: list[SaveRecord] = []
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))["saves"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return
        for entry in entries if isinstance(entries, list) else []:
            with contextlib.suppress(ValidationError):
                self._records.append(SaveRecord.model_validate(entry))

    def add(self, record: SaveRecord) -> None:
        """Add a save that is whole.

        Raises:
            OSError: If the list cannot be written.
        """
        self._records.append(record)
        saves = [entry.model_dump(mode="json", by_alias=True) for entry in self._records]
        store.write_json(self._path, {"version": 1, "saves": saves})

    def still_pending(
        self, milestones: tuple[str, ...], *, step: int, run: str, leg: str, sets: Collection[WeightSet]
    ) -> tuple[str, ...]:
        """Of milestones that a backup made at ``step`` was still owed, those that were not written after all.

        A milestone is due at the same moment as a backup now and then; the backup comes first, and knows only
        that the save is to follow. What the list says counts, also of files that were moved away since, and so
        does what is on the disk, in case the process died before it could note it.

        Args:
            milestones: Their names.
            step: The step they were due at.
            run: The run that owes them; another one in the same workspace may have the same.
            leg: The leg of that run.
            sets: The sets that belong to a milestone: it is done when all of them have been written.
        """
        written = {
            (name, record.weight_set)
            for record in self._records
            if (record.step, record.run, record.leg) == (step, run, leg)
            for name in record.milestones
        }
        written |= _milestones_on_disk(self._saves, step=step, run=run, leg=leg)
        return tuple(name for name in milestones if any((name, each) not in written for each in sets))

    def finals(self, *, step: int, run: str, leg: str, folder: Path) -> frozenset[WeightSet]:
        """The sets whose final output a leg of a run has written at a step, as far as they are still there.

        Args:
            step: The step of the run's end.
            run: The run.
            leg: The leg of that run.
            folder: Where the final output belongs now. A workspace that has come home from a cloud machine names
                paths of that machine; what lies here under the same name and says that it is that output counts.
        """
        return frozenset(
            record.weight_set
            for record in self._records
            if record.final
            and (record.step, record.run, record.leg) == (step, run, leg)
            and (record.path.exists() or _is_output(folder / _name_of(record.path), record))
        )


def _name_of(path: Path) -> str:
    """A path's last part, whichever system it is of."""
    return PureWindowsPath(str(path)).name


def _is_output(path: Path, record: SaveRecord) -> bool:
    marks = save_metadata(path) if path.exists() else {}
    found = (marks.get("run"), marks.get("leg", ""), marks.get("step"), marks.get("set"))
    return found == (record.run, record.leg, str(record.step), str(record.weight_set))


def _milestones_on_disk(folder: Path, *, step: int, run: str, leg: str) -> set[tuple[str, WeightSet]]:
    found = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        marks = save_metadata(path) if is_save(path) else {}
        same = (marks.get("run"), marks.get("leg", ""), marks.get("step")) == (run, leg, str(step))
        if same and marks.get("set") in WeightSet.__members__:
            found |= {(name, WeightSet[marks["set"]]) for name in marks.get("milestone", "").split(", ") if name}
    return found
