"""A backup's model with either set shown to whoever saves it: the whole model, or an adapter without its base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from modules.util.enum.TrainingMethod import TrainingMethod
from torch import Tensor

from onetrainer_ema_select.backups import Backup, open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.export.configuration import RunConfig
from onetrainer_ema_select.host.export.loading import Loaded, load_model, read_files
from onetrainer_ema_select.integrity import read_safetensors_header
from onetrainer_ema_select.resume import some
from onetrainer_ema_select.state_dict_view import Rounding, StateDictView
from onetrainer_ema_select.tensor_set import Place, TensorSet


class Source(Protocol):
    """A model whose savers can be shown either set.

    Attributes:
        model: OneTrainer's.
        how: In words, how the weights come out of the backup.
        asked: Trained weights that savers have asked for since a set was shown.
        names: All trained weights, where they are known.
        dtypes: The model's own of the weights.
    """

    model: Any
    how: str
    asked: set[str]
    names: tuple[str, ...]
    dtypes: frozenset[torch.dtype]

    def showing(
        self, weight_set: WeightSet, dtype: torch.dtype | None, *, rounding: Rounding | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """While entered, savers see a set.

        Args:
            weight_set: Which one.
            dtype: That the saver will be asked to write; None for the weights' own.
            rounding: Rounds to that dtype in the saver's place; None leaves it to the saver.
        """
        ...


class ModelSource:
    """The model as it is in training: loaded and set up by OneTrainer."""

    def __init__(self, loaded: Loaded, average: TensorSet | None, *, how: str) -> None:
        """Show nothing yet.

        Args:
            loaded: The model, which holds the live weights.
            average: The averages by stable name; None where they are not wanted.
            how: For the user.
        """
        self.model = loaded.model
        self.names = loaded.names
        self.how = how
        self.asked: set[str] = set()
        self.dtypes = frozenset(parameter.dtype for parameter in loaded.parameters)
        self._loaded = loaded
        self._own = {name: each.dtype for name, each in zip(loaded.names, loaded.parameters, strict=True)}
        self._average = average

    @contextlib.contextmanager
    def showing(
        self, weight_set: WeightSet, dtype: torch.dtype | None, *, rounding: Rounding | None = None
    ) -> Iterator[None]:
        """Put a set into the model, and note what of it savers ask for.

        The live weights are there from the beginning, and gone once the averages have been shown: there is never
        more than one set in memory.
        """
        self.asked = set()

        def note(name: str) -> None:
            self.asked.add(name)

        if weight_set is WeightSet.EMA and self._average is not None:
            for name, parameter in zip(self.names, self._loaded.parameters, strict=True):
                average = self._average.view(name)
                if rounding is not None:
                    average = rounding(name, average, dtype or self._own[name])
                # Without a dtype the file has the weights' own: rounded to it once. Else the saver rounds.
                parameter.data = average.to(self._own[name]) if dtype is None else average
        elif rounding is not None:
            for name, parameter in zip(self.names, self._loaded.parameters, strict=True):
                parameter.data = rounding(name, parameter.data, dtype or self._own[name])
        with StateDictView(self._loaded.sites, note, dtype=dtype):
            yield


class _FileEmbedding:
    """Stands in for an embedding that is not set up, so that savers write what its file holds.

    They ask it for a part for each text encoder, by a name of their own, and those for their vectors.
    """

    def __init__(self, uuid: str) -> None:
        """Be one of this name, without vectors."""
        self._part = SimpleNamespace(uuid=uuid, placeholder=uuid, vector=None, output_vector=None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._part


class AdapterSource:
    """A LoRA or an embedding as its file in the backup holds it; its base model is not needed."""

    def __init__(
        self, model: Any, tensors: dict[str, Tensor], *, places: Mapping[str, Place], average: Mapping[str, Tensor]
    ) -> None:
        """Show nothing yet.

        Args:
            model: OneTrainer's, without a base.
            tensors: The file's tensors by key, as the model holds them; exchanged in place for the time of a save.
            places: Where in the file each trained weight lies.
            average: The averages by stable name; empty where the EMA is not wanted.
        """
        self.model = model
        self.names = tuple(places)
        self.how = "from the backup's own file; the base model is not needed"
        self.asked: set[str] = set()
        self._tensors = tensors
        self._average = average
        self._name_at = {place.key: name for name, place in places.items()}
        self.dtypes = frozenset(tensor.dtype for tensor in tensors.values())

    @contextlib.contextmanager
    def showing(
        self, weight_set: WeightSet, dtype: torch.dtype | None, *, rounding: Rounding | None = None
    ) -> Iterator[None]:
        """Show a set by exchanging the tensors in the dictionary that the saver reads."""
        original = dict(self._tensors)
        self.asked = set(self.names)
        try:
            for key, found in original.items():
                name = self._name_at.get(key, key)
                value, target = found, dtype or found.dtype
                if weight_set is WeightSet.EMA and key in self._name_at and name in self._average:
                    # Of a float32 average of a 16-bit adapter all is kept where the file has room for it.
                    value = self._average[name]
                    self._tensors[key] = value.to(target) if rounding is None else value
                if rounding is not None and not key.endswith(".alpha"):  # a constant, which is not trained
                    self._tensors[key] = rounding(name, value, target)
            if self.model.embedding_state_dicts:
                # What is not set up is written as it is.
                for key, tensor in self._tensors.items():
                    self._tensors[key] = tensor.to(dtype or tensor.dtype).contiguous()
            yield
        finally:
            self._tensors.update(original)


def open_model(
    config: RunConfig, opened: Backup, sets: Sequence[WeightSet], *, structure_only: bool = True
) -> ModelSource:
    """The whole model, or of a LoRA's and an embedding's base as much as is needed.

    Args:
        config: The run's.
        opened: The backup.
        sets: What will be shown.
        structure_only: Whether weights that lie outside the backup are left unread.

    Raises:
        EmaSelectError: OneTrainer cannot load it, or its weights are not those of the EMA.
    """
    wants_ema = WeightSet.EMA in sets

    def fits(names: Sequence[str], parameters: Sequence[Tensor]) -> str:
        return average_problem(opened, names, parameters) if wants_ema else ""

    adapter = not config.is_fine_tune
    loaded = load_model(config, opened.path, fits=fits, structure_only=structure_only)
    average: TensorSet | None = None
    if wants_ema:
        average = (opened if opened.named else open_backup(opened.path, names=loaded.names)).sets[WeightSet.EMA]
    how = "through OneTrainer's loader and setup"
    if adapter and structure_only:
        how += ", with the structure of the base model"
    return ModelSource(loaded, average, how=how)


def is_adapter(config: RunConfig, opened: Backup, sets: Sequence[WeightSet]) -> bool:
    """Whether a backup's own file holds all that is to be written, and every average has its place in it."""
    embeddings = list((opened.path / "embeddings").glob("*.safetensors"))
    method = config.original.training_method
    if method == TrainingMethod.LORA:
        files = [opened.path / "lora" / "lora.safetensors"]
        if embeddings or not files[0].is_file():
            return False
        # An older OneTrainer called them otherwise, and its converter would pass such names on.
        parts = {name.partition(".")[0] for name in read_safetensors_header(files[0]) if name != "__metadata__"}
        if not parts <= set(config.original.model_type.model_parts()):
            return False
    elif method == TrainingMethod.EMBEDDING and len(embeddings) == 1:
        files = embeddings
    else:
        return False
    if WeightSet.EMA not in sets:
        return True
    average = opened.sets[WeightSet.EMA]
    places = [opened.places.get(name) for name in average]
    return opened.named and all(place is not None and place.file == files[0] for place in places)


def open_adapter(config: RunConfig, opened: Backup, sets: Sequence[WeightSet]) -> AdapterSource:
    """A LoRA or an embedding without its base; see :func:`is_adapter`.

    Raises:
        EmaSelectError: OneTrainer cannot load it.
    """
    model = read_files(config, opened.path, with_base=False)
    if config.original.training_method == TrainingMethod.LORA:
        tensors = model.lora_state_dict
    else:
        [(uuid, tensors)] = model.embedding_state_dicts.items()
        model.embedding = _FileEmbedding(uuid)
    average = opened.sets[WeightSet.EMA] if WeightSet.EMA in sets else {}
    return AdapterSource(model, tensors, places=opened.places, average=average)


def average_problem(opened: Backup, names: Sequence[str], parameters: Sequence[Tensor]) -> str:
    """Why a backup's averages cannot be those of these weights; empty where they are.

    Args:
        opened: The backup.
        names: Of the trained weights, in OneTrainer's order.
        parameters: The weights.
    """
    average = opened.sets[WeightSet.EMA]
    advice = (
        "The backup's configuration may be of another run, or OneTrainer may have changed since: give the right "
        "config with --config FILE, or the OneTrainer of that time with --onetrainer DIR. The non-EMA set can be "
        "exported all the same: --set non-ema."
    )
    if opened.named:
        unknown = [name for name in names if name not in average]
        if unknown:
            return (
                f"{len(unknown)} of {len(names)} weights that OneTrainer would train have no EMA in {opened.path}: "
                f"{some(unknown)}. {advice}"
            )
        if left := set(average) - set(names):
            return (
                f"The EMA in {opened.path} holds {len(left)} weights that OneTrainer would not train with this "
                f"configuration, and that would stay as they are: {some(sorted(left))}. {advice}"
            )
        pairs = [(name, average.shape(name)) for name in names]
    else:
        if len(average) != len(names):
            return (
                f"The EMA in {opened.path} holds {len(average)} tensors, OneTrainer would train {len(names)} with "
                f"the backup's configuration. {advice}"
            )
        pairs = list(zip(names, map(average.shape, average), strict=True))
    for (name, shape), parameter in zip(pairs, parameters, strict=True):
        if tuple(shape) != tuple(parameter.shape):
            return (
                f"The EMA of {name} in {opened.path} has the shape {tuple(shape)}, the weight has "
                f"{tuple(parameter.shape)}. {advice}"
            )
    return ""


def trained_names(config: RunConfig, opened: Backup) -> tuple[str, ...]:
    """What OneTrainer trains in this run, in its order.

    Raises:
        EmaSelectError: It cannot be loaded.
    """
    has_ema = WeightSet.EMA in opened.sets

    def fits(names: Sequence[str], parameters: Sequence[Tensor]) -> str:
        return average_problem(opened, names, parameters) if has_ema else ""

    return load_model(config, opened.path, fits=fits).names
