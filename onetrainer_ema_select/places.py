"""Which tensor in a backup's files is the live weight of which trained parameter, where that is certain.

A trained weight is known by its stable name (``unet.conv_in.weight``, ``prior_prior_lora.blocks.0.lora_up.weight``,
``embedding.<uuid>.<part>.vector``), in a file by the key that OneTrainer gives it. Nothing is known here of model
types: a group of names belongs to the folder, or to the prefix of a LoRA file, that has every one of them with the
same shape. Where that leaves a choice, or nothing fits, the names have no place: better none than a wrong one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from onetrainer_ema_select.tensor_set import Place, StoredTensor

Shape = tuple[int, ...] | None
"""None where only the name is known."""

LORA_ENDING = "_lora"
EMBEDDING = "embedding"


def find_places(
    trained: Mapping[str, Shape],
    *,
    components: Mapping[str, Mapping[str, StoredTensor]],
    adapters: Mapping[str, StoredTensor],
    embeddings: Mapping[str, Mapping[str, StoredTensor]],
) -> dict[str, Place]:
    """Find the live weights of trained parameters.

    Args:
        trained: Shapes by stable names.
        components: Of each folder of a model, its tensors by key.
        adapters: The tensors of the LoRA file by key; empty where there is none.
        embeddings: Of each embedding's file, by the file's name without its ending, its tensors by key.

    Returns:
        Places by stable name; names that cannot be matched with certainty are left out.
    """
    modules: dict[str, dict[str, Shape]] = defaultdict(dict)
    loras: dict[str, dict[str, Shape]] = defaultdict(dict)
    vectors: dict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in trained.items():
        first, _, rest = name.partition(".")
        if first == EMBEDDING and rest.count(".") >= 2:
            vectors[rest.partition(".")[0]][name] = shape
        elif first.endswith(LORA_ENDING):
            loras[first][rest] = shape
        else:
            modules[first][rest] = shape
    prefixes: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for key, entry in adapters.items():
        first, _, rest = key.partition(".")
        prefixes[first][rest] = entry
    found: dict[str, Place] = {}
    for groups, sources, ending in ((modules, components, ""), (loras, prefixes, LORA_ENDING)):
        for group, source in assign(groups, sources, ending=ending).items():
            for rest in groups[group]:
                found[f"{group}.{rest}"] = sources[source][rest].place
    for uuid, names in vectors.items():
        found |= _by_shape(names, embeddings.get(uuid, {}))
    return found


def assign(
    groups: Mapping[str, Mapping[str, Shape]],
    sources: Mapping[str, Mapping[str, StoredTensor]],
    *,
    ending: str,
) -> dict[str, str]:
    """Give each group of names the source that holds it.

    Args:
        groups: Of each attribute of the model, its names without the attribute.
        sources: Of each folder or prefix, its tensors.
        ending: What attributes have at their end and sources have not.

    Returns:
        Sources by group: those of the same name, then those that are left as the only one possible. A group of
        which the source of its own name holds only a part gets none.
    """
    assigned: dict[str, str] = {}
    open_groups = set(groups)
    for group in sorted(groups):
        own = group.removesuffix(ending) if ending else group
        if own in sources:
            open_groups.discard(group)
            if _fits(groups[group], sources[own]):
                assigned[group] = own
    reserved = {group.removesuffix(ending) if ending else group for group in groups}
    free = {source for source in sources if source not in reserved}
    while open_groups:
        possible = {
            group: [source for source in sorted(free) if _fits(groups[group], sources[source])]
            for group in sorted(open_groups)
        }
        certain = {group: choice[0] for group, choice in possible.items() if len(choice) == 1}
        claims = Counter(certain.values())
        certain = {group: source for group, source in certain.items() if claims[source] == 1}
        if not certain:
            break
        assigned |= certain
        free -= set(certain.values())
        open_groups -= set(certain)
    return assigned


def _fits(group: Mapping[str, Shape], source: Mapping[str, StoredTensor]) -> bool:
    return all(rest in source and shape in (None, source[rest].shape) for rest, shape in group.items())


def _by_shape(names: Mapping[str, Shape], tensors: Mapping[str, StoredTensor]) -> dict[str, Place]:
    """The vectors of an embedding, whose keys differ between model types: by shape, where each is there once."""
    if len(names) == len(tensors) == 1:
        (name, shape), (entry,) = next(iter(names.items())), tensors.values()
        return {name: entry.place} if shape in (None, entry.shape) else {}
    by_shape: dict[tuple[int, ...], list[StoredTensor]] = defaultdict(list)
    for entry in tensors.values():
        by_shape[entry.shape].append(entry)
    wanted = Counter(names.values())
    return {
        name: by_shape[shape][0].place
        for name, shape in names.items()
        if shape is not None and wanted[shape] == 1 and len(by_shape[shape]) == 1
    }


def name_all(
    entries: Sequence[tuple[str, StoredTensor]], places: Mapping[str, Place], trained: Mapping[str, Shape]
) -> dict[str, StoredTensor]:
    """Name every tensor of a backup: trained ones by their stable name, others by where they lie.

    Args:
        entries: Folder and tensor, in the order that the result shall have.
        places: As from `find_places`.
        trained: All trained names. One without a place is never given to another tensor.

    Returns:
        The tensors as `folder.key`; as `folder/key` where the first is taken.
    """
    stable = {place: name for name, place in places.items()}
    named: dict[str, StoredTensor] = {}
    for folder, entry in entries:
        name = stable.get(entry.place)
        if name is None:
            name = f"{folder}.{entry.place.key}"
            if name in trained or name in named:
                name = f"{folder}/{entry.place.key}"
        named[name] = entry
    return named
