"""Runs trainings in OneTrainer and writes down what happened; the bench's worker.

Run by OneTrainer's own python in the root of a copy of its checkout::

    python record.py [--real-clock]

Jobs come in on the standard input, one line each, the path of a JSON file (see ``Job`` in ``workers.py``).
For every job one line goes out on the standard output: ``REPLY`` and the path of its ``result.json``. All that
the job itself prints goes into files of its own, so that one process can do many and the seconds that the
imports take are paid once. A job goes through the same calls in the same order as ``scripts/train.py``.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path.cwd()))

import numpy as np
import torch
from modules.util import create, time_util
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from safetensors.torch import save_file

REPLY = "bench-reply "
STAMP_FORMAT = "%Y-%m-%d_%H-%M-%S"


class SimulatedCrash(BaseException):
    """Ends a training as a failure of the machine would: OneTrainer's own ``except Exception`` lets it pass."""


class CountingClock:
    """Stands in for ``datetime`` where OneTrainer takes its time stamps: every call is a later second.

    OneTrainer names files by the second and finds the newest backup by its name. The tiny runs are so fast that
    two backups would share a second, and their order would be that of the rest of the name.
    """

    def __init__(self) -> None:
        self.last = datetime.min

    def now(self) -> datetime:
        """The time, at least a second after the one given before."""
        self.last = max(datetime.now().replace(microsecond=0), self.last + timedelta(seconds=1))
        return self.last

    def begin(self, workspace: Path) -> None:
        """Begin a job: at the real time, or after the newest stamp in its workspace if that is ahead of it."""
        self.last = datetime.min
        for path in workspace.glob("*/*"):
            with contextlib.suppress(ValueError):
                self.last = max(self.last, datetime.strptime(path.name[:19], STAMP_FORMAT))


def digest(data: bytes) -> str:
    """A short fingerprint."""
    return hashlib.sha256(data).hexdigest()[:16]


def random_states() -> dict[str, str]:
    """Fingerprints of the three global random states."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "torch": digest(torch.get_rng_state().numpy().tobytes()),
        "numpy": digest(repr((numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"])).encode()),
        "python": digest(repr(random.getstate()).encode()),
    }


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def name_parameters(model: Any) -> dict[int, str]:
    """A name for each parameter (by ``id``): attribute of the model, then the path inside it."""
    names: dict[int, str] = {}
    for attribute, value in sorted(vars(model).items()):
        if isinstance(value, torch.nn.Module):
            names.update((id(tensor), f"{attribute}.{name}") for name, tensor in value.named_parameters())
        for key, module in getattr(value, "lora_modules", {}).items():
            if hasattr(module, "named_parameters"):
                names.update((id(tensor), f"{attribute}.{key}.{name}") for name, tensor in module.named_parameters())
    for embedding in model.all_embeddings() if hasattr(model, "all_embeddings") else []:
        for attribute, value in sorted(vars(embedding).items()):
            for kind in ("vector", "output_vector"):
                tensor = getattr(value, kind, None)
                if tensor is not None:
                    names[id(tensor)] = f"embedding.{value.uuid}.{attribute}.{kind}"
    return names


@contextlib.contextmanager
def output_into(folder: Path) -> Iterator[None]:
    """Send the standard streams, also those of child processes, into two files in ``folder``."""
    saved: list[tuple[int, int]] = []
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        saved.append((number, os.dup(number)))
        with (folder / name).open("ab") as file:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


class Recorder:
    """Watches one training through the callbacks OneTrainer offers and writes it down."""

    def __init__(self, job: dict[str, Any], commands: TrainCommands) -> None:
        self.job = job
        self.commands = commands
        self.folder = Path(job["output"])
        self.trainer: Any = None
        self.names: list[str] = []
        self.result: dict[str, Any] = {
            "name": job["name"], "finished": False, "phase": "create", "exception": None, "canceled": False,
            "steps": [], "statuses": [], "samples": 0, "random": {}, "seconds": {},
        }  # fmt: skip

    def callbacks(self) -> TrainCallbacks:
        """The callbacks to give to the trainer."""
        return TrainCallbacks(
            on_update_train_progress=self.on_progress,
            on_update_status=self.on_status,
            on_sample_default=self.on_sample,
            on_sample_custom=self.on_sample,
        )

    def on_status(self, status: str) -> None:
        """Write down a status; the one before each step is where a job's ``reseed`` takes place."""
        self.result["statuses"].append(status)
        if self.job["reseed"] and status == "Training ...":
            seed_everything(self.job["seed"] * 1_000_003 + self.trainer.model.train_progress.global_step)

    def on_sample(self, _output: Any) -> None:
        """Count a sample."""
        self.result["samples"] += 1

    def on_progress(self, progress: Any, _max_step: int, _max_epoch: int) -> None:
        """Write down a step (OneTrainer calls this once more after each epoch) and do what the job asks for."""
        steps = self.result["steps"]
        if steps and steps[-1]["global_step"] == progress.global_step:
            return
        try:
            steps.append(
                {
                    "global_step": progress.global_step,
                    "epoch": progress.epoch,
                    "epoch_step": progress.epoch_step,
                    "random": random_states(),
                }
            )
            for kind in self.job["record"]:
                self.write_tensors(kind, f"{kind}/{progress.global_step:06d}")
        except Exception as error:  # OneTrainer swallows what a callback raises
            raise SimulatedCrash(f"the recorder failed: {error!r}") from error
        for action in self.job["actions"].get(str(progress.global_step), []):
            self.act(action)

    def act(self, action: str) -> None:
        """Do one of the things a job can ask for after a step."""
        kind, _, argument = action.partition(":")
        if kind == "crash":
            raise SimulatedCrash(action)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "exit":
            self.write_result()
            os._exit(int(argument or 1))
        if kind == "sample_custom":
            with Path(self.trainer.config.sample_definition_file_name).open(encoding="utf-8") as file:
                definition = json.load(file)[0]
            defaults = SampleConfig.default_values(self.trainer.config.model_type)
            self.commands.sample_custom(defaults.from_dict(definition))
        else:
            getattr(self.commands, kind)()

    def tensors(self, kind: str) -> list[torch.Tensor]:
        """The live weights, or the EMA's, in the order of the parameter list; the tensors themselves."""
        model = self.trainer.model
        if kind == "live":
            return list(model.parameters.parameters())
        return list(model.ema.ema_parameters) if model.ema else []

    def write_tensors(self, kind: str, name: str) -> None:
        """Write a set as safetensors, keyed by the parameters' names; nothing where there is no such set."""
        tensors = self.tensors(kind)
        if not self.names:
            self.describe_parameters()
        if tensors:
            path = self.folder / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            copies = [tensor.detach().cpu().clone().contiguous() for tensor in tensors]
            save_file(dict(zip(self.names, copies, strict=True)), path)

    def describe_parameters(self) -> None:
        """Fix the parameters' names for this run: by place in the model, or by number where there is none."""
        parameters = self.tensors("live")
        known = name_parameters(self.trainer.model)
        self.names = [known.get(id(tensor), f"unnamed.{i:05d}") for i, tensor in enumerate(parameters)]
        if len(set(self.names)) != len(self.names):
            raise ValueError("parameter names are not unique")
        self.result["parameters"] = self.names

    def write_state(self, when: str) -> None:
        """Write both sets and the random states under ``when``; before ``end`` the optimizer's state too."""
        self.result["random"][when] = random_states()
        if getattr(self.trainer, "model", None) is None or self.trainer.model.parameters is None:
            return
        for kind in ("live", "ema"):
            self.write_tensors(kind, f"{when}-{kind}")
        if when == "trained" and self.trainer.model.optimizer is not None:
            torch.save(self.trainer.model.optimizer.state_dict(), self.folder / "optimizer.pt")

    def write_result(self) -> None:
        """Write ``result.json``."""
        (self.folder / "result.json").write_text(json.dumps(self.result, indent=1), encoding="utf-8")


def load_hook(reference: str | None) -> Callable[[Any], contextlib.AbstractContextManager[Any]]:
    """The context manager function a job names as ``path/to/file.py:function``; called with the trainer."""
    if reference is None:
        return contextlib.nullcontext
    path, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"hook_{digest(path.encode())}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"no such hook: {reference}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Any], contextlib.AbstractContextManager[Any]] = getattr(module, name)
    return function


def train(job: dict[str, Any], recorder: Recorder) -> None:
    """One training, by the calls of ``scripts/train.py`` in their order."""
    result, marks = recorder.result, [("begin", time.perf_counter())]

    def enter(phase: str) -> None:
        marks.append((phase, time.perf_counter()))
        result["seconds"][result["phase"]] = round(marks[-1][1] - marks[-2][1], 3)
        result["phase"] = phase

    seed_everything(job["seed"])
    config = TrainConfig.default_values().from_dict(job["config"])
    trainer = recorder.trainer = create.create_trainer(config, recorder.callbacks(), recorder.commands)
    with load_hook(job["hook"])(trainer):
        enter("start")
        trainer.start()
        result["random"]["started"] = random_states()
        enter("train")
        try:
            trainer.train()
        except KeyboardInterrupt:
            result["canceled"] = True
        finally:
            recorder.write_state("trained")
        if not result["canceled"] or config.backup_before_save:
            enter("end")
            trainer.end()
            recorder.write_state("ended")
        enter("done")
    result["finished"] = True


def run(job: dict[str, Any], clock: CountingClock | None) -> Path:
    """Do a job and return the path of its result."""
    folder = Path(job["output"])
    folder.mkdir(parents=True, exist_ok=True)
    if clock is not None:
        clock.begin(Path(job["config"]["workspace_dir"]))
    recorder = Recorder(job, TrainCommands())
    with output_into(folder):
        try:
            train(job, recorder)
        except BaseException as error:
            traceback.print_exc()
            recorder.result["exception"] = {"type": type(error).__name__, "message": str(error)}
            with contextlib.suppress(AttributeError):
                recorder.trainer.tensorboard.close()
        recorder.write_result()
        recorder.trainer = None
        gc.collect()
    return folder / "result.json"


def serve(lines: IO[str], replies: IO[str], *, real_clock: bool) -> None:
    """Do one job a line until there are no more."""
    clock = None if real_clock else CountingClock()
    if clock is not None:
        time_util.datetime = clock
    # OneTrainer collects garbage many times a run; what the imports made need not be looked through each time.
    gc.collect()
    gc.freeze()
    print(f"{REPLY}ready", file=replies, flush=True)
    for line in lines:
        job = json.loads(Path(line.strip()).read_text(encoding="utf-8"))
        print(f"{REPLY}{run(job, clock)}", file=replies, flush=True)


if __name__ == "__main__":
    # What anything prints outside a job goes into the worker's log.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies_out:
        os.dup2(2, 1)
        serve(sys.stdin, replies_out, real_clock="--real-clock" in sys.argv)
