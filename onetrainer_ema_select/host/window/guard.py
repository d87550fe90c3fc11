"""Failures of the plugin in OneTrainer's window: shown, printed, and never passed on to it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.report import write_line


def guarded(action: Callable[[], Any], show: Callable[[str], None] = lambda _: None) -> Callable[..., None]:
    """An action for a button or timer; nobody else catches what it raises there.

    Args:
        action: Called without arguments, whatever the toolkit passes.
        show: Given what has failed, in words.
    """

    def act(*_: Any) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - OneTrainer's window must go on
            print_error(error)
            try:
                show(words_for(error))
            except Exception as another:  # noqa: BLE001 - it cannot be shown; it has been printed
                print_error(another)

    return act


def words_for(error: Exception) -> str:
    """An error in words: its own, or its kind and what it says."""
    return str(error) if isinstance(error, EmaSelectError) else f"{type(error).__name__}: {error}"


def print_error(error: Exception) -> None:
    """Print an error with its trace on the console, if there is one."""
    write_line("".join(traceback.format_exception(error)).rstrip())
