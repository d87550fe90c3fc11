"""Reads the disk beside the window's own loop: a workspace may lie on a slow network, or on one that is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_POLL_MILLISECONDS = 50


class Latest(Generic[T]):
    """Does one kind of work in a thread, and shows what came out in the window's own thread.

    What is asked for while it works is done afterwards, the last request alone.
    """

    def __init__(self, components: Any, frame: Any, show: Callable[[T | Exception], None]) -> None:
        """Begin without work.

        Args:
            components: OneTrainer's components, whose timer is used.
            frame: The widget that the timer belongs to.
            show: Given what came out, or what was raised.
        """
        self._components, self._frame, self._show = components, frame, show
        self._wanted: Callable[[], T] | None = None
        self._thread: threading.Thread | None = None
        self._result: T | Exception = RuntimeError("there is no result yet")

    @property
    def busy(self) -> bool:
        """Whether something is still to be shown."""
        return self._thread is not None

    def ask(self, work: Callable[[], T]) -> None:
        """Do this next."""
        self._wanted = work
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        work, self._wanted = self._wanted, None
        # A daemon: a folder that does not answer must not keep OneTrainer from ending.
        self._thread = threading.Thread(target=self._work, args=(work,), name="ema_select", daemon=True)
        self._thread.start()
        self._poll()

    def _work(self, work: Callable[[], T]) -> None:
        try:
            self._result = work()
        except Exception as error:  # noqa: BLE001 - it is shown
            self._result = error

    def _poll(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._components.call_after(self._frame, _POLL_MILLISECONDS, self._poll)
            return
        self._thread = None
        if self._wanted is not None:
            self._start()
        else:
            self._show(self._result)
