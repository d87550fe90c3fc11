"""The sampler's seam: the set that OneTrainer asked for is in the model while a sample is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onetrainer_ema_select.host.session import session_of


def create_sampler(original: Callable[[Any, Any], Any], trainer: Any, model: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_sampler``."""
    sampler = original(trainer, model)
    session = session_of(trainer.config)
    if session is None or sampler is None or session.ema is None:
        return sampler
    ema = session.ema
    original_sample = sampler.sample

    def sample(*args: Any, **kwargs: Any) -> Any:
        ema.before_sample()
        return original_sample(*args, **kwargs)

    sampler.sample = sample
    return sampler
