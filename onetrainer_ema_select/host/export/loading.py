"""A backup's model through OneTrainer's own loader and setup, without optimizer and without an average."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from modules.util import create
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.TrainProgress import TrainProgress
from torch import Tensor, nn

from onetrainer_ema_select.errors import EmaSelectError, ExportError
from onetrainer_ema_select.host.export.configuration import RunConfig
from onetrainer_ema_select.host.parameters import name_parameters
from onetrainer_ema_select.integrity import read_progress
from onetrainer_ema_select.state_dict_view import Site

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loaded:
    """A model as OneTrainer would have it at that moment.

    Attributes:
        model: OneTrainer's.
        names: Stable names of the trained weights, in its order.
        sites: Where its savers find them.
        parameters: The trained weights.
    """

    model: Any
    names: tuple[str, ...]
    sites: tuple[Site, ...]
    parameters: tuple[Tensor, ...]


def load_model(
    config: RunConfig,
    backup: Path,
    *,
    fits: Callable[[Sequence[str], Sequence[Tensor]], str],
    structure_only: bool = True,
) -> Loaded:
    """Load the backup, and have OneTrainer say what is trained.

    Args:
        config: The run's.
        backup: The backup.
        fits: Told names and weights; answers what is wrong with them, or with an empty text.
        structure_only: Whether weights that lie outside the backup are left unread.

    Raises:
        ExportError: OneTrainer cannot load it, or what it trains is not what the backup holds.
    """
    loaded = _load(config, backup, as_in_training=False, structure_only=structure_only)
    problem = fits(loaded.names, loaded.parameters)
    if not problem:
        return loaded
    # Gradient checkpointing wraps blocks, which changes the modules' names and so what a layer filter selects.
    del loaded
    try:
        loaded = _load(config, backup, as_in_training=True, structure_only=False)
    except EmaSelectError:
        raise ExportError(problem, path=backup) from None
    if second := fits(loaded.names, loaded.parameters):
        raise ExportError(second, path=backup)
    return loaded


def _load(config: RunConfig, backup: Path, *, as_in_training: bool, structure_only: bool) -> Loaded:
    working = config.working
    model = read_files(config, backup, with_base=True, structure_only=structure_only)
    model.train_config = working
    setup = create.create_model_setup(working.model_type, _CPU, _CPU, working.training_method, False)
    try:
        if as_in_training:
            setup.setup_optimizations(model, working)
        setup.setup_model(model, working)
    except Exception as error:
        raise ExportError(
            f"OneTrainer has loaded {backup}, but could not set the model up as in the run: {text_of(error)}. The "
            "backup's configuration may be of another run or of another version of OneTrainer: give the right one "
            "with --config FILE.",
            path=backup,
        ) from error
    model.train_config = config.original
    # What the files held is in the model now; a saver would take it for an embedding that is not loaded.
    for uuid in model.embedding_state_dicts or {}:
        model.embedding_state_dicts[uuid] = None
    parameters = tuple(model.parameters.parameters())
    names, sites = name_parameters(model, parameters)
    return Loaded(model, names, sites, parameters)


def read_files(config: RunConfig, backup: Path, *, with_base: bool, structure_only: bool = False) -> Any:
    """OneTrainer's model with what its loader reads: the backup, and the base model where that is asked for.

    Raises:
        ExportError: It cannot.
    """
    working = config.working
    loader = create.create_model_loader(working.model_type, working.training_method)
    if loader is None:
        raise ExportError(
            f"This OneTrainer has no loader for {working.model_type} {working.training_method}. Update OneTrainer, or "
            "name another one with --onetrainer DIR.",
            path=backup,
        )
    loader._load_internal_data = _read_progress_only
    names = model_names(working, backup, with_base=with_base)
    quantization = getattr(working, "quantization", None)
    try:
        with _structures(backup, active=structure_only):
            model = loader.load(working.model_type, names, working.weight_dtypes(), quantization)
    except Exception as error:
        raise ExportError(_could_not_load(config, backup, names, error), path=backup) from error
    lost = [uuid for uuid, tensors in (model.embedding_state_dicts or {}).items() if tensors is None]
    if lost:
        raise ExportError(
            f"{backup} holds no file for the embedding {lost[0]} that its configuration names. The backup is not "
            "whole, or the configuration is of another run: give the right one with --config FILE.",
            path=backup,
            key=lost[0],
        )
    if not hasattr(model, "train_progress"):
        model.train_progress = TrainProgress()
    model.train_config = config.original
    return model


def _read_progress_only(model: Any, model_name: str) -> None:
    """Stand in for the loader's reading of optimizer and average, which would need the device they were on."""
    counts = read_progress(Path(model_name))
    model.train_progress = TrainProgress(
        epoch=counts["epoch"],
        epoch_step=counts.get("epoch_step", 0),
        epoch_sample=counts.get("epoch_sample", 0),
        global_step=counts["global_step"],
    )


def model_names(config: Any, backup: Path, *, with_base: bool) -> Any:
    """What the loader reads from where."""
    names = copy.copy(config.model_names())
    if config.training_method == TrainingMethod.LORA:
        names.lora = str(backup)
    elif config.training_method == TrainingMethod.EMBEDDING:
        names.embedding.model_name = str(backup)
    else:
        names.base_model = str(backup)
    if not with_base:
        names.base_model = None
    return names


class UnreadWeightsError(Exception):
    """A saver asks for weights that were not read, because no file of this kind should hold them."""


@contextlib.contextmanager
def _structures(backup: Path, *, active: bool) -> Iterator[None]:
    """While entered, OneTrainer's loader makes the parts of a model without reading their weights.

    What is written comes out of the backup; of what lies elsewhere only the shapes are needed. Its memory is
    reserved, never touched. Where this OneTrainer has no such place, the weights are read.
    """
    place = "_HFModelLoaderMixin__load_sub_module"
    owner: Any = None
    with contextlib.suppress(ImportError):
        from modules.modelLoader.mixin.HFModelLoaderMixin import HFModelLoaderMixin

        owner = HFModelLoaderMixin
    original: Callable[..., Any] | None = getattr(owner, place, None)
    if original is None or not active:
        yield
        return

    def make(loader: Any, *args: Any, **kwargs: Any) -> Any:
        part = kwargs.get("sub_module")
        source = kwargs.get("pretrained_model_name_or_path")
        if not isinstance(part, nn.Module) or source is None or Path(source).is_relative_to(backup):
            return original(loader, *args, **kwargs)
        part = part.to_empty(device="cpu")
        # As the weights would be: vectors of embeddings take their dtype from them.
        wanted = kwargs.get("dtype")
        quantized = getattr(wanted, "is_quantized", lambda: False)()
        dtype = (kwargs.get("train_dtype") if quantized else wanted) or None
        if dtype is not None and dtype.torch_dtype() is not None:
            part = part.to(dtype.torch_dtype())
        for module in part.modules():
            module.register_state_dict_post_hook(refuse)
        return part

    def refuse(module: nn.Module, *_: Any) -> None:
        raise UnreadWeightsError(f"the weights of {type(module).__name__} are wanted")

    setattr(owner, place, make)
    try:
        yield
    finally:
        setattr(owner, place, original)


def places_outside(config: RunConfig) -> dict[str, str]:
    """Where OneTrainer looks for what is not in the backup, by the key in its configuration."""
    working = config.working
    places: dict[str, str] = {} if config.is_fine_tune else {"base_model_name": working.base_model_name}
    for part in working.model_type.model_parts():
        name = getattr(getattr(working, part, None), "model_name", None)
        if name:
            places[f"{part}.model_name"] = str(name)
    return places


def base_model_problem(config: RunConfig) -> str:
    """What is wrong with the places that the base model is looked for in; empty where nothing is, or who knows."""
    wanted = places_outside(config)
    missing = [(key, name) for key, name in wanted.items() if _looks_local(name) and not Path(name).exists()]
    if not missing:
        return ""
    listed = " and ".join(f"{name} ({key})" for key, name in missing)
    ways = ["--base-model PATH" if key == "base_model_name" else f"--config-value {key}=PATH" for key, _ in missing]
    return (
        f"The model that the run was based on is not there any more: looked for {listed}. Say where it is now: "
        f"{' '.join(ways)}"
    )


def _looks_local(name: str) -> bool:
    """Whether this is a place on a disk, and not a repository on Hugging Face (``owner/name``)."""
    path = Path(name)
    return path.is_absolute() or "\\" in name or len(path.parts) > 2 or name.endswith((".safetensors", ".ckpt"))


def _could_not_load(config: RunConfig, backup: Path, names: Any, error: Exception) -> str:
    if problem := base_model_problem(config):
        return problem
    sources = [str(backup)]
    if not config.is_fine_tune and names.base_model:
        sources.append(f"the base model {names.base_model}")
    advice = (
        "If the base model is not on this machine and cannot be downloaded, name a copy with --base-model PATH. "
        if len(sources) > 1
        else "Try an older backup. "
    )
    return (
        f"OneTrainer could not load {' with '.join(sources)} as {config.working.model_type} "
        f"{config.working.training_method}: {text_of(error)}. {advice}"
        "If the backup is of another kind of model, its configuration is not its own: give the right one with "
        "--config FILE."
    )


def text_of(error: BaseException) -> str:
    """An error in one line, never empty."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
