"""Marks that tell two files apart: in a model's own metadata, or in one small file of a folder."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from modules.util.modelSpec.ModelSpec import ModelSpec

from onetrainer_ema_select import __version__, store
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.manifest import EmaRecord

FOLDER_FILE = "ema_select.json"
#: What ``ema_select.set`` says of an average that was made out of snapshots.
POST_HOC = "POST_HOC"

STOCHASTIC_MARK = {"ema_select.rounding": "STOCHASTIC"}
"""What is said of a file of 16 bits that was rounded at random; of others nothing is."""


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


def moment_marks(
    progress: Any, sets: Iterable[WeightSet | str], *, run: str = "", leg: str = "", milestones: Sequence[str] = ()
) -> dict[str, str]:
    """What is said of every model of a moment. ``ema_select.set`` names all of its sets; one alone replaces it.

    Args:
        progress: OneTrainer's count of steps and epochs.
        sets: The sets that are written of this moment.
        run: Identifies the run; empty where it is not known.
        leg: Of the run; empty for the first.
        milestones: That the model is saved for.
    """
    named = ", ".join(map(str, sets))
    marks = {
        "ema_select.set": named,
        "ema_select.sets": named,
        "ema_select.step": str(progress.global_step),
        "ema_select.epoch": str(progress.epoch),
        "ema_select.epoch_step": str(progress.epoch_step),
        "ema_select.version": __version__,
    }
    optional = {"run": run, "leg": leg, "milestone": ", ".join(milestones)}
    return marks | {f"ema_select.{key}": value for key, value in optional.items() if value}


def average_marks(average: EmaRecord) -> dict[str, str]:
    """What is said of an average: how it was made."""
    optional = {
        "half_life": average.half_life,
        "accumulation": average.accumulation,
        "images_per_step": average.images_per_step,
        "steps_per_epoch": average.steps_per_epoch,
    }
    return {
        "ema_select.decay": str(average.decay),
        "ema_select.updates": str(average.updates),
        "ema_select.update_step_interval": str(average.update_step_interval),
        "ema_select.precision": average.dtype,
    } | {f"ema_select.{key}": str(value) for key, value in optional.items() if value}


def mixture_marks(sigma_rel: float, fit_error: float) -> dict[str, str]:
    """What is said of a post-hoc average: its length, and how far its profile is off."""
    return {"ema_select.sigma_rel": f"{sigma_rel:g}", "ema_select.fit_error": f"{fit_error:.6f}"}


def title_of(path: Path, sets: str, progress: Any) -> str:
    """A title that tells a model from others of the same run."""
    return f"{path.stem} ({sets}, epoch {progress.epoch}, step {progress.global_step})"


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
