"""Runs that are refused when they start: the error is shown and raised, and no cloud machine is paid for it."""

from __future__ import annotations

import contextlib
from typing import Any

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.report import Reporter


def refuse(trainer: Any, error: EmaSelectError) -> None:
    """Have a trainer raise an error when it starts, where OneTrainer's window catches it.

    A trainer that is to reattach starts all the same: the money for that training is spent, and its files are to come
    home. What OneTrainer deletes after that may be needed still, and stays.

    Args:
        trainer: OneTrainer's; of a version that may not be known, so nothing is taken for granted.
        error: What is shown and raised.
    """
    status = getattr(getattr(trainer, "callbacks", None), "on_update_status", lambda text: None)
    reporter = Reporter(status)

    def start() -> Any:
        if getattr(trainer, "reattach", False):
            warn(
                reporter,
                f"The training on the cloud machine is reattached to without the plugin on this side: {error} Of its "
                "final output OneTrainer fetches one set only. The machine is stopped where it would be deleted.",
            )
            keep_machine(getattr(trainer, "cloud", None), reporter, "not all of the final output has come home")
            return type(trainer).start(trainer)
        trainer.error_caught = True  # as OneTrainer's own `start` does
        if getattr(getattr(trainer.config, "cloud", None), "enabled", False):
            # OneTrainer's own would do to a machine of an earlier run what `on_error` says, and needs no connection
            trainer.end = lambda: _stop_tensorboard(trainer)
        reporter.show(error)
        raise error

    trainer.start = start


def leave_machine(cloud: Any) -> None:
    """Have a machine that was not connected to left as it is, whatever OneTrainer is told to do on an error."""
    cloud.delete = cloud.stop = lambda: None


def keep_machine(cloud: Any, reporter: Reporter, reason: str) -> None:
    """Have a machine stopped where it would be deleted, and its workspace kept: there are files on it."""
    if cloud is None:
        return

    def stop_instead() -> None:
        try:
            cloud.stop()
        except Exception as error:
            text = (
                f"The cloud machine was to be deleted, but {reason}, and it could not be stopped "
                f"({type(error).__name__}). It is still RUNNING, and costs money: fetch the files from it, then delete "
                "it yourself."
            )
            warn(reporter, text)
            raise
        text = (
            f"The cloud machine is stopped, not deleted: {reason}. Its disk may cost money: fetch the files, then "
            "delete it."
        )
        warn(reporter, text)

    def keep_workspace() -> None:
        warn(reporter, f"The workspace on the cloud machine is not deleted: {reason}.")

    cloud.delete = stop_instead
    cloud.delete_workspace = keep_workspace


def warn(reporter: Reporter, text: str) -> None:
    """Say a problem, also in the window: nothing repeats those of a cloud run at its end."""
    reporter.problem(text)
    reporter.show(EmaSelectError(text))


def _stop_tensorboard(trainer: Any) -> None:
    with contextlib.suppress(Exception):  # it may never have been started
        trainer._stop_tensorboard()
