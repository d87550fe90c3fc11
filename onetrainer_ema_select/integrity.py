"""Is a backup whole? Answered from file headers and sizes, without loading a tensor."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from onetrainer_ema_select.errors import ManifestError
from onetrainer_ema_select.manifest import FOLDER, read_manifest

OPTIMIZER_FILE = Path("optimizer", "optimizer.pt")
EMA_FILE = Path("ema", "ema.pt")
META_FILE = "meta.json"

#: OneTrainer's backups are named by the time they were written at; anything else in the folder is none.
BACKUP_NAME = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}")

#: The limit of the safetensors format for its header.
MAX_HEADER_BYTES = 100_000_000


def read_safetensors_header(path: Path) -> dict[str, object]:
    """The JSON header of a safetensors file: tensors by name, and `__metadata__`.

    Raises:
        ValueError: The file is not safetensors, or its size is not the one its header states. The message
            says which, as the end of a sentence that begins with the file's name.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"is cut short ({size} bytes)")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("is not a safetensors file")
        if 8 + length > size:
            raise ValueError(f"is cut short inside its header ({size} of at least {8 + length} bytes)")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError("has an unreadable header") from error
    if size != expected:
        state = "is cut short" if size < expected else "is longer than its header says"
        raise ValueError(f"{state} ({size} of {expected} bytes)")
    return dict(header)


def safetensors_problem(path: Path) -> str:
    """What is wrong with a safetensors file, as the end of a sentence; empty where nothing is."""
    try:
        read_safetensors_header(path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""


def archive_problem(path: Path) -> str:
    """What is wrong with a file of `torch.save`, from the table at its end; empty where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except Exception:  # noqa: BLE001 - damaged tables make zipfile raise errors of many kinds
        # the table is written last, so a file without one was cut short (or never was an archive)
        return f"is cut short or not a torch file ({path.stat().st_size} bytes)"
    return "" if names else "is empty"


def read_progress(backup: Path) -> dict[str, int]:
    """OneTrainer's own count from a backup's `meta.json`: `epoch`, `epoch_step`, `global_step` and so on.

    Raises:
        ValueError: The file is not the JSON that OneTrainer writes.
        OSError: It is missing or cannot be read.
    """
    try:
        progress = json.loads((backup / META_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(progress, dict) or not isinstance(progress.get("train_progress"), dict):
        raise ValueError("no train_progress in it")
    counts = {name: value for name, value in progress["train_progress"].items() if isinstance(value, int)}
    if "global_step" not in counts or "epoch" not in counts:
        raise ValueError("no step or epoch in it")
    return counts


def backup_problem(backup: Path, *, optimizer: bool = True) -> str:
    """Why OneTrainer could not resume from this folder, in one phrase; empty where it could.

    Reads headers, sizes and tables of contents only, so it takes the same time for 1 MB and for 100 GB.
    `meta.json`, which OneTrainer writes last, comes first: where it is missing, the backup was cut short, and
    that is what the user should read.

    Args:
        backup: The folder.
        optimizer: Whether the optimizer's state counts: only who goes on training needs it.
    """
    try:
        read_progress(backup)
    except FileNotFoundError:
        return f"{META_FILE}, which is written last, is missing: it was cut short"
    except (ValueError, OSError) as error:
        return f"{META_FILE} cannot be read ({error})"
    if not has_model(backup):
        return "there is no model in it"
    for file in sorted(backup.rglob("*.safetensors")):
        if file.is_relative_to(backup / FOLDER):  # the model, its optimizer and EMA are whole without it
            continue
        if problem := safetensors_problem(file):
            return f"{file.relative_to(backup).as_posix()} {problem}"
    for index in sorted(backup.rglob("*.safetensors.index.json")):
        if problem := shard_problem(index):
            return f"{index.relative_to(backup).as_posix()} {problem}"
    if optimizer and not (backup / OPTIMIZER_FILE).is_file():
        return f"{OPTIMIZER_FILE.as_posix()} is missing"
    for archive in (OPTIMIZER_FILE, EMA_FILE) if optimizer else (EMA_FILE,):
        if (backup / archive).is_file() and (problem := archive_problem(backup / archive)):
            return f"{archive.as_posix()} {problem}"
    return missing_average(backup)


def missing_average(backup: Path) -> str:
    """What is wrong with the average that the plugin's manifest promises; empty where nothing is."""
    try:
        manifest = read_manifest(backup)
    except ManifestError:
        return ""  # OneTrainer can do without; who needs the manifest reads it again and reports
    if manifest is None or manifest.ema is None or (backup / manifest.ema.file).is_file():
        return ""
    return f"{manifest.ema.file}, which its manifest names, is missing"


def shard_problem(index: Path) -> str:
    """What is wrong with a sharded model, from its index file; empty where nothing is."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        return "cannot be read"
    missing = sorted(shard for shard in shards if not (index.parent / str(shard)).is_file())
    return f"names {missing[0]}, which is missing" if missing else ""


def has_model(backup: Path) -> bool:
    """Whether the part that holds the trained weights is there: fine-tune, LoRA or embedding."""
    if (backup / "model_index.json").is_file() or (backup / "lora" / "lora.safetensors").is_file():
        return True
    if any((backup / "embeddings").glob("*.safetensors")):
        return True
    # a fine-tune without an index: any component in the form diffusers and transformers write
    return any(
        (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
        for folder in backup.iterdir()
        if folder.is_dir()
    )
