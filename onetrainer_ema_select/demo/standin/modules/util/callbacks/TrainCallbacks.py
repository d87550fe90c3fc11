"""What a window or script wants to hear of a run. Its exceptions are swallowed."""

import contextlib


def _nothing(*_args):
    pass


class TrainCallbacks:
    def __init__(
        self,
        on_update_train_progress=_nothing,
        on_update_status=_nothing,
        on_sample_default=_nothing,
        on_sample_custom=_nothing,
    ):
        self._progress = on_update_train_progress
        self._status = on_update_status
        self._sample_default = on_sample_default
        self._sample_custom = on_sample_custom

    def set_on_update_train_progress(self, on_update_train_progress=_nothing):
        self._progress = on_update_train_progress

    def set_on_update_status(self, on_update_status=_nothing):
        self._status = on_update_status

    def on_update_train_progress(self, train_progress, max_step, max_epoch):
        with contextlib.suppress(Exception):
            self._progress(train_progress, max_step, max_epoch)

    def on_update_status(self, status):
        with contextlib.suppress(Exception):
            self._status(status)

    def on_sample_default(self, sampler_output):
        with contextlib.suppress(Exception):
            self._sample_default(sampler_output)

    def on_sample_custom(self, sampler_output):
        with contextlib.suppress(Exception):
            self._sample_custom(sampler_output)
