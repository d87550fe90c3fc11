"""Parts of a model that are the same in both sets."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from onetrainer_ema_select import store


class EqualParts:
    """Knows the parts of a model that are the same in both sets, because they are not trained.

    A folder's part with a header of its own says of which set it is; one that is the same in both says so, with
    the same words in both folders, so that the two can be one file. Parts are known by the hash that OneTrainer
    puts into the header: those that both sets of an earlier save have had. For the first set that is a guess,
    which :meth:`wrong` takes back where the second set turns out not to have the part.
    """

    def __init__(self) -> None:
        """Know of none yet: the first save of a run is written in full."""
        self._equal: set[str] = set()
        self._first: set[str] = set()
        self._second: set[str] = set()

    def begin(self) -> None:
        """Forget which parts the last save has had."""
        self._first.clear()
        self._second.clear()

    def is_equal(self, tensor_hash: str | None, *, second: bool) -> bool:
        """Whether the other set has the same part, as far as is known; notes the part.

        Args:
            tensor_hash: As in the header, None where OneTrainer has not worked one out.
            second: Whether it is written as a part of the second set.
        """
        if not tensor_hash:
            return False
        if not second:
            self._first.add(tensor_hash)
            return tensor_hash in self._equal
        self._second.add(tensor_hash)
        if tensor_hash not in self._first:
            return False
        self._equal.add(tensor_hash)
        return True

    @property
    def guessed(self) -> bool:
        """Whether the first set of this save says of a part that the second has it too."""
        return bool(self._first & self._equal)

    def wrong(self) -> frozenset[str]:
        """The hashes for which that was not so, once the second set is written; they are not equal any more."""
        found = frozenset(self._first & self._equal) - self._second
        self._equal -= found
        return found


def correct_parts(folder: Path, hashes: Collection[str], *, marks: dict[str, str], title: str) -> None:
    """Have parts of a folder say that they are of one set, where they said that they are of both.

    Args:
        folder: The model that was written, still in private.
        hashes: The tensors' hashes of these parts, as in their headers.
        marks: What the other parts of the folder say.
        title: Their title.

    Raises:
        OSError: If the file system refuses.
    """
    for file in sorted(folder.rglob("*.safetensors")):
        with contextlib.suppress(ValueError):
            if store.read_metadata(file).get("modelspec.hash_sha256") in hashes:
                store.add_metadata(file, {**marks, "modelspec.title": title})
