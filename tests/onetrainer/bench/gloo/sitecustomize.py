"""On the path of a python that runs OneTrainer, lets its ``MultiTrainer`` work without a GPU; spawned ones inherit it.

What wants CUDA is exchanged when ``MultiTrainer`` is imported: gloo for nccl, meeting at ``BENCH_STORE``, with a
timeout that is far beyond the seconds a test allows. ``BENCH_LOST``: the rank whose second step fails.
"""

from __future__ import annotations

import datetime
import gc
import os
import sys
from collections.abc import Callable
from typing import Any


class BeforeMultiTrainer:
    """Exchanges what is to be exchanged when the module is about to be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing."""
        if name == "modules.trainer.MultiTrainer":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            exchange()


def exchange() -> None:
    """Patch torch in this process."""
    import torch

    init = torch.distributed.init_process_group

    def init_on_cpu(*, rank: int, world_size: int, **_: Any) -> None:
        # OneTrainer collects garbage many times a run; what the imports made need not be looked through each time.
        gc.collect()
        gc.freeze()
        init(
            "gloo",
            init_method=os.environ["BENCH_STORE"],
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=200),
        )
        from modules.util.TrainProgress import TrainProgress

        TrainProgress.next_step = next_step_or_lost(TrainProgress.next_step, rank)

    torch.distributed.init_process_group = init_on_cpu
    torch.cuda.set_device = lambda *_: None
    torch.cuda.get_device_name = lambda *_: "no GPU"


def next_step_or_lost(original: Callable[..., None], rank: int) -> Callable[..., None]:
    """OneTrainer's ``next_step``, failing in the second step on the lost rank."""

    def next_step(progress: Any, *args: Any) -> None:
        if progress.global_step == 1 and os.environ.get("BENCH_LOST") == str(rank):
            raise RuntimeError("a GPU was lost")
        original(progress, *args)

    return next_step


sys.meta_path.insert(0, BeforeMultiTrainer())  # type: ignore[arg-type]
