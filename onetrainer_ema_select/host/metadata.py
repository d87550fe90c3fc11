"""Marks that tell two files apart: in a model's own metadata, or in one small file of a folder."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules.util.modelSpec.ModelSpec import ModelSpec

from onetrainer_ema_select import store

FOLDER_FILE = "ema_select.json"


class Marked:
    """While entered, the headers that OneTrainer writes carry the marks and a title of their own.

    OneTrainer copies ``model.model_spec`` for every header and asks the copy for its dictionary. So a
    subclass answers with the marks added; the hash, which is computed elsewhere, stays right.
    """

    def __init__(
        self,
        model: Any,
        marks: dict[str, str],
        *,
        title: str,
        equal: Callable[[str | None], tuple[dict[str, str], str] | None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is changed before it is entered.

        Args:
            model: OneTrainer's model; its ``model_spec`` is exchanged for the time.
            marks: Keys and values to add.
            title: Replaces ``modelspec.title``, which otherwise is the base model's in every file.
            equal: Asked for each header by its tensors' hash; other marks and another title where these are to
                be used instead.
        """
        self._model = model
        self._original = model.model_spec
        base = ModelSpec() if self._original is None else self._original
        base_class = type(base)

        def to_dict(spec: Any) -> dict[str, Any]:
            own_marks, spec.title = equal(spec.hash_sha256) or (marks, title)
            return {**base_class.to_dict(spec), **own_marks}

        self._spec = copy.copy(base)
        self._spec.__class__ = type(base_class.__name__, (base_class,), {"to_dict": to_dict})
        self._spec.title = title

    def __enter__(self) -> None:
        """Exchange the model's specification."""
        self._model.model_spec = self._spec

    def __exit__(self, *_: object) -> None:
        """Put the model's own back; see :meth:`restore`."""
        self.restore()

    def restore(self) -> None:
        """Put the model's own back. May be called again after an interrupt cut it short."""
        self._model.model_spec = self._original


def mark_files(path: Path, marks: dict[str, str]) -> None:
    """Mark what has no header of OneTrainer's: folders by a JSON file, embeddings in their own header.

    Args:
        path: The model that was written, still in private: a file or a folder.
        marks: Keys and values.

    Raises:
        OSError: If the file system refuses.
    """
    embeddings = path.with_name(f"{path.name}_embeddings")
    files = sorted(embeddings.glob("*.safetensors")) if embeddings.is_dir() else []
    if path.is_dir():
        store.write_json(path / FOLDER_FILE, marks)
    elif path.is_file():
        files.append(path)
    for file in files:
        with contextlib.suppress(ValueError):  # a format of another kind, which carries no such header
            if "ema_select.set" not in store.read_metadata(file):
                store.add_metadata(file, marks)
