"""What a backup's averages are called: their file is a list without names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onetrainer_ema_select.errors import ManifestError, NamesError
from onetrainer_ema_select.manifest import FOLDER, Manifest
from onetrainer_ema_select.tensor_set import MappedTensor


def known_names(
    folder: Path, manifest: Manifest | None, names: Sequence[str] | None, count: int | None
) -> list[str] | None:
    """The names of a backup's averages in their order, from who knows them.

    Args:
        folder: The backup, for messages.
        manifest: What the plugin noted; it comes first.
        names: What the caller knows.
        count: How many averages there are; None for a backup without.

    Returns:
        None where nobody knows them.

    Raises:
        ManifestError: If the manifest names a weight twice, or not as many as there are.
        NamesError: If there are more or fewer ``names``.
    """
    if manifest is not None:
        said = [record.name for record in manifest.parameters]
        if len(set(said)) != len(said):
            raise ManifestError(f"The manifest of {folder} names a weight twice. Give another backup.", path=folder)
        if count not in (None, len(said)):
            raise ManifestError(
                f"The manifest of {folder} names {len(said)} weights, but its average holds {count} tensors: one of "
                "the two is not of this backup. Give another backup; or, to treat it as one that was made without the "
                f"plugin, delete {folder / FOLDER}.",
                path=folder,
                expected=str(len(said)),
                found=str(count),
            )
        return said
    if names is not None and count not in (None, len(names)):
        raise NamesError(
            f"{len(names)} names were given for the average in {folder}, which holds {count} tensors. Give the names "
            "of the weights that this run trained, in OneTrainer's order; with another layer filter or training "
            "method they are others.",
            path=folder,
            expected=str(count),
            found=str(len(names)),
        )
    return None if names is None else list(names)


def check_shapes(folder: Path, manifest: Manifest, averages: Sequence[MappedTensor]) -> None:
    """Compare the averages' shapes with those that the manifest gives them, position by position.

    Raises:
        ManifestError: Naming the first that differs.
    """
    for record, average in zip(manifest.parameters, averages, strict=True):
        if tuple(record.shape) != average.shape:
            raise ManifestError(
                f"The manifest of {folder} gives {record.name} the shape {tuple(record.shape)}, its average has "
                f"{average.shape} there: one of the two is not of this backup. Give another backup; or, to treat it as "
                f"one that was made without the plugin, delete {folder / FOLDER}.",
                path=folder,
                key=record.name,
                expected=str(tuple(record.shape)),
                found=str(average.shape),
            )
