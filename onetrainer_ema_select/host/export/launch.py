"""Starts the process with OneTrainer, listens to it, and turns what it says into a result or an error."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from onetrainer_ema_select import errors
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import EmaSelectError, ExportError
from onetrainer_ema_select.host.export import worker
from onetrainer_ema_select.host.export.messages import Event, ExportOrder, ExportResult, Progress
from onetrainer_ema_select.host.locate import find_onetrainer, host_python
from onetrainer_ema_select.recognise import is_parked, refuse_incomplete, refuse_other
from onetrainer_ema_select.workspace import BACKUP_FOLDER, MILESTONE_FOLDER

# For glibc: what is freed goes back to the system at once, also where it was less than a few MiB.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}

Which = WeightSet | Literal["ema", "non-ema", "both"]


def export(
    backup: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    sets: Which = WeightSet.EMA,
    format: str = "",  # noqa: A002 - as the option of the command line
    dtype: str = "",
    rounding: str = "",
    base_model: str = "",
    config: str | os.PathLike[str] | None = None,
    config_values: Sequence[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
    onetrainer: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> ExportResult:
    """Make a model out of a backup, as OneTrainer would have saved it at that moment.

    OneTrainer runs in a process of its own, on the CPU. Every written tensor is read back and compared. The files
    appear when they are whole; with both sets, when both are.

    Args:
        backup: A OneTrainer backup, made with the plugin or without.
        output: A file, or a folder where the format is one. An existing folder takes single files under the
            backup's name. With both sets, the one that the run calls its primary gets this name, the other the
            name with ``-ema`` or ``-non-ema``.
        sets: ``ema``, ``non-ema`` or ``both``.
        format: One of OneTrainer's output formats, such as ``DIFFUSERS``; empty for the run's.
        dtype: ``FLOAT_32``, ``FLOAT_16``, ``BFLOAT_16``, or ``NONE`` for the weights' own; empty for the run's.
        rounding: At 16 bits, ``nearest`` or ``stochastic``; empty for the run's ``save_rounding``.
        base_model: Where a LoRA's or an embedding's base model is now, a path or a name on Hugging Face.
        config: The run's config file, where the backup has lost its own.
        config_values: More of the config as ``KEY=VALUE``, for instance ``decoder.model_name=/models/decoder``.
        overwrite: Whether what is there already may be replaced.
        dry_run: Check everything, and write nothing.
        onetrainer: OneTrainer's folder; found as on the command line where it is not given.
        progress: Told what is being done, how many bytes are done, and how many there will be (0: not known).

    Returns:
        What was written, or would be.

    Raises:
        EmaSelectError: It could not be done; the message says why and what to do. Nothing is left then.
    """
    folder_of_backup = Path(backup).expanduser().absolute()
    refuse_other(folder_of_backup)
    _refuse_parked(folder_of_backup)
    refuse_incomplete(folder_of_backup)
    folder = find_onetrainer(Path(onetrainer) if onetrainer is not None else None)
    order = ExportOrder(
        action="plan" if dry_run else "export",
        onetrainer=folder,
        backup=folder_of_backup,
        config=Path(config).expanduser().absolute() if config is not None else None,
        sets=str(sets),
        output=Path(output).expanduser().absolute(),
        format=format,
        dtype=dtype,
        rounding=rounding,
        base_model=absolute_base(base_model),
        config_values=tuple(config_values),
        overwrite=overwrite,
    )
    return carry_out(order, progress)


def carry_out(order: ExportOrder, progress: Progress) -> ExportResult:
    """Have OneTrainer write what is asked for, or plan it.

    Raises:
        EmaSelectError: It could not be done. Nothing is left then.
    """
    if order.config is not None and not order.config.is_file():
        raise ExportError(f"There is no config file {order.config}. Give an existing one with --config.")
    event = _last_event(order, "result", progress)
    if event.result is None:
        raise ExportError("OneTrainer's process gave no result. Please report this.")
    return event.result


def _refuse_parked(folder: Path) -> None:
    """Say of a parked average where the model is that belongs to it.

    Raises:
        ExportError: It is one.
    """
    if not is_parked(folder):
        return
    workspace, name = folder.parents[2], folder.name.removesuffix("-ema")
    places = [workspace / BACKUP_FOLDER / name, workspace / MILESTONE_FOLDER / name]
    backup = next((place for place in places if place.is_dir()), None)
    there = (
        f"The backup that it was taken from is there: export that one, {backup}"
        if backup is not None
        else f"Export the backup that it was taken from, {name}, if you still have it; or take it up in a run: "
        "--config-value ema=CPU."
    )
    raise ExportError(f"{folder} is a parked EMA: averages without the rest of a model. {there}", path=folder)


def trained_names(
    backup: str | os.PathLike[str],
    *,
    onetrainer: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> tuple[str, ...]:
    """What OneTrainer calls the weights that a backup's run trains, in the order of its ``ema.pt``.

    A backup made without the plugin does not say. This loads its model.

    Raises:
        EmaSelectError: OneTrainer could not load it.
    """
    folder = find_onetrainer(Path(onetrainer) if onetrainer is not None else None)
    order = ExportOrder(action="names", onetrainer=folder, backup=Path(backup).expanduser().absolute())
    return _last_event(order, "names", progress).names


def absolute_base(base_model: str) -> str:
    """A local base model as an absolute path: OneTrainer runs in another folder."""
    path = Path(base_model).expanduser()
    return str(path.absolute()) if base_model and path.exists() else base_model


def _last_event(order: ExportOrder, kind: str, progress: Progress) -> Event:
    """Run the process and return its event of a kind.

    Raises:
        EmaSelectError: It told of an error, or died.
    """
    with _private_folder() as folder:
        file, log = folder / "order.json", folder / "onetrainer.log"
        file.write_text(order.model_dump_json(), encoding="utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(python_of(order.onetrainer)), "-u", str(Path(worker.__file__).absolute()), str(file)],
                cwd=order.onetrainer,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, "PYTHONIOENCODING": "utf-8", **_MEMORY},
            )
            staging: list[Path] = []
            try:
                found = _listen(process, kind, progress, staging.append)
            except BaseException:
                process.kill()
                raise
            finally:
                process.wait()
                for each in staging:
                    shutil.rmtree(each, ignore_errors=True)
        if found is None:
            raise ExportError(_died(process.returncode, log))
        if found.kind == "error":
            raise _as_error(found, log)
        return found


def _listen(
    process: subprocess.Popen[bytes], kind: str, progress: Progress, staged: Callable[[Path], None]
) -> Event | None:
    found = None
    for line in process.stdout or ():
        try:
            event = Event.model_validate_json(line)
        except ValueError:
            continue  # what a library has printed past Python
        if event.kind == "progress":
            progress(event.text, event.done, event.total)
        elif event.kind == "staging":
            staged(Path(event.text))
        elif event.kind in (kind, "error"):
            found = event
    return found


def _as_error(event: Event, log: Path) -> EmaSelectError:
    kind = getattr(errors, event.error, None) if event.error else None
    if isinstance(kind, type) and issubclass(kind, EmaSelectError):
        text = f"{event.text} What OneTrainer printed is in {_kept(log)}." if event.from_host else event.text
        return ExportError(text) if kind in (errors.SettingsError, errors.HostMismatchError) else kind(text)
    return ExportError(
        f"OneTrainer's process failed: {event.text}. What it printed is in {_kept(log)}. If that does not say "
        "what to do, please report it with that file."
    )


def _died(code: int, log: Path) -> str:
    why = f"ended with code {code}"
    if code in (-9, 137, 3221225495):
        why = "was ended by the system, most likely because the memory was full: close other programs, or add swap"
    return f"OneTrainer's process {why}. Nothing is left of the export. What it printed is in {_kept(log)}."


def _kept(log: Path) -> Path:
    """Keep what OneTrainer printed where it is not removed at once."""
    descriptor, name = tempfile.mkstemp(prefix="ema-select-export-", suffix=".log")
    os.close(descriptor)
    with contextlib.suppress(OSError):
        shutil.copyfile(log, name)
    return Path(name)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ema-select-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def python_of(onetrainer: Path) -> Path:
    """The Python that can run OneTrainer: the one in its folder, else this one."""
    return host_python(onetrainer) or Path(sys.executable)
