"""When the two sets are looked at: often enough for a curve, and never at a price."""

from __future__ import annotations

POINTS = 200
FREE_SECONDS = 5.0
SHARE = 0.01


class LookTimes:
    """At most some 200 looks a run, which take no more than a hundredth of its time beyond the first seconds.

    The steps are fixed by the run's length. Only where looks take long, time decides which of them are left out.
    """

    def __init__(self, *, now: float) -> None:
        """Begin.

        Args:
            now: Seconds, of any clock.
        """
        self._began = now
        self._next = 0
        self._spent = self._last = 0.0

    def is_due(self, step: int, *, now: float) -> bool:
        """Return whether to look when so many steps are done."""
        affordable = self._spent + self._last <= FREE_SECONDS + SHARE * (now - self._began)
        return step >= self._next and affordable

    def looked(self, step: int, *, run_steps: int | None, seconds: float) -> None:
        """Note a look and what it has taken.

        Args:
            step: Steps done.
            run_steps: Of the whole run; None where that is not known, and looks become rarer as it goes on.
            seconds: That it has taken.
        """
        self._next = step + max(1, (run_steps or 10 * step) // POINTS)
        self._spent += seconds
        self._last = seconds
