"""Two processes that train together over gloo on the CPU: ``python ranks.py CONFIG OUTPUT``, in a checkout.

OneTrainer's own ``MultiTrainer`` wants CUDA; this starts its ``GenericTrainer`` on every rank as that does.
"""

from __future__ import annotations

import datetime
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
WORLD = 2


def train(rank: int, config_path: str, output: str, store: str) -> None:
    """One rank's training; writes its live weights."""
    import numpy as np
    import torch
    from modules.util import create, multi_gpu_util
    from modules.trainer.GenericTrainer import GenericTrainer  # isort: skip - create first, for the import circle
    from modules.util.callbacks.TrainCallbacks import TrainCallbacks
    from modules.util.commands.TrainCommands import TrainCommands
    from modules.util.config.TrainConfig import TrainConfig
    from safetensors.torch import save_file

    assert create is not None
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=90),
    )
    if rank == 0:
        multi_gpu_util.set_global_commands(TrainCommands())
    torch.manual_seed(rank)
    np.random.seed(rank)
    random.seed(rank)
    config = TrainConfig.default_values().from_dict(json.loads(Path(config_path).read_text(encoding="utf-8")))
    trainer: Any = GenericTrainer(config, TrainCallbacks(), TrainCommands())
    try:
        trainer.start()
        trainer.train()
        parameters = [parameter.detach().clone().contiguous() for parameter in trainer.model.parameters.parameters()]
        save_file({f"{i:05d}": tensor for i, tensor in enumerate(parameters)}, f"{output}/rank{rank}.safetensors")
    finally:
        trainer.end()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import torch.multiprocessing

    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, args=(sys.argv[1], sys.argv[2], f"{folder}/store"), nprocs=WORLD)
