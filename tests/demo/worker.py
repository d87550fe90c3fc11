"""Runs trainings in a copy of the stand-in, in one process: `python worker.py JOBS RESULTS`, in that folder.

Each job is {"name", "config", "plugin"}; for each a file RESULTS/<name>.pt is written with what was in the model
when training ended, before OneTrainer's `end` puts its EMA there. A job may ask for more: "sigma_rels", the float64
power-function averages of all steps' weights, of which "images" says how many there will be; "full_disk", at which
calls of the plugin's writing of tracks the disk is full.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path.cwd()))

# the first import, as in scripts/train.py: it imports what lies in modules/modelSetup
from modules.util import create
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.TrainConfig import TrainConfig

from onetrainer_ema_select.host import arm, disarm, post_hoc
from onetrainer_ema_select.host.session import session_of


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


class ClosedForm:
    """The averages that the paper defines, in float64, from the weights of every step."""

    def __init__(self, sigma_rels: list[float], images: int) -> None:
        self.end, self.time = images, 0
        # sigma_rel ** 2 * (gamma + 2) ** 2 * (gamma + 3) = gamma + 1, solved as a cubic
        self.powers = {}
        for sigma in sigma_rels:
            square = sigma**2
            roots = np.roots([square, 7 * square, 16 * square - 1, 12 * square - 1])
            self.powers[sigma] = 1 + max(root.real for root in roots if abs(root.imag) < 1e-9)
        self.sums = dict.fromkeys(sigma_rels, torch.zeros(()))

    def add(self, parameters: list[torch.Tensor], images: int) -> None:
        before, self.time = self.time, self.time + images
        everything = torch.cat([tensor.detach().flatten() for tensor in parameters]).double()
        for sigma, power in self.powers.items():
            share = (self.time / self.end) ** power - (before / self.end) ** power
            self.sums[sigma] = self.sums[sigma] + share * everything


def run(job: dict) -> dict:
    if job["plugin"]:
        arm()
    save_file = post_hoc.save_file
    calls = iter(range(10**6))

    def full(*args, **kwargs):
        if next(calls) in job["full_disk"]:
            raise OSError(28, "No space left on device")
        return save_file(*args, **kwargs)

    post_hoc.save_file = full if "full_disk" in job else save_file
    try:
        torch.manual_seed(1)  # adapters begin with random weights
        random.seed(1)
        config = TrainConfig.default_values().from_dict(job["config"])
        trainer = create.create_trainer(config, TrainCallbacks(), TrainCommands())
        trainer.start()
        begun = weights(trainer.model)
        closed = ClosedForm(job.get("sigma_rels", []), job.get("images", 1))
        if "sigma_rels" in job:
            after = trainer.model_setup.after_optimizer_step

            def after_optimizer_step(model, *args):
                after(model, *args)
                closed.add(model.parameters.parameters(), config.batch_size)

            trainer.model_setup.after_optimizer_step = after_optimizer_step
        before = torch.get_rng_state(), random.getstate()
        trainer.train()
        model = trainer.model
        live = weights(model)
        optimizer = model.optimizer.state_dict()["state"]
        averages = [tensor.clone() for tensor in model.ema.ema_parameters] if model.ema else []
        own = session_of(config) if job["plugin"] else None
        kept = own.post_hoc.tracks.sets() if own is not None and own.post_hoc is not None else {}
        tracks = {length: {name: one.clone() for name, one in averages.items()} for length, averages in kept.items()}
        ema = dict(zip(trained_names(model), averages, strict=True)) if averages else {}
        trainer.end()
        drawn = not torch.equal(before[0], torch.get_rng_state()) or before[1] != random.getstate()
    finally:
        post_hoc.save_file = save_file
        disarm()
    return {
        "live": live,
        "optimizer": optimizer,
        "ema": ema,
        "drawn": drawn,
        "begun": begun,
        "tracks": tracks,
        "closed": closed.sums,
        "problems": list(own.reporter.problems) if own is not None else [],
        "sentence": own.plan.sentence if own is not None else "",
        "post_hoc": own.post_hoc.sentence if own is not None and own.post_hoc is not None else "",
    }


def main() -> None:
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        print(f"== {job['name']}", flush=True)
        torch.save(run(job), results / f"{job['name']}.pt")


if __name__ == "__main__":
    main()
