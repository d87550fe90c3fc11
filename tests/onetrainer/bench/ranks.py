"""Runs on two processes over gloo on the CPU, one after the other: ``python ranks.py JOBS``, in a checkout.

OneTrainer's own ``MultiTrainer`` does on each process what it does on each GPU, with the few calls that want CUDA
exchanged (see ``gloo/sitecustomize.py``). Per job and process a JSON file says how it ended, and after which seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path.cwd()))
WORLD = 2


def work(rank: int, jobs: list[dict[str, Any]], stores: str) -> None:
    """One process: its part of every job."""
    for number, job in enumerate(jobs):
        os.environ["BENCH_STORE"] = f"file://{stores}/{number}"
        os.environ["BENCH_LOST"] = job["lost"]
        result = run(rank, job)
        Path(job["output"], f"rank{rank}.json").write_text(json.dumps(result), encoding="utf-8")


def run(rank: int, job: dict[str, Any]) -> dict[str, Any]:
    """One process's part of a job."""
    from modules.util import create  # isort: skip - first, for the import circle
    from modules.trainer.MultiTrainer import MultiTrainer
    from modules.util import multi_gpu_util
    from modules.util.callbacks.TrainCallbacks import TrainCallbacks
    from modules.util.commands.TrainCommands import TrainCommands

    assert create is not None
    if rank == 0:
        multi_gpu_util.set_global_commands(TrainCommands())
        if job["begin"]:
            workspace = Path(job["config"]["workspace_dir"])
            shutil.copytree(Path(job["begin"], job["part"]), workspace / job["part"], dirs_exist_ok=True)
    seed(rank)
    began, problem = time.monotonic(), None
    with recorded(rank, Path(job["output"])), failing(job["fails"].get(str(rank), "")):
        try:
            MultiTrainer._train_process(
                rank - 1, WORLD, job["config"], [f"cpu:{i}" for i in range(WORLD)], TrainCallbacks()
            )
        except Exception as error:  # what ends the process in a real run
            problem = f"{type(error).__name__}: {error}"
    left = not multi_gpu_util.is_enabled()
    return {"problem": problem, "left the group": left, "seconds": time.monotonic() - began}


def seed(rank: int) -> None:
    """Every process has other random numbers, as in a real run."""
    import numpy as np
    import torch

    torch.manual_seed(rank)
    np.random.seed(rank)
    random.seed(rank)


@contextlib.contextmanager
def recorded(rank: int, output: Path) -> Iterator[None]:
    """Write the weights as they are before the first step and after the last one."""
    from modules.trainer.GenericTrainer import GenericTrainer
    from safetensors.torch import save_file

    original = GenericTrainer.train

    def write(trainer: Any, name: str) -> None:
        tensors = [parameter.detach().clone().contiguous() for parameter in trainer.model.parameters.parameters()]
        save_file({f"{i:05d}": tensor for i, tensor in enumerate(tensors)}, output / f"{name}-{rank}.safetensors")

    def train(trainer: Any) -> None:
        write(trainer, "begin")
        original(trainer)
        write(trainer, "end")

    with mock.patch.object(GenericTrainer, "train", train):
        yield


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Have something of the plugin go wrong on this process.

    Args:
        what: ``average``: no memory for it; ``names``: none for naming the weights; empty: nothing.
    """
    place = {"average": "setup.WeightTracks", "names": "session.name_parameters", "": ""}[what]
    if not place:
        yield
        return
    error = MemoryError(f"no room for the {what}")
    with mock.patch(f"onetrainer_ema_select.host.{place}", side_effect=error):
        yield


if __name__ == "__main__":
    import torch.multiprocessing

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for each in asked:
        Path(each["output"]).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(asked, folder), nprocs=WORLD)
