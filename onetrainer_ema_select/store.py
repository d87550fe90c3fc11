"""Files that are whole or absent: written in private, flushed, then moved to where they belong."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from onetrainer_ema_select.integrity import MAX_HEADER_BYTES
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.naming import split

STAGING = "staging"
SIBLING_PREFIX = ".ema_select-staging-"

# Moved after everything else, because their presence says that the rest is there.
_LAST_NAMES = frozenset({FOLDER, "manifest.json", "ema_select.json", "meta.json"})

_CHUNK = 1 << 20

_WINDOWS = os.name == "nt"

# Bytes. What a failed write has left of the last blocks.
_NOTHING_LEFT = 1 << 20

# Characters of a path on Windows (MAX_PATH, without the end), and what the longest name in a backup takes of them:
# `text_encoder_2/diffusion_pytorch_model-00001-of-00002.safetensors`.
_LONGEST_PATH = 259
_INSIDE = 66

# How torch and safetensors, which have errors of their own, say that a file cannot be made in a place. Windows' own
# words are in the user's language; its number, 2, 3 or 206, is not.
_PATH_ERROR = re.compile(
    r"open file failed|cannot be opened|does not exist|no such file|not ?found|cannot find|too long"
    r"|(?:errno|os error|code:|winerror) ?(?:2|3|206)\b",
    re.IGNORECASE,
)

# How often two threads may meet in the same instant before it is taken for something else.
_TRIES = 100

# A virus scanner or a picture viewer lets go of a file soon; a program that shows the model does not.
_RETRY_SECONDS = (0.1, 0.4, 1.5)

#: What OneTrainer, diffusers and torch write as a whole; text is small, and edited by hand.
TENSOR_SUFFIXES = frozenset({".safetensors", ".pt", ".bin"})

# Linux's request to share a file's blocks until one of the two is written into (linux/fs.h).
_FICLONE = 0x40049409


@dataclass(frozen=True)
class Replaced:
    """A file or folder that could not take its place, because what is there cannot be replaced.

    Attributes:
        wanted: The place.
        actual: Where it lies instead, beside it.
        reason: What the file system said.
    """

    wanted: Path
    actual: Path
    reason: str


class Staging:
    """A private folder on the file system of a destination, in which a saver writes under the final names.

    What a saver writes *beside* its destination (``<stem>.yaml``, ``<destination>_embeddings``) ends up
    beside it here as well, and is published with it.
    """

    def __init__(self, destination: Path, *, workspace: Path) -> None:
        """Make the private folder.

        Args:
            destination: Where the file or folder shall be in the end.
            workspace: The run's workspace. What belongs into it is staged in its ``ema_select/staging``, so
                that nothing unfinished ever stands in its ``backup`` or ``save``; other destinations are
                staged in a hidden folder beside them.

        Raises:
            OSError: If the folder cannot be made.
        """
        self.destination = destination
        self._prefix = _sibling_prefix(workspace)
        self._root = workspace / FOLDER / STAGING
        if _is_inside(destination, workspace):
            self.folder = _private_folder(self._root)
        else:
            destination.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=destination.parent))

    @property
    def path(self) -> Path:
        """Where to write instead of the destination: same base name, private folder."""
        return self.folder / self.destination.name

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Where to write, with a full disk and too long a path called by their names.

        torch says of a full disk no more than that writing has failed, and Windows of a path that is too long that
        there is no such file.

        Raises:
            OSError: In the place of another error, where no space is left or the path is too long.
        """
        try:
            yield self.path
        except Exception as error:
            if _is_of_a_path(error) and (problem := _too_long(self.path, self.destination)):
                raise problem from error
            if isinstance(error, OSError):
                raise
            try:
                free = shutil.disk_usage(self.folder).free
            except OSError:
                raise error from None
            if free < _NOTHING_LEFT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.destination)) from error
            raise

    def share(self, twin: Path, *, rewritten: bool) -> int:
        """Have tensor files that are equal to a twin's take no space of their own, where the file system can.

        Args:
            twin: A folder of the same structure that is at its place already.
            rewritten: Whether something may write into the files of either later on. Then only copies on write
                are made (btrfs, XFS); hard links would carry the change over to the other.

        Returns:
            Bytes that are not taken twice any more.

        Raises:
            OSError: If a file cannot be read.
        """
        saved = 0
        for file in sorted(self.path.rglob("*")):
            other = twin / file.relative_to(self.path)
            if file.suffix not in TENSOR_SUFFIXES or not file.is_file() or not other.is_file():
                continue
            if not _same_content(file, other):
                continue
            size = file.stat().st_size
            clone = file.with_name(f".{file.name}.shared")
            try:
                if rewritten:
                    _clone(other, clone)
                else:
                    os.link(other, clone)
                clone.replace(file)
            except OSError:
                clone.unlink(missing_ok=True)
                return saved  # this file system cannot: what was written stays
            saved += size
        return saved

    def publish(self) -> tuple[Replaced, ...]:
        """Flush every file once, then move all children out.

        A destination that does not exist appears in one step. An existing folder has its files replaced one
        by one, and files in it that are not ours stay.

        Returns:
            What lies beside its place, because the file there is held open or is of another kind.

        Raises:
            OSError: If nothing was written, or the file system refuses; what had been moved by then stays.
        """
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                flush(file)
        parent = self.destination.parent
        parent.mkdir(parents=True, exist_ok=True)
        # The destination itself comes last: whoever sees it also sees what belongs beside it.
        children = sorted(self.folder.iterdir(), key=lambda child: child.name == self.destination.name)
        if not children:
            raise FileNotFoundError(errno.ENOENT, "Nothing was written for", str(self.destination))
        beside: list[Replaced] = []
        for child in children:
            _move(child, parent / child.name, self._prefix, beside)
        flush_folder(parent)
        self.discard()
        return tuple(beside)

    def discard(self) -> None:
        """Remove the private folder and what is left in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent == self._root:
            try:
                self._root.rmdir()
            except OSError:
                return  # another staging is still in there


def clear_leftovers(workspace: Path, *destinations: Path) -> None:
    """Remove what an interrupted run of this workspace left unfinished, and nothing else."""
    shutil.rmtree(workspace / FOLDER / STAGING, ignore_errors=True)
    prefix = _sibling_prefix(workspace)
    # In the workspace's own folders there is one where they are links or mounts to another disk.
    folders = {folder for destination in destinations for folder in (destination.parent, destination)}
    if workspace.is_dir():
        folders.update(workspace.iterdir())
    for folder in folders:
        if folder.is_dir():
            for leftover in folder.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)
    # What `write_json` was about to put in its place: in the plugin's own folders only.
    for own in (FOLDER, f"backup/*/{FOLDER}", f"{FOLDER}/milestones/backup/*/{FOLDER}", f"{FOLDER}/parked/*"):
        for leftover in workspace.glob(f"{own}/.*.json.*.tmp"):
            leftover.unlink(missing_ok=True)


def clear_old_leftovers(workspace: Path, folder: Path, *, hours: float = 24) -> None:
    """Remove what was left unfinished in a folder that others may be writing into: only what is older."""
    limit = time.time() - hours * 3600
    for leftover in folder.glob(f"{_sibling_prefix(workspace)}*"):
        with contextlib.suppress(OSError):
            if max(path.stat().st_mtime for path in (leftover, *leftover.rglob("*"))) < limit:
                shutil.rmtree(leftover, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Have a file in a second place: the same file where the file system can, else a copy.

    For files that nobody writes into: through either name the other would change as well.

    Raises:
        OSError: If the file system refuses both.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)


def _same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same; the order of the keys in a safetensors header is not looked at."""
    if first.stat().st_size != second.stat().st_size:
        return False
    if first.suffix != ".safetensors":
        return filecmp.cmp(first, second, shallow=False)
    with first.open("rb") as one, second.open("rb") as other:
        try:
            if _read_header(one, first) != _read_header(other, second):
                return False
        except ValueError:
            return False
        while chunk := one.read(_CHUNK):
            if chunk != other.read(_CHUNK):
                return False
    return True


def _clone(source: Path, target: Path) -> None:
    """Make a copy on write.

    Raises:
        OSError: If the file system has none.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "No copies on write here", str(target))
    else:  # noqa: RET506 - so that types are checked on both systems
        import fcntl

        with source.open("rb") as original, target.open("wb") as copied:
            fcntl.ioctl(copied.fileno(), _FICLONE, original.fileno())


def write_json(path: Path, content: Any, *, parents: bool = True) -> None:
    """Replace a JSON file in one step.

    Args:
        path: The file.
        content: What `json` can write.
        parents: Whether to make the folder it lies in, where that is missing.

    Raises:
        OSError: If the file system refuses; the old file is then still there.
    """
    _write_text(path, lambda file: json.dump(content, file, indent=1, ensure_ascii=False), parents=parents)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, in UTF-8 and with the line ends that the text has; its folder is made.

    Raises:
        OSError: If the file system refuses; the old file is then still there.
    """
    _write_text(path, lambda file: file.write(text), parents=True, newline="")


def _write_text(path: Path, write: Callable[[TextIO], object], *, parents: bool, newline: str | None = None) -> None:
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("w", encoding="utf-8", newline=newline) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def add_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Add string metadata to the header of a safetensors file; the tensors are not decoded.

    Args:
        path: The file; replaced in one step.
        metadata: Keys to add or replace.

    Raises:
        OSError: If the file system refuses; the old file is then still there.
        ValueError: If the file is not a safetensors file.
    """
    temporary = _temporary(path)
    try:
        with path.open("rb") as source:
            header = _read_header(source, path)
            header["__metadata__"] = {**header.get("__metadata__", {}), **metadata}
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # the format wants the tensors aligned to 8 bytes
            with temporary.open("wb") as target:
                target.write(len(text).to_bytes(8, "little"))
                target.write(text)
                shutil.copyfileobj(source, target, _CHUNK)
        temporary.replace(path)  # after the source is closed: an open file cannot be replaced on Windows
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(path: Path) -> dict[str, str]:
    """The string metadata of a safetensors file, read from its header alone.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a safetensors file.
    """
    with path.open("rb") as source:
        header = _read_header(source, path)
    return {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}


def _read_header(source: BinaryIO, path: Path) -> dict[str, Any]:
    length = int.from_bytes(source.read(8), "little")
    if length > min(MAX_HEADER_BYTES, path.stat().st_size):
        raise ValueError(f"{path} is not a safetensors file: its header claims {length} bytes.")
    try:
        header = json.loads(source.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file: its header cannot be read.") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError(f"{path} is not a safetensors file: its header is no table of tensors.")
    return header


def flush(file: Path) -> None:
    """Have the operating system write a file to the disk.

    Raises:
        OSError: If it cannot, for instance because the disk is full.
    """
    descriptor = _open_for_flush(file)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_for_flush(file: Path) -> int:
    for pause in (*_RETRY_SECONDS, None):
        try:
            # Windows flushes only what is open for writing.
            return os.open(file, os.O_RDWR | getattr(os, "O_BINARY", 0))
        except PermissionError:
            if pause is None or not _WINDOWS:
                raise
            time.sleep(pause)
    raise AssertionError


def flush_folder(folder: Path) -> None:
    """Have a folder's entries written; a no-op where folders cannot be opened (Windows)."""
    if _WINDOWS:
        return
    # Some network and shared file systems refuse this for folders. What was moved is there all the same, and must
    # not count as lost because of it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private_folder(root: Path) -> Path:
    """A new folder in a root that another staging may be removing, being the last one in it, at this moment."""
    for _ in range(_TRIES):
        # The first where it vanished after it was made, the second where it did so while `mkdir` looked at it, the
        # third where it is on its way on Windows.
        with contextlib.suppress(FileNotFoundError, FileExistsError, PermissionError):
            root.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix="", dir=root))
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="", dir=root))


def _is_of_a_path(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, may be what Windows says of a path that is too long."""
    while error is not None:
        if isinstance(error, OSError):
            if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
                return True
        elif _PATH_ERROR.search(str(error)):
            return True
        error = error.__cause__
    return False


def _too_long(path: Path, destination: Path) -> OSError | None:
    """The error for a path that Windows cannot take, with what is written inside it; None where it is none."""
    length = len(str(path.absolute()))
    if not _WINDOWS or length + _INSIDE <= _LONGEST_PATH:
        return None
    return OSError(
        errno.ENAMETOOLONG,
        f"The path is too long for Windows: {length} characters while it is written, and up to {_INSIDE} more for the "
        f"files in it, where {_LONGEST_PATH} are allowed. Choose a shorter workspace_dir or output_model_destination, "
        "or enable long paths in Windows",
        str(destination),
    )


def _move(source: Path, target: Path, prefix: str, beside: list[Replaced]) -> None:
    if source.is_dir() and target.is_dir():
        for child in sorted(source.iterdir(), key=lambda path: (path.name in _LAST_NAMES, path.name)):
            _move(child, target / child.name, prefix, beside)
        return
    try:
        _replace(source, target, prefix)
    except OSError as error:
        if not os.path.lexists(target) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        actual = _free_name(target)
        try:
            _replace(source, actual, prefix)
        except OSError:
            raise error from None  # the second place says no more than the first
        beside.append(Replaced(target, actual, str(error)))


def _replace(source: Path, target: Path, prefix: str) -> None:
    for pause in (*_RETRY_SECONDS, None):
        try:
            source.replace(target)
            return
        except PermissionError:
            # On Windows also where there is nothing yet: what was just written is what a scanner has open.
            if pause is None or not (_WINDOWS or os.path.lexists(target)):
                raise
            time.sleep(pause)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_across(source, target, prefix=prefix)
            return


def _free_name(path: Path) -> Path:
    stem, ending, _ = split(path.name)
    for number in itertools.count(1):
        place = path.with_name(f"{stem}-new{'' if number == 1 else f'-{number}'}{ending}")
        if not os.path.lexists(place):
            return place
    raise AssertionError  # itertools.count has no end


def _move_across(source: Path, target: Path, *, prefix: str) -> None:
    """Move to another disk in one visible step: users put links or mounts in the place of `backup` or `save`."""
    private = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        copied = private / source.name
        if source.is_dir():
            shutil.copytree(source, copied)
        else:
            shutil.copy2(source, copied)
        for file in (copied, *copied.rglob("*")):
            if file.is_file():
                flush(file)
        copied.replace(target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # would be taken for the first one again
            raise OSError(errno.EIO, "Cannot be moved there", str(target)) from error
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_inside(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def _sibling_prefix(workspace: Path) -> str:
    # Named after the workspace: clearing up must not touch what another run is writing beside us.
    return SIBLING_PREFIX + hashlib.sha256(str(workspace.absolute()).encode()).hexdigest()[:8] + "-"
