"""An export that runs while the window stays usable."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.announce import gigabytes
from onetrainer_ema_select.host.export import ExportResult, export
from onetrainer_ema_select.naming import set_suffix


@dataclass
class ExportJob:
    """One export in a thread of its own; OneTrainer does it in another process, on the CPU.

    The thread is not a daemon: a window that is closed meanwhile does not cut off the file.

    Attributes:
        backup: The backup's folder.
        output: Where to.
        options: What else :func:`export` takes.
        what: What is being done.
        fraction: How much of it is done, None where that cannot be told.
        text: In the end, what was done, or why it could not be.
    """

    backup: Path
    output: str
    options: dict[str, Any]
    what: str = "starting OneTrainer"
    fraction: float | None = None
    text: str = ""
    _done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="ema_select export").start()

    @property
    def finished(self) -> bool:
        """Whether there is a text to show."""
        return self._done.is_set()

    def progress_text(self) -> str:
        """What is being done, and how much of it is."""
        share = "" if self.fraction is None else f" {self.fraction:.0%}"
        return f"Exporting: {self.what}{share}"

    def _progress(self, what: str, done: int, total: int) -> None:
        self.what, self.fraction = what, done / total if total else None

    def _run(self) -> None:
        try:
            self.text = summary(export(self.backup, self.output, progress=self._progress, **self.options))
        except EmaSelectError as error:
            self.text = f"Not exported: {error}"
        except BaseException as error:  # noqa: BLE001 - it must be seen, and nothing else sees it
            traceback.print_exc()
            self.text = f"Not exported: {type(error).__name__}: {error}. The console has the details."
        finally:
            print(f"[ema_select] {self.text}", flush=True)  # noqa: T201 - the console of a window that may be gone
            self._done.set()


def summary(result: ExportResult) -> str:
    """What was written, for people."""
    files = "; ".join(f"{set_suffix(each.set)}: {each.path} ({gigabytes(each.size_bytes)})" for each in result.sets)
    notes = "".join(f" Note: {note}" for note in result.notes)
    return f"Exported step {result.step}, read back and compared. {files}.{notes}"
