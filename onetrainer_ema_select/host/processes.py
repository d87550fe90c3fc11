"""Several GPUs: one decision for all processes of a run, and one end where one of them cannot go on.

OneTrainer's processes wait for each other, with NCCL for up to a day. So before training begins an error of the
plugin is raised by all of them or by none, and what is read from the disk is decided upon by the first one alone.
From then on the plugin works on the first process only, and reports instead of raising.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed
from modules.util import multi_gpu_util

from onetrainer_ema_select.errors import EmaSelectError

T = TypeVar("T")


def decided_by_first(decide: Callable[[], T]) -> T:
    """Have the first process decide, and every process take its decision. Every process must call this.

    Args:
        decide: Called on the first process only; what it returns must be picklable.

    Raises:
        Exception: What ``decide`` has raised, on the first process.
        EmaSelectError: With the same message, on the others.
    """
    if multi_gpu_util.world_size() == 1:
        return decide()
    if not multi_gpu_util.is_master():
        received: list[tuple[T, None] | tuple[None, str]] = [(None, "")]
        torch.distributed.broadcast_object_list(received, src=0)
        decision, problem = received[0]
        if problem is not None:
            raise EmaSelectError(problem)
        return decision  # type: ignore[return-value]
    try:
        made = decide()
    except Exception as error:
        torch.distributed.broadcast_object_list([(None, str(error) or type(error).__name__)], src=0)
        raise
    torch.distributed.broadcast_object_list([(made, None)], src=0)
    return made


def raise_together(error: Exception | None) -> None:
    """Raise on every process if one of them has failed. Every process must call this.

    Args:
        error: What has gone wrong on this one.

    Raises:
        Exception: ``error``, where there is one.
        EmaSelectError: Where only other processes have failed, with what they say.
    """
    size = multi_gpu_util.world_size()
    problem = None if error is None else str(error) or type(error).__name__
    problems = [problem]
    if size > 1:
        problems = [None] * size
        torch.distributed.all_gather_object(problems, problem)
    if error is not None:
        raise error
    for rank, text in enumerate(problems):
        if text is not None:
            raise EmaSelectError(f"Process {rank} of this run cannot go on, so none does: {text}")


def leave_group() -> None:
    """Do what OneTrainer does at the very end of a process, which an error that ends the run would skip.

    The others wait for it there before they end, and this one waits for them before it ends.
    """
    if multi_gpu_util.world_size() > 1:
        torch.distributed.destroy_process_group()
