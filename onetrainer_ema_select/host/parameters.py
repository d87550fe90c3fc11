"""Stable names for the weights that OneTrainer trains, and where its savers find them.

OneTrainer hands its parameters around as a list without names. The names here come from where a parameter
hangs in the model, by one rule for every model type and training method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.state_dict_view import Site

_VECTORS = ("vector", "output_vector")
# Wrappers that come and go with gradient checkpointing and torch.compile; the weight is the same.
_TRANSPARENT = frozenset({"checkpoint", "_checkpoint_wrapped_module", "_orig_mod"})


def name_parameters(model: Any, parameters: Sequence[Tensor]) -> tuple[tuple[str, ...], tuple[Site, ...]]:
    """Name parameters, and find every place in the model where they are.

    Args:
        model: OneTrainer's model object.
        parameters: The trained parameters in OneTrainer's order.

    Returns:
        The names in the same order, and the sites of all of them (tied parameters have several).

    Raises:
        NamesError: If a parameter is nowhere in the model, stands twice in the list, or has another one's name.
    """
    wanted = {id(parameter): position for position, parameter in enumerate(parameters)}
    if len(wanted) != len(parameters):
        raise NamesError(
            f"OneTrainer lists {len(parameters)} weights, but only {len(wanted)} different ones. The plugin cannot "
            "tell them apart; please report this with the model type, and train without it: "
            "set ema_select.enabled=false."
        )
    names: dict[int, str] = {}
    places: list[tuple[int, Any, str]] = []
    seen: set[tuple[int, str]] = set()
    for name, owner, attribute, parameter in _walk(model):
        position = wanted.get(id(parameter))
        if position is None or (id(owner), attribute) in seen:
            continue
        seen.add((id(owner), attribute))
        names.setdefault(position, name)
        places.append((position, owner, attribute))
    missing = [position for position in range(len(parameters)) if position not in names]
    if missing:
        shape = tuple(parameters[missing[0]].shape)
        raise NamesError(
            f"{len(missing)} of {len(parameters)} trained weights were not found in the model (the first is number "
            f"{missing[0]}, shape {shape}). Please report this with the model type and training method, and train "
            "without the plugin: set ema_select.enabled=false."
        )
    ambiguous = [name for name, count in Counter(names.values()).items() if count > 1]
    if ambiguous:
        # Two weights that differ only in a wrapper's name would silently share one average in a file.
        raise NamesError(
            f"Two trained weights would both be called {ambiguous[0]!r}. Please report this with the model type and "
            "training method, and train without the plugin: set ema_select.enabled=false.",
            key=ambiguous[0],
        )
    sites = tuple(Site(names[position], owner, attribute) for position, owner, attribute in places)
    return tuple(names[position] for position in range(len(parameters))), sites


def find_parameters(model: Any, names: Collection[str]) -> dict[str, Tensor]:
    """The weights that have these names, trained or not; names that the model does not have are left out."""
    wanted = set(names)
    return {name: parameter for name, _, _, parameter in _walk(model) if name in wanted} if wanted else {}


def _walk(model: Any) -> Iterator[tuple[str, Any, str, Tensor]]:
    """Name, owner, attribute and tensor of everything in the model that could be trained, in a fixed order."""
    for attribute, value in sorted(vars(model).items()):
        if isinstance(value, nn.Module):
            yield from _walk_module(attribute, value)
        elif hasattr(value, "lora_modules"):
            for key, adapter in value.lora_modules.items():
                # A fused q/k/v group is no module itself but holds the one that is trained.
                module = adapter if isinstance(adapter, nn.Module) else getattr(adapter, "module", None)
                if isinstance(module, nn.Module):
                    yield from _walk_module(f"{attribute}.{key}", module)
        else:
            for embedding in value if isinstance(value, list | tuple) else (value,):
                yield from _walk_embedding(embedding)


def _walk_module(prefix: str, module: nn.Module) -> Iterator[tuple[str, Any, str, Tensor]]:
    for path, owner in module.named_modules(prefix=prefix, remove_duplicate=False):
        parts = [part for part in path.split(".") if part not in _TRANSPARENT]
        for attribute, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            yield ".".join([*parts, attribute]), owner, attribute, parameter


def _walk_embedding(value: Any) -> Iterator[tuple[str, Any, str, Tensor]]:
    """The vectors of a textual-inversion embedding: an object with one part for each text encoder."""
    try:
        attributes = sorted(vars(value).items())
    except TypeError:
        return  # no attributes: a number, a string, a list
    for attribute, part in attributes:
        uuid = getattr(part, "uuid", None)
        if uuid is None:
            continue
        for vector in _VECTORS:
            tensor = getattr(part, vector, None)
            if isinstance(tensor, Tensor):
                yield f"embedding.{uuid}.{attribute}.{vector}", part, vector, tensor
