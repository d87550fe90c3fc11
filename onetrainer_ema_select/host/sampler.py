"""The sampler's seam: the set that OneTrainer asked for is in the model while a sample is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onetrainer_ema_select.host.session import session_of


def create_sampler(original: Callable[..., Any], trainer: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_sampler``."""
    sampler = original(trainer, model, *args, **kwargs)
    session = session_of(trainer.config)
    if session is None or sampler is None or session.ema is None:
        return sampler
    ema = session.ema
    original_sample = sampler.sample

    def sample(*args: Any, **kwargs: Any) -> Any:
        try:
            ema.before_sample()
        except Exception as error:  # noqa: BLE001 - a sample is no reason to end a run
            ema.settle()
            session.reporter.problem(
                "The EMA could not be put into the model for a sample, which shows the non-EMA weights instead.", error
            )
        return original_sample(*args, **kwargs)

    sampler.sample = sample
    return sampler
