"""Things done inside a run, by OneTrainer's python: hooks for ``Job(hook=...)``.

The reference files are what OneTrainer's own saver writes, without the plugin between, of a model whose weights
*are* the set: an independent statement of what the set's file has to be, in every format.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from modules.util import create
from modules.util.enum.ModelFormat import ModelFormat
from safetensors.torch import save_file

DTYPES = {"FLOAT_32": torch.float32, "BFLOAT_16": torch.bfloat16, "NONE": None}


def supported_formats(trainer: Any) -> list[ModelFormat]:
    """The output formats that OneTrainer offers for this run and that its saver can write."""
    config = trainer.config
    return [
        model_format
        for model_format in config.model_type.supported_output_formats(config.training_method)
        if model_format is not ModelFormat.INTERNAL
    ]


def to_temporary_device(trainer: Any) -> None:
    """As OneTrainer does before a save."""
    if hasattr(trainer.model, "evict"):
        trainer.model.evict()
    else:  # before 2026-08-07
        trainer.model.to(trainer.temp_device)


@contextmanager
def every_format(trainer: Any) -> Iterator[None]:
    """After the training: both sets in every format and dtype, through the plugin and by OneTrainer alone."""
    train = trainer.train

    def train_and_save() -> None:
        write_initial(trainer)
        train()
        to_temporary_device(trainer)
        for model_format in supported_formats(trainer):
            for name, dtype in DTYPES.items():
                for folder in ("plugin", "reference"):
                    target = Path(trainer.config.workspace_dir) / "formats" / f"{model_format}-{name}" / folder
                    write = write_plugin if folder == "plugin" else write_reference
                    try:
                        write(trainer, target, model_format, dtype)
                    except Exception as error:
                        target.mkdir(parents=True, exist_ok=True)
                        (target / "refused.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")

    trainer.train = train_and_save
    yield


@contextmanager
def saved_twice(trainer: Any) -> Iterator[None]:
    """After the training: the run's format in bf16 through the plugin, twice, and in float32 by OneTrainer alone."""
    train = trainer.train

    def train_and_save() -> None:
        train()
        to_temporary_device(trainer)
        place, model_format = Path(trainer.config.workspace_dir) / "formats", trainer.config.output_model_format
        for folder in ("first", "second"):
            write_plugin(trainer, place / folder, model_format, torch.bfloat16)
        write_reference(trainer, place / "exact", model_format, torch.float32)

    trainer.train = train_and_save
    yield


@contextmanager
def initial_weights(trainer: Any) -> Iterator[None]:
    """Write the weights as they are before the first step."""
    train = trainer.train

    def train_after_writing() -> None:
        write_initial(trainer)
        train()

    trainer.train = train_after_writing
    yield


def write_initial(trainer: Any) -> None:
    """``workspace/initial.safetensors``: the weights by position."""
    tensors = [parameter.detach().cpu().clone().contiguous() for parameter in trainer.model.parameters.parameters()]
    path = Path(trainer.config.workspace_dir) / "initial.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{number:05d}": tensor for number, tensor in enumerate(tensors)}, path)


def write_plugin(trainer: Any, target: Path, model_format: ModelFormat, dtype: torch.dtype | None) -> None:
    """As OneTrainer's loop saves: through the trainer's saver."""
    trainer.model_saver.save(
        model=trainer.model,
        model_type=trainer.config.model_type,
        output_model_format=model_format,
        output_model_destination=str(target / f"model{model_format.file_extension()}"),
        dtype=dtype,
    )


def write_reference(trainer: Any, target: Path, model_format: ModelFormat, dtype: torch.dtype | None) -> None:
    """The sets by OneTrainer alone: the weights are exchanged for the set's in its full precision."""
    saver = create.create_model_saver(trainer.config.model_type, trainer.config.training_method)
    parameters = trainer.model.parameters.parameters()
    originals = [parameter.data for parameter in parameters]
    averages = [average.detach().clone() for average in trainer.model.ema.ema_parameters]
    for kind, tensors in (("ema", averages), ("non-ema", originals)):
        try:
            for parameter, tensor in zip(parameters, tensors, strict=True):
                # Without a dtype the file has the weights' own: the set rounded to it once.
                parameter.data = tensor.to(parameter.dtype) if dtype is None else tensor
            saver.save(
                trainer.model,
                trainer.config.model_type,
                model_format,
                str(target / kind / f"model{model_format.file_extension()}"),
                dtype,
            )
        finally:
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.data = original


@contextmanager
def interrupt_third_sample(trainer: Any) -> Iterator[None]:
    """Ctrl-C while the third sample is made: the first of the EMA after training has begun."""
    create_sampler = create.create_model_sampler
    made = []

    def create_interrupting(*args: Any, **kwargs: Any) -> Any:
        sampler = create_sampler(*args, **kwargs)
        sample = sampler.sample

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            made.append(1)
            if len(made) == 3:
                raise KeyboardInterrupt
            return sample(*args, **kwargs)

        sampler.sample = interrupted
        return sampler

    create.create_model_sampler = create_interrupting
    try:
        yield
    finally:
        create.create_model_sampler = create_sampler


@contextmanager
def full_disk(trainer: Any, fills: Callable[[int, Path, bool], bool]) -> Iterator[None]:
    """OneTrainer's own saver finds the disk full: ``fills(step, destination, is a backup)``; half a file stays."""
    create_saver = create.create_model_saver

    def create_failing(*args: Any, **kwargs: Any) -> Any:
        saver = create_saver(*args, **kwargs)
        save = saver.save

        def failing(
            model: Any, model_type: Any, output_model_format: Any, output_model_destination: str, dtype: Any
        ) -> None:
            destination = Path(output_model_destination)
            if fills(model.train_progress.global_step, destination, output_model_format is ModelFormat.INTERNAL):
                half = destination / "half" if output_model_format is ModelFormat.INTERNAL else destination
                half.parent.mkdir(parents=True, exist_ok=True)
                half.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            save(model, model_type, output_model_format, output_model_destination, dtype)

        saver.save = failing
        return saver

    create.create_model_saver = create_failing
    try:
        yield
    finally:
        create.create_model_saver = create_saver


def every_save_fails(trainer: Any) -> AbstractContextManager[None]:
    """No model can be written; backups can."""
    return full_disk(trainer, lambda step, path, backup: not backup)


def second_set_fails(trainer: Any) -> AbstractContextManager[None]:
    """The non-EMA set of step 3 cannot be written, and neither set at the end, wherever."""
    return full_disk(
        trainer,
        lambda step, path, backup: (
            not backup and ("-save-" not in path.name or (step == 3 and path.name.endswith("-non-ema.safetensors")))
        ),
    )


def output_place_fails(trainer: Any) -> AbstractContextManager[None]:
    """Only the disk with the final output is full."""
    workspace = Path(trainer.config.workspace_dir)
    return full_disk(trainer, lambda step, path, backup: not path.is_relative_to(workspace))


def later_backups_fail(trainer: Any) -> AbstractContextManager[None]:
    """From step 4 on no backup can be written."""
    return full_disk(trainer, lambda step, path, backup: backup and step >= 4)


def one_backup_fails(trainer: Any) -> AbstractContextManager[None]:
    """The backup of step 2 cannot be written."""
    return full_disk(trainer, lambda step, path, backup: backup and step == 2)


@contextmanager
def backup_without_config(trainer: Any) -> Iterator[None]:
    """OneTrainer cannot write its configuration into a backup that is on the disk, and deletes it then."""

    def fails(path: str) -> None:
        raise OSError(28, "No space left on device")

    trainer._GenericTrainer__save_backup_config = fails
    yield


@contextmanager
def signal_later(trainer: Any) -> Iterator[None]:
    """Send this process a signal after a while, as ``signal.json`` beside the workspace says."""
    asked = json.loads((Path(trainer.config.workspace_dir).parent / "signal.json").read_text(encoding="utf-8"))
    over = threading.Event()

    def wait_and_send() -> None:
        if not over.wait(asked["after"]):
            os.kill(os.getpid(), asked["signal"])

    threading.Thread(target=wait_and_send, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def plain_formats(trainer: Any) -> Iterator[None]:
    """At the end of a run of plain OneTrainer: every format, by its own saver, of its own weights.

    ``formats/FORMAT/non-ema`` is written before ``end``, of the live weights that its backup then holds, and
    ``formats/FORMAT/ema`` after it, when OneTrainer has left the EMA in the model.
    """
    end = trainer.end

    def save_all(kind: str) -> None:
        for model_format in supported_formats(trainer):
            target = Path(trainer.config.workspace_dir) / "formats" / str(model_format) / kind
            try:
                write_plugin(trainer, target, model_format, trainer.config.output_dtype.torch_dtype())
            except Exception as error:
                target.mkdir(parents=True, exist_ok=True)
                (target / "refused.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")

    def end_and_save() -> None:
        save_all("non-ema")
        end()
        save_all("ema")

    trainer.end = end_and_save
    yield


@contextmanager
def plain_formats_uncompiled(trainer: Any) -> Iterator[None]:
    """The same, with blocks wrapped for the compiler, and nothing compiled: that would take half a minute."""
    compile_module = torch.nn.Module.compile
    torch.nn.Module.compile = lambda *_, **__: None
    try:
        with plain_formats(trainer):
            yield
    finally:
        torch.nn.Module.compile = compile_module


@contextmanager
def timed_validation(trainer: Any) -> Iterator[None]:
    """Seconds of each validation, OneTrainer's own and with what the plugin adds: ``workspace/validation.json``."""
    name = "_GenericTrainer__validate"
    seconds: dict[str, list[float]] = {"own": [], "all": []}

    def timed(validate: Callable[[Any], None], kind: str) -> Callable[[Any], None]:
        def run(progress: Any) -> None:
            begin = time.perf_counter()
            validate(progress)
            seconds[kind].append(time.perf_counter() - begin)

        return run

    # Before the start: what the plugin wraps is timed already. And once more around what it has made of it.
    setattr(trainer, name, timed(getattr(trainer, name), "own"))
    train = trainer.train

    def train_timed() -> None:
        setattr(trainer, name, timed(getattr(trainer, name), "all"))
        train()

    trainer.train = train_timed
    yield
    (Path(trainer.config.workspace_dir) / "validation.json").write_text(json.dumps(seconds), encoding="utf-8")
