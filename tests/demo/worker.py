"""Runs trainings in a copy of the stand-in, in one process: `python worker.py JOBS RESULTS`, in that folder.

Each job is {"name", "config", "plugin"}; for each a file RESULTS/<name>.pt is written with what was in the model
when training ended, before OneTrainer's `end` puts its EMA there.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path.cwd()))

# the first import, as in scripts/train.py: it imports what lies in modules/modelSetup
from modules.util import create
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.TrainConfig import TrainConfig

from onetrainer_ema_select.host import arm, disarm


def weights(model) -> dict[str, torch.Tensor]:
    """Everything in the model, by name."""
    found = {}
    for part in model.model_type.model_parts():
        found |= {f"{part}.{key}": tensor for key, tensor in getattr(model, part).state_dict().items()}
    for adapter in model.adapters():
        found |= adapter.state_dict()
    for embedding in model.all_text_encoder_embeddings():
        found[f"embedding.{embedding.placeholder}"] = embedding.trained.detach()
    return {name: tensor.clone() for name, tensor in found.items()}


def trained_names(model) -> list[str]:
    """The names of the trained weights, in the order of OneTrainer's list."""
    names = {}
    for part in model.model_type.model_parts():
        names |= {id(p): f"{part}.{key}" for key, p in getattr(model, part).named_parameters()}
    for adapter in model.adapters():
        for module in adapter.lora_modules.values():
            names |= {id(p): module.prefix + key for key, p in module.named_parameters()}
    names |= {id(e.trained): f"embedding.{e.placeholder}" for e in model.all_text_encoder_embeddings()}
    return [names[id(parameter)] for parameter in model.parameters.parameters()]


def run(job: dict) -> dict:
    if job["plugin"]:
        arm()
    try:
        torch.manual_seed(1)  # adapters begin with random weights
        random.seed(1)
        config = TrainConfig.default_values().from_dict(job["config"])
        trainer = create.create_trainer(config, TrainCallbacks(), TrainCommands())
        trainer.start()
        before = torch.get_rng_state(), random.getstate()
        trainer.train()
        model = trainer.model
        live = weights(model)
        optimizer = model.optimizer.state_dict()["state"]
        averages = [tensor.clone() for tensor in model.ema.ema_parameters] if model.ema else []
        ema = dict(zip(trained_names(model), averages, strict=True)) if averages else {}
        trainer.end()
        drawn = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
    finally:
        disarm()
    return {"live": live, "optimizer": optimizer, "ema": ema, "drawn": drawn}


def main() -> None:
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        print(f"== {job['name']}", flush=True)
        torch.save(run(job), results / f"{job['name']}.pt")


if __name__ == "__main__":
    main()
