"""What takes longer and is done while the window stays usable: exports, comparisons and pages."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from onetrainer_ema_select.backups import open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.comparison import compare
from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.announce import gigabytes
from onetrainer_ema_select.host.export import ExportResult, Progress, export
from onetrainer_ema_select.host.report import write_line
from onetrainer_ema_select.host.window.guard import print_error
from onetrainer_ema_select.naming import set_suffix

_BLOCKS_NAMED = 3


class Job:
    """Something done in a thread of its own.

    The thread is not a daemon: a window that is closed meanwhile does not cut off a file.

    Attributes:
        what: What is being done.
        fraction: How much of it is done, None where that cannot be told.
        text: In the end, what was done, or why it could not be.
    """

    def __init__(self, work: Callable[[Progress], str], *, doing: str, failed: str) -> None:
        """Begin at once.

        Args:
            work: Does it, tells its progress, and returns what was done, for people.
            doing: What is put before its progress.
            failed: What is put before why it could not be done.
        """
        self.what = self.text = ""
        self.fraction: float | None = None
        self._work, self._doing, self._failed = work, doing, failed
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"ema_select {doing}")
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether there is a text to show."""
        return self._done.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it is finished; returns whether it is."""
        return self._done.wait(seconds)

    def progress_text(self) -> str:
        """What is being done, and how much of it is."""
        share = "" if self.fraction is None else f" {self.fraction:.0%}"
        return f"{self._doing}: {self.what}{share}" if self.what else f"{self._doing} …"

    def _progress(self, what: str, done: int, total: int) -> None:
        self.what, self.fraction = what, done / total if total else None

    def _run(self) -> None:
        try:
            self.text = self._work(self._progress)
        except EmaSelectError as error:
            self.text = f"{self._failed}: {error}"
        except Exception as error:  # noqa: BLE001 - it must be seen, and nothing else sees it
            self.text = f"{self._failed}: {type(error).__name__}: {error}. The console has the details."
            print_error(error)
        finally:
            self._done.set()
            write_line(f"[ema_select] {self.text}")  # the window may be gone


def export_job(backup: Path, output: str, **options: Any) -> Job:
    """Export a backup, by OneTrainer in another process; the options are those of :func:`export`."""
    return Job(partial(_export, backup, output, options), doing="Exporting", failed="Not exported")


def comparison_job(backup: Path) -> Job:
    """Measure how far the two sets of a backup are apart."""
    return Job(partial(compare_sets, backup), doing="Comparing", failed="Not compared")


def report_job(workspace: Path) -> Job:
    """Make the page of a run, and open it in the browser."""
    return Job(partial(_report, workspace), doing="Making the report", failed="No report was made")


def _report(workspace: Path, progress: Progress) -> str:
    from onetrainer_ema_select.report import make_report

    made = make_report(workspace, progress=progress)
    opened = webbrowser.open(made.path.as_uri())
    rest = "It was opened in the browser." if opened else "No browser could be opened: open it yourself."
    return f"Report: {made.headline} {made.path} ({gigabytes(made.size_bytes)}). {rest}"


def _export(backup: Path, output: str, options: dict[str, Any], progress: Progress) -> str:
    progress("starting OneTrainer", 0, 0)
    return summary(export(backup, output, progress=progress, **options))


def summary(result: ExportResult) -> str:
    """What was written, for people."""
    files = "; ".join(f"{set_suffix(each.set)}: {each.path} ({gigabytes(each.size_bytes)})" for each in result.sets)
    notes = "".join(f" Note: {note}" for note in result.notes)
    return f"Exported step {result.step}, read back and compared. {files}.{notes}"


def compare_sets(folder: Path, progress: Progress) -> str:
    """How far the two sets of a backup are apart, in a sentence.

    Raises:
        EmaSelectError: It does not hold both, or does not name the weights of its EMA.
    """
    with open_backup(folder) as backup:
        if len(backup.sets) < len(WeightSet):
            raise EmaSelectError(f"{folder.name} holds one set only. Choose a backup that holds both.")
        if not backup.named:
            raise EmaSelectError(
                f"{folder.name} was made without the plugin, and its EMA names no weights. OneTrainer can name them: "
                f"onetrainer-ema-select compare {folder} {folder} --onetrainer DIR"
            )
        ema, live = backup.sets[WeightSet.EMA], backup.sets[WeightSet.NON_EMA]
        pairs = [(name, name) for name in ema if name in live]
        total = sum(ema.numel(name) for name, _ in pairs)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("reading", min(done, whole), whole)

        whole = ema.nbytes + live.nbytes
        found = compare(ema, live, pairs, advance=advance)
        apart = found.total
        if apart.same_bits:
            return f"{folder.name}: its two sets are the same, bit for bit ({total} numbers)."
        far = [f"{name} {_number(one.relative)}" for name, one in list(found.blocks.items())[:_BLOCKS_NAMED]]
        return (
            f"{folder.name}: the relative distance of its two sets is {_number(apart.relative)} (the length of the "
            f"difference, 0 is the same), the cosine {_cosine(apart.cosine)}. Furthest apart: "
            f"{', '.join(far)}."
        )


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.7f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
