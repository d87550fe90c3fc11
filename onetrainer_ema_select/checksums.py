"""Checksums of a backup's files: written once, compared on request.

They are worked out after the backup is at its place, on a thread of their own, so that no training waits for
them. A backup without them, by plain OneTrainer or of a process that died first, is verified by what its files
carry themselves.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onetrainer_ema_select import store
from onetrainer_ema_select.integrity import META_FILE, backup_problem, read_safetensors_header
from onetrainer_ema_select.manifest import FOLDER, MANIFEST_NAME

FILE = Path(FOLDER, "checksums.json")
_CHUNK = 1 << 22
_MODEL_SUFFIXES = store.TENSOR_SUFFIXES | {".ckpt", ".pth"}
_MAX_BYTES = 16 * 1024 * 1024

Advance = Callable[[int], object]
"""Told how many bytes have been read since the last time."""


class FileSum(BaseModel):
    """Size and SHA-256 of a file, in hexadecimal digits."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    size: Annotated[int, Field(ge=0)]
    sha256: str


class Checksums(BaseModel):
    """The file in a backup; paths are relative to it, with forward slashes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    files: dict[str, FileSum]


@dataclass(frozen=True)
class Verdict:
    """What a deep look at a folder found.

    Attributes:
        problem: What is wrong, as a sentence without its end; empty where nothing is.
        checksums: Whether there were checksums to compare with.
        files: How many files were read.
    """

    problem: str
    checksums: bool
    files: int


class ChecksumWriter:
    """Writes the checksums of one backup after the other in the background."""

    def __init__(self, failed: Callable[[Path, Exception], None]) -> None:
        """Create a writer; its thread starts with the first backup.

        Args:
            failed: Told the folder and the error, on the writer's thread, where they could not be written.
        """
        self._failed = failed
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._begun: list[Future[None]] = []

    def start(self, folder: Path) -> None:
        """Begin with a backup that is at its place, after those that were begun before."""
        with contextlib.suppress(RuntimeError):  # no thread to be had; verifying works without
            self._pool = self._pool or ThreadPoolExecutor(max_workers=1, thread_name_prefix="ema_select")
            self._begun.append(self._pool.submit(self._write, folder))

    def stop(self) -> None:
        """Leave what has been begun without, within moments: the disk is needed, or a backup may be deleted."""
        self._stop.set()
        self.wait()
        self._stop.clear()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for what has been begun.

        Args:
            seconds: How long at most; None for as long as it takes.

        Returns:
            Whether it is done.
        """
        done, _ = concurrent.futures.wait(self._begun, timeout=seconds)
        self._begun = [future for future in self._begun if future not in done]
        return not self._begun

    def _write(self, folder: Path) -> None:
        try:
            write_checksums(folder, stopped=self._stop.is_set)
        except Exception as error:  # noqa: BLE001 - a thread's exception would be seen by nobody
            if folder.is_dir():
                self._failed(folder, error)


def write_checksums(folder: Path, *, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Work out and write the checksums of a backup.

    Args:
        folder: The backup.
        stopped: Asked every few megabytes; nothing is written once it says yes.

    Returns:
        Whether they were written.

    Raises:
        OSError: If a file cannot be read, or the checksums cannot be written.
    """
    files = {}
    for path in _checked_files(folder):
        digest = _sha256(path, stopped=stopped)
        if digest is None:
            return False
        files[path.relative_to(folder).as_posix()] = FileSum(size=path.stat().st_size, sha256=digest)
    if stopped():
        return False
    store.write_json(folder / FILE, Checksums(files=files).model_dump(mode="json"), parents=False)
    return True


def verify_backup(folder: Path, *, advance: Advance = lambda _: None) -> Verdict:
    """Read every file of a backup and compare it with its checksum.

    Where there are none, the sums inside ``.pt`` archives and the headers of safetensors files are what is left.
    """
    if problem := backup_problem(folder):
        return Verdict(problem, checksums=False, files=0)
    path = folder / FILE
    try:
        if not path.is_file():
            return _verify_without(folder, advance)
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        sums = Checksums.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "not valid" if isinstance(error, ValidationError) else str(error)
        return Verdict(f"{FILE.as_posix()} cannot be read ({reason})", checksums=False, files=0)
    for name, expected in sums.files.items():
        if Path(name).is_absolute() or ":" in name or "\\" in name or ".." in name.split("/"):
            return Verdict(f"{FILE.as_posix()} names {name!r}, which leads out of the backup", checksums=True, files=0)
        file = folder / name
        try:
            size = file.stat().st_size
            if size != expected.size:
                return Verdict(f"{name} has {size} of {expected.size} bytes", checksums=True, files=len(sums.files))
            if _sha256(file, advance=advance) != expected.sha256:
                return Verdict(f"{name} has another checksum than when it was written", True, len(sums.files))
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            return Verdict(f"{name} cannot be read ({reason})", checksums=True, files=len(sums.files))
    return Verdict("", checksums=True, files=len(sums.files))


def verify_model(path: Path, *, advance: Advance = lambda _: None) -> Verdict:
    """Compare the tensors of a saved model file with the hash that OneTrainer has put into its header.

    Files without one are read from beginning to end, and their headers or archives' own sums looked at.
    """
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in found if file.suffix in _MODEL_SUFFIXES]
    compared = 0
    for file in files:
        try:
            if file.suffix == ".safetensors":
                header = read_safetensors_header(file)
                metadata = header.get("__metadata__")
                noted = str(metadata.get("modelspec.hash_sha256", "")) if isinstance(metadata, dict) else ""
                if noted.startswith("0x"):
                    compared += 1
                    if _tensor_hash(file, header, advance) != noted.removeprefix("0x"):
                        problem = f"{file.name}: its tensors have another checksum than its header says"
                        return Verdict(problem, checksums=True, files=len(files))
                    continue
            elif zipfile.is_zipfile(file) and (broken := _broken_member(file)):
                return Verdict(f"{file.name} is damaged ({broken})", checksums=False, files=len(files))
            _sha256(file, advance=advance)
        except OSError as error:
            return Verdict(f"{file.name} cannot be read ({error.strerror or error})", False, len(files))
        except Exception as error:  # noqa: BLE001 - damaged archives make zipfile raise errors of many kinds
            return Verdict(f"{file.name} {error}", checksums=False, files=len(files))
    return Verdict("", checksums=bool(files) and compared == len(files), files=len(files))


def _broken_member(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _checked_files(folder: Path) -> Iterator[Path]:
    """Tensors, and the two small files by which a backup is understood; OneTrainer adds its config later."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix in store.TENSOR_SUFFIXES or path.name in (META_FILE, MANIFEST_NAME)):
            yield path


def _sha256(
    path: Path, *, stopped: Callable[[], bool] = lambda: False, advance: Advance = lambda _: None
) -> str | None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
            if stopped():
                return None
    return digest.hexdigest()


def _tensor_hash(path: Path, header: dict[str, object], advance: Advance) -> str:
    """SHA-256 of the tensors' bytes in the order of their names, as OneTrainer computes it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        for name in sorted(key for key in header if key != "__metadata__"):
            entry = header[name]
            if not isinstance(entry, dict):
                raise ValueError("has an unreadable header")
            first, last = entry["data_offsets"]
            if not 0 <= first <= last <= path.stat().st_size - begin:
                raise ValueError(f"has an unreadable header: {name!r} lies outside the file")
            file.seek(begin + first)
            left = last - first
            while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                advance(len(chunk))
                left -= len(chunk)
    return digest.hexdigest()


def _verify_without(folder: Path, advance: Advance) -> Verdict:
    files = list(_checked_files(folder))
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            if path.suffix == ".pt":
                broken = _broken_member(path)
                if broken is not None:
                    return Verdict(f"{name} is damaged ({broken})", checksums=False, files=len(files))
            else:
                path.read_bytes() if path.suffix == ".json" else _sha256(path)
            advance(path.stat().st_size)
        except Exception as error:  # noqa: BLE001 - damaged archives make zipfile raise errors of many kinds
            return Verdict(f"{name} cannot be read ({error})", checksums=False, files=len(files))
    return Verdict("", checksums=False, files=len(files))


__all__ = [
    "FILE",
    "ChecksumWriter",
    "Checksums",
    "FileSum",
    "Verdict",
    "verify_backup",
    "verify_model",
    "write_checksums",
]
