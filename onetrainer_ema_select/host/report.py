"""What the plugin tells the user: at once, and what went wrong again at the end."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable

from tqdm import tqdm

from onetrainer_ema_select.host import notices


class Reporter:
    """Prints between OneTrainer's progress bars and remembers problems."""

    def __init__(self, status: Callable[[str], None]) -> None:
        """Create a reporter.

        Args:
            status: Shows a line in the window's status bar; its failures are ignored.
        """
        self._status = status
        self.problems: list[str] = []
        self._repeated = 0

    def say(self, text: str) -> None:
        """Print a line."""
        write_line(f"[ema_select] {text}")

    def status(self, text: str) -> None:
        """Show a line in the window."""
        with contextlib.suppress(Exception):
            self._status(text)

    def show(self, error: Exception) -> None:
        """Show an error in the window until the user closes it; on the console it is told by who raises it."""
        self.status(str(error))
        notices.leave([str(error)])

    def problem(self, text: str, error: BaseException | None = None) -> None:
        """Print what went wrong, with its cause, now and once more at the end."""
        if error is not None:
            text = f"{text} Cause: {type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            write_line(trace.rstrip())
        self.problems.append(text)
        self.say(f"PROBLEM: {text}")

    def repeat_problems(self) -> None:
        """Print all problems again; they may have scrolled away days ago. Not twice in a row."""
        if len(self.problems) == self._repeated:
            return
        self._repeated = len(self.problems)
        self.say(f"{len(self.problems)} problem(s) in this run:")
        for text in self.problems:
            self.say(f"- {text}")
        self.status(f"ema_select: {self.problems[-1]}")
        notices.leave(self.problems)


def write_line(text: str) -> None:
    """Print between progress bars; a closed or broken console must not end a run."""
    with contextlib.suppress(OSError, ValueError):
        try:
            tqdm.write(text)
        except UnicodeEncodeError as error:
            # a console in a legacy code page cannot show every path; the sentence must be seen all the same
            tqdm.write(text.encode(error.encoding, "replace").decode(error.encoding))
