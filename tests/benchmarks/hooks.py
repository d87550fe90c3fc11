"""What is measured inside OneTrainer, by its own python: hooks for ``Job(hook=...)`` and a script of its own.

As a script, in the root of a checkout: ``python hooks.py`` prints the seconds that each part of the plugin adds to
the start of OneTrainer, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS = 7


def settle_memory() -> None:
    """Give back to the system what is free, so that the next high-water mark is the next save's own."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def status_bytes(key: str) -> int:
    """A line of Linux's report on this process: ``VmRSS``, ``VmHWM``."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measured(save: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a save, and by how much the process's memory rose in it at the most."""
    settle_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # begins a new high-water mark
    before = status_bytes("VmRSS")
    begin = time.perf_counter()
    save()
    seconds = time.perf_counter() - begin
    return seconds, status_bytes("VmHWM") - before


def in_turn(ways: dict[str, Callable[[Path], object]], config: Any, after: Callable[[], object]) -> dict[str, Any]:
    """Each way to write again and again in turn: seconds, rise of the memory and bytes of every round but the first.

    What goes on in the background after one is waited for outside of its time.
    """
    found: dict[str, Any] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way, run in ways.items():
            target = Path(config.workspace_dir) / "measured"
            target.mkdir(parents=True)
            seconds, rise = measured(lambda run=run, target=target: run(target))
            after()
            size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
            shutil.rmtree(target)
            if number > 0:  # the first of each warms up
                found[way].append([seconds, rise, size])
    return found


@contextmanager
def backups(trainer: Any) -> Iterator[None]:
    """After the training: OneTrainer's own backup, the same flushed, and the plugin's, in turn."""
    from modules.util import create
    from modules.util.enum.ModelFormat import ModelFormat

    from onetrainer_ema_select import store
    from onetrainer_ema_select.host.session import session_of

    train = trainer.train
    config = trainer.config

    def backup(saver: Any, target: Path) -> None:
        saver.save(trainer.model, config.model_type, ModelFormat.INTERNAL, str(target / "b"), None)

    def backup_flushed(saver: Any, target: Path) -> None:
        backup(saver, target)
        for file in target.rglob("*"):
            if file.is_file():
                store.flush(file)

    def train_and_measure() -> None:
        train()
        trainer.model.evict()
        plain = create.create_model_saver(config.model_type, config.training_method)
        ways = {
            "OneTrainer's": lambda target: backup(plain, target),
            "the same, flushed": lambda target: backup_flushed(plain, target),
            "the plugin's": lambda target: backup(trainer.model_saver, target),
        }
        found = in_turn(ways, config, session_of(config).checksums.wait)
        session_of(config).last_backup = None  # they are all deleted again
        (Path(config.workspace_dir) / "backups.json").write_text(json.dumps(found), encoding="utf-8")

    trainer.train = train_and_measure
    yield


@contextmanager
def dual_saves(trainer: Any) -> Iterator[None]:
    """After the training: OneTrainer's single save and the plugin's dual one in turn, in every format.

    Also the single save followed by a flush of what it wrote, which OneTrainer leaves out and the plugin does,
    two single saves after each other, and the dual one with the wait until all of it is on the disk, for which
    training does not wait.
    """
    from modules.util import create
    from modules.util.enum.ModelFormat import ModelFormat

    from onetrainer_ema_select import store
    from onetrainer_ema_select.host.session import session_of

    train = trainer.train
    config = trainer.config

    def save(saver: Any, target: Path, model_format: ModelFormat) -> None:
        saver.save(
            model=trainer.model,
            model_type=config.model_type,
            output_model_format=model_format,
            output_model_destination=str(target / f"model{model_format.file_extension()}"),
            dtype=config.output_dtype.torch_dtype(),
        )

    def save_flushed(saver: Any, target: Path, model_format: ModelFormat) -> None:
        save(saver, target, model_format)
        for file in target.rglob("*"):
            if file.is_file():
                store.flush(file)

    def save_twice(saver: Any, target: Path, model_format: ModelFormat) -> None:
        for name in ("first", "second"):
            save(saver, target / name, model_format)

    def save_both(saver: Any, target: Path, model_format: ModelFormat) -> None:
        save(saver, target, model_format)
        session_of(config).publisher.collect(wait=True)

    def train_and_measure() -> None:
        train()
        trainer.model.evict()
        plain = create.create_model_saver(config.model_type, config.training_method)
        largest = max(parameter.nbytes for parameter in trainer.model.parameters.parameters())
        ways = {
            "single": lambda target, chosen: save(plain, target, chosen),
            "single, flushed": lambda target, chosen: save_flushed(plain, target, chosen),
            "two single ones": lambda target, chosen: save_twice(plain, target, chosen),
            "dual": lambda target, chosen: save(trainer.model_saver, target, chosen),
            "dual, on disk": lambda target, chosen: save_both(trainer.model_saver, target, chosen),
        }
        result: dict[str, Any] = {"largest": largest, "formats": {}}
        publisher = session_of(config).publisher
        for name in json.loads((Path(config.workspace_dir).parent / "formats.json").read_text(encoding="utf-8")):
            chosen = {
                way: lambda target, run=run, name=name: run(target, ModelFormat[name]) for way, run in ways.items()
            }
            result["formats"][name] = in_turn(chosen, config, lambda: publisher.collect(wait=True))
        (Path(config.workspace_dir) / "dual-save.json").write_text(json.dumps(result), encoding="utf-8")

    trainer.train = train_and_measure
    yield


def measure_start() -> dict[str, float]:
    """Seconds of each thing that the plugin does when OneTrainer starts."""
    sys.path.insert(0, str(Path.cwd()))
    from diffusers import UNet2DConditionModel
    from modules.model.StableDiffusionModel import StableDiffusionModel
    from modules.util import create
    from modules.util.callbacks.TrainCallbacks import TrainCallbacks
    from modules.util.commands.TrainCommands import TrainCommands
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.ModelType import ModelType

    seconds: dict[str, float] = {}
    TrainConfig.default_values()
    begin = time.perf_counter()
    TrainConfig.default_values()
    without = time.perf_counter() - begin

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = run()
        seconds[name] = time.perf_counter() - start
        return value

    def import_package() -> Any:
        import onetrainer_ema_select.host

        return onetrainer_ema_select.host

    host = timed("import", import_package)
    timed("arm", host.arm)
    config = timed("check and install", TrainConfig.default_values)
    seconds["check and install"] -= without
    config.from_dict({"ema": "CPU", "ema_select": {"enabled": True}, "tensorboard": False}, migrate=False)
    trainer = create.create_trainer(config, TrainCallbacks(), TrainCommands())
    timed("session", trainer.create_model_loader)
    model = StableDiffusionModel(ModelType.STABLE_DIFFUSION_15)
    model.unet = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=32)  # SD's depth

    def name_all() -> object:
        from onetrainer_ema_select.host.parameters import name_parameters

        return name_parameters(model, list(model.unet.parameters()))

    timed("names", name_all)
    return seconds


if __name__ == "__main__":
    print("measured " + json.dumps(measure_start()))
