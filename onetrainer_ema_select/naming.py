"""Names of the two sets on disk: which file or folder belongs to which set."""

from __future__ import annotations

import os
from typing import Final, Literal

from onetrainer_ema_select.choices import WeightSet

Suffix = Literal["ema", "non-ema"]

SUFFIXES: Final[dict[WeightSet, Suffix]] = {WeightSet.EMA: "ema", WeightSet.NON_EMA: "non-ema"}
MODEL_ENDINGS: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft")


def set_suffix(weight_set: WeightSet) -> Suffix:
    """Return how a set is called in file names and on the command line."""
    return SUFFIXES[weight_set]


def paired_name(destination: str, suffix: Suffix) -> str:
    r"""Return the name beside ``destination`` for the set that does not get OneTrainer's own name.

    The suffix goes before a trailing ``.safetensors``, ``.ckpt`` and the like, whether that is a file or a
    folder (OneTrainer gives folders such names too), else at the end. The folder it lies in, separators of
    either kind, also trailing ones, and everything else stay as they are.

    Args:
        destination: A file's or folder's name or path, which need not exist.
        suffix: As from `set_suffix`.
    """
    stem, ending, separators = split(destination)
    if not ending and (not stem or stem.endswith(":")):
        # A root has no name of its own: what is put right behind `C:` would be a stream of the drive.
        return f"{stem}{separators}-{suffix}"
    return f"{stem}-{suffix}{ending}{separators}"


def shortened(name: str, *, limit: int = 160) -> str:
    """Return a name that fits where the given one is too long for a file system; its two ends stay.

    Args:
        name: A file's or folder's name, without what it lies in.
        limit: Bytes that it may have. Most file systems allow 255; what lies beside it is longer.
    """
    stem, ending, _ = split(name)
    if len(os.fsencode(name)) <= limit:
        return name
    _, weight_set = is_paired_name(name)
    suffix = "" if weight_set is None else f"-{SUFFIXES[weight_set]}"
    room = limit - len(os.fsencode(suffix + ending))
    kept = os.fsencode(stem)[:room].decode("utf-8", errors="ignore")
    return f"{kept}{suffix}{ending}"


def is_paired_name(name: str) -> tuple[str, WeightSet | None]:
    """Tell whether a name has a set's suffix, and what it is without.

    This goes by the name alone: a user may have named a model so. ``x-non-ema`` is always taken for the
    non-EMA set of ``x``, never for the EMA set of ``x-non``.

    Returns:
        The name that `paired_name` made it from, and the set; the name as it is and None without a suffix.
    """
    stem, ending, separators = split(name)
    # The longer one first, because the shorter one is its end.
    for weight_set in (WeightSet.NON_EMA, WeightSet.EMA):
        suffix = f"-{SUFFIXES[weight_set]}"
        if stem.endswith(suffix):
            return f"{stem.removesuffix(suffix)}{ending}{separators}", weight_set
    return name, None


def companions(name: str) -> tuple[str, str]:
    """Return what one of OneTrainer's savers may write beside a destination.

    Exactly as the host forms them: a model's ``<stem>.yaml`` (SD and SDXL as a single file) and a folder
    ``<name>_embeddings`` (additional embeddings). The stem is the name without *any* last ending, so that
    ``model.v1`` and ``model.v1-non-ema`` share ``model.yaml``; it is the same for both sets.
    """
    return f"{os.path.splitext(name)[0]}.yaml", f"{name}_embeddings"  # noqa: PTH122 - as the host does it


def split(name: str) -> tuple[str, str, str]:
    """Split a name or path into everything before a model's ending, that ending, and trailing separators."""
    body = name.rstrip("/\\")
    separators = name[len(body) :]
    for ending in MODEL_ENDINGS:
        # Compared at its own length: a whole name may get longer when it is put into lower case.
        if body[-len(ending) :].lower() == ending:
            return body[: -len(ending)], body[-len(ending) :], separators
    return body, "", separators
