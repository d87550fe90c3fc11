"""What is due now, counted in epochs, steps or time."""

import time

from modules.util.enum.TimeUnit import TimeUnit

_SECONDS = {TimeUnit.SECOND: 1, TimeUnit.MINUTE: 60, TimeUnit.HOUR: 3600}


class TimedActionMixin:
    def __init__(self):
        super().__init__()
        self._started = time.monotonic()
        self._last = {}

    def repeating_action_needed(self, name, interval, unit, train_progress, start_at_zero=True):
        """Whether it is due before the next step; without `start_at_zero` steps are counted from one."""
        if unit is TimeUnit.ALWAYS:
            return True
        if unit is TimeUnit.NEVER or (unit not in _SECONDS and int(interval) == 0):
            return False
        if unit is TimeUnit.STEP:
            return (train_progress.global_step + (0 if start_at_zero else 1)) % int(interval) == 0
        if unit is TimeUnit.EPOCH:
            begins = train_progress.epoch_step == 0 and train_progress.epoch % int(interval) == 0
            return begins and (start_at_zero or train_progress.epoch > 0)
        now = time.monotonic()
        last = self._last.setdefault(name, -1.0 if start_at_zero else now)
        due = now - last > interval * _SECONDS[unit]
        if due:
            self._last[name] = now
        return due

    def single_action_elapsed(self, name, delay, unit, train_progress):
        """Whether that much has passed since the start of the run."""
        del name
        if unit is TimeUnit.STEP:
            return train_progress.global_step + 1 > int(delay)
        if unit is TimeUnit.EPOCH:
            return train_progress.epoch + 1 > int(delay)
        if unit in _SECONDS:
            return time.monotonic() - self._started > delay * _SECONDS[unit]
        return unit is TimeUnit.ALWAYS
