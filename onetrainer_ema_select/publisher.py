"""Files go to the disk and to their places on a thread of their own, while the next set is written or trained."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from onetrainer_ema_select.store import Replaced, Staging

Placed = Callable[[tuple[Replaced, ...]], None]
Done = Callable[[Exception | None], None]


class Publisher:
    """Publishes stagings one after the other, in order, and tells about each in the caller's own thread.

    Waiting for a disk is most of what a flush does, and nothing in training has to wait with it. A process that
    ends orderly waits for what has been begun; one that is killed leaves the staging, never half a file.
    """

    def __init__(self) -> None:
        """Create a publisher; its thread starts with the first file."""
        self._pool: ThreadPoolExecutor | None = None
        self._begun: list[tuple[Future[None], Done]] = []

    def submit(
        self,
        staging: Staging,
        *,
        placed: Placed,
        done: Done,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """Publish a staging that is written, and discard it.

        Args:
            staging: The staging; not to be touched by the caller any more.
            prepare: Called on the publisher's thread before it is published, after all that came before it.
            placed: Called on the publisher's thread as soon as it is published, with what lies beside its place
                (see :meth:`Staging.publish`), so that a note of it is there even if the process dies next.
            done: Called by :meth:`collect` on the caller's thread, with the error of the two or None.
        """
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ema_select")
            future = self._pool.submit(_publish, staging, placed, prepare)
        except RuntimeError:  # no thread to be had: the process is short of them, or about to end
            future = Future()
            try:
                _publish(staging, placed, prepare)
                future.set_result(None)
            except Exception as error:  # noqa: BLE001 - told to the caller as from the thread
                future.set_exception(error)
        self._begun.append((future, done))

    def collect(self, *, wait: bool) -> None:
        """Tell about what is done.

        Args:
            wait: Whether to wait for what has been begun.
        """
        while self._begun:
            future, done = self._begun[0]
            if not wait and not future.done():
                return
            error = future.exception()  # an interrupt while it waits leaves everything for the next call
            if error is not None and not isinstance(error, Exception):
                raise error
            self._begun.pop(0)
            done(error)


def _publish(staging: Staging, placed: Placed, prepare: Callable[[], object] | None) -> None:
    try:
        if prepare is not None:
            prepare()
        placed(staging.publish())
    finally:
        staging.discard()
