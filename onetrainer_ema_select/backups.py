"""A backup as its sets of weights: named tensors, read one at a time, and where the live ones lie."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrainer_ema_select.backup_names import check_shapes, known_names
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import BackupError, ManifestError, NamesError
from onetrainer_ema_select.integrity import EMA_FILE, read_progress
from onetrainer_ema_select.manifest import FOLDER, Manifest, read_manifest
from onetrainer_ema_select.places import Shape, find_places, name_all
from onetrainer_ema_select.recognise import is_parked, parked_problem, refuse_incomplete, refuse_other
from onetrainer_ema_select.run_config import read_config
from onetrainer_ema_select.tensor_files import read_averages, read_folder, read_safetensors
from onetrainer_ema_select.tensor_set import MappedTensor, Place, StoredTensor, TensorSet

POSITION = "position"
# What lies in a backup beside the folders of a fine-tuned model.
_NOT_COMPONENTS = frozenset({"optimizer", "ema", "lora", "embeddings", "embedding", "onetrainer_config", FOLDER})
_OTHER_WEIGHTS = (".bin", ".pt", ".ckpt", ".pth")


@dataclass(frozen=True)
class Backup:
    """What a backup, or an average that was set aside, holds. Nothing is kept open but the file of the average.

    Windows cannot delete or replace that file meanwhile: `close` it, or use the backup in a `with` statement.

    Attributes:
        path: Its folder.
        step: The host's ``global_step``.
        epoch: Epochs finished.
        epoch_step: Steps of the current epoch.
        manifest: What the plugin noted; None for a backup that was made without it.
        config: The configuration that it was made with; None where there is none that can be read.
        sets: The sets that it holds.
        named: Whether the EMA's weights are known by their stable names. Otherwise they are called
            ``position.0`` and so on, in OneTrainer's order.
        places: Where the live weight of each trained parameter lies, by stable name; those that cannot be found
            with certainty are left out.
        decay: Of the average, as its file or manifest says; None without one.
    """

    path: Path
    step: int
    epoch: int
    epoch_step: int
    manifest: Manifest | None
    config: dict[str, Any] | None
    sets: Mapping[WeightSet, TensorSet]
    named: bool
    places: Mapping[str, Place]
    decay: float | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def model_type(self) -> str:
        """OneTrainer's name of the model's type, such as ``STABLE_CASCADE_1``; empty where nothing says."""
        return self._said("model_type")

    @property
    def training_method(self) -> str:
        """``FINE_TUNE``, ``LORA``, ``EMBEDDING`` and so on; empty where nothing says."""
        return self._said("training_method")

    def close(self) -> None:
        """Let go of the file of the average; the sets are empty then. Tensors that were read stay."""
        for tensors in self.sets.values():
            tensors.close()

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _said(self, key: str) -> str:
        configured = (self.config or {}).get(key)
        return configured if isinstance(configured, str) else str(getattr(self.manifest, key, ""))


def open_backup(path: str | os.PathLike[str], *, names: Sequence[str] | None = None) -> Backup:
    """Open a backup, made with the plugin or without, or the folder of a parked average.

    Headers are read, no tensors.

    Args:
        path: The folder.
        names: Stable names of the trained parameters in OneTrainer's order, for a backup that does not say them
            itself; see `onetrainer_ema_select.host.export.trained_names`.

    Raises:
        BackupError: If it is not there, is no backup, or is not whole.
        ManifestError: If its manifest cannot be read, or does not fit what lies there.
        NamesError: If there are more or fewer ``names`` than weights in the average, or one is there twice.
        StoreError: If a file is damaged.
    """
    folder = Path(path)
    refuse_other(folder)
    if names is not None and len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise NamesError(
            f"The name {twice!r} is given twice for the weights of {folder}. Give each weight its own name.",
            path=folder,
            key=twice,
        )
    if is_parked(folder):
        return _open_parked(folder, names)
    refuse_incomplete(folder)
    manifest = read_manifest(folder)
    progress = read_progress(folder)
    averages, decay = _averages(folder, manifest)
    known = known_names(folder, manifest, names, None if averages is None else len(averages))
    if manifest is not None and averages is not None:
        check_shapes(folder, manifest, averages)
    trained: dict[str, Shape] = {}
    if manifest is not None:
        trained = {record.name: tuple(record.shape) for record in manifest.parameters}
    elif known is not None:
        trained = {name: averages[i].shape if averages is not None else None for i, name in enumerate(known)}
    live, places = _live(folder, trained)
    sets = {WeightSet.NON_EMA: TensorSet(live)}
    if averages is not None:
        called = known if known is not None else [f"{POSITION}.{position}" for position in range(len(averages))]
        sets[WeightSet.EMA] = TensorSet(dict(zip(called, averages, strict=True)))
    return Backup(
        path=folder,
        step=progress["global_step"],
        epoch=progress["epoch"],
        epoch_step=progress.get("epoch_step", 0),
        manifest=manifest,
        config=read_config(folder),
        sets=sets,
        named=known is not None,
        places=places,
        decay=decay,
    )


def _averages(folder: Path, manifest: Manifest | None) -> tuple[list[MappedTensor] | None, float | None]:
    file = folder / (manifest.ema.file if manifest is not None and manifest.ema is not None else EMA_FILE)
    if not file.is_file():
        return None, None
    averages, decay = read_averages(file)
    return averages, decay if manifest is None or manifest.ema is None else manifest.ema.decay


def _live(folder: Path, trained: Mapping[str, Shape]) -> tuple[dict[str, StoredTensor], dict[str, Place]]:
    """All tensors of the model files, and where the trained ones are."""
    components: dict[str, dict[str, StoredTensor]] = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in _NOT_COMPONENTS):
        found, _ = read_folder(part)
        if found:
            components[part.name] = found
        elif other := next((file for file in sorted(part.iterdir()) if file.suffix in _OTHER_WEIGHTS), None):
            raise BackupError(
                f"{other} holds weights in a format that is not read here. OneTrainer's backups have safetensors "
                "files: load and save the model there once, or give another backup.",
                path=other,
            )
    lora = folder / "lora" / "lora.safetensors"
    adapters = read_safetensors(lora)[0] if lora.is_file() else {}
    embeddings = {
        file.stem: read_safetensors(file)[0] for file in sorted((folder / "embeddings").glob("*.safetensors"))
    }
    places = find_places(trained, components=components, adapters=adapters, embeddings=embeddings)
    groups = [
        *components.items(),
        ("lora", adapters),
        *((f"embeddings.{uuid}", tensors) for uuid, tensors in embeddings.items()),
    ]
    entries = [(group, entry) for group, tensors in groups for entry in tensors.values()]
    return name_all(entries, places, trained), places


def _open_parked(folder: Path, names: Sequence[str] | None) -> Backup:
    manifest = read_manifest(folder)
    problem = parked_problem(folder)
    if problem or manifest is None or manifest.ema is None:
        raise BackupError(
            f"The parked EMA {folder} cannot be opened: {problem}. Bring back a whole copy, or give a backup.",
            path=folder,
        )
    entries, _ = read_safetensors(folder / manifest.ema.file)
    said = [record.name for record in manifest.parameters]
    if sorted(said) != sorted(entries):
        raise ManifestError(
            f"The manifest of {folder} names {len(said)} weights, {manifest.ema.file} holds {len(entries)}, and they "
            "are not the same. Bring back a whole copy, or give a backup.",
            path=folder,
        )
    named = not any(name.startswith(f"{POSITION}.") for name in said)
    called: Sequence[str] = said
    if not named and names is not None:
        if len(names) != len(said):
            raise NamesError(
                f"{len(names)} names were given for the parked EMA {folder}, which holds {len(said)} tensors. Give "
                "the names of the weights that its run trained, in OneTrainer's order.",
                path=folder,
                expected=str(len(said)),
                found=str(len(names)),
            )
        called, named = names, True
    average = TensorSet({new: entries[old] for new, old in zip(called, said, strict=True)})
    return Backup(
        path=folder,
        step=manifest.step,
        epoch=manifest.epoch,
        epoch_step=manifest.epoch_step,
        manifest=manifest,
        config=read_config(folder),
        sets={WeightSet.EMA: average},
        named=named,
        places={},
        decay=manifest.ema.decay,
    )
