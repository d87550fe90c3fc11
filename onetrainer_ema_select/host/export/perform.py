"""Carries out an order, in the process that has OneTrainer."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from modules.util import create

from onetrainer_ema_select.backups import Backup
from onetrainer_ema_select.choices import SaveRounding, WeightSet
from onetrainer_ema_select.errors import EmaSelectError, ExportError
from onetrainer_ema_select.host.export.configuration import (
    RunConfig,
    choose_dtype,
    choose_format,
    read_run_config,
)
from onetrainer_ema_select.host.export.loading import UnreadWeightsError, base_model_problem, places_outside, text_of
from onetrainer_ema_select.host.export.messages import Event, ExportedSet, ExportOrder, ExportResult
from onetrainer_ema_select.host.export.outputs import (
    check_no_mixture,
    check_places,
    check_space,
    expected_bytes,
    output_paths,
)
from onetrainer_ema_select.host.export.readback import ReadBack
from onetrainer_ema_select.host.export.selection import chosen_rounding, chosen_sets
from onetrainer_ema_select.host.export.sources import (
    AdapterSource,
    Source,
    is_adapter,
    open_adapter,
    open_model,
    trained_names,
)
from onetrainer_ema_select.host.metadata import (
    POST_HOC,
    STOCHASTIC_MARK,
    Marked,
    average_marks,
    mark_files,
    mixture_marks,
    moment_marks,
    title_of,
)
from onetrainer_ema_select.host.seams import EXPORT_SEAMS, check_live, mismatches
from onetrainer_ema_select.resume import some
from onetrainer_ema_select.rounding import StochasticRounding, rounds
from onetrainer_ema_select.store import Staging, clear_old_leftovers
from onetrainer_ema_select.workspace import size_of

Emit = Callable[[Event], None]

# Seconds between two looks at how much has been written.
_TICK = 0.5


def perform(order: ExportOrder, opened: Backup, *, readback: ReadBack, emit: Emit) -> None:
    """Do what is asked for, and tell of it.

    Args:
        order: What is asked for.
        opened: The backup.
        readback: Checks what is written; in place before OneTrainer was imported.
        emit: Told of progress and of the result.

    Raises:
        EmaSelectError: It cannot be done.
    """
    if wrong := mismatches(check_live(EXPORT_SEAMS)):
        listed = "".join(f"\n- {sentence}" for sentence in wrong)
        raise ExportError(
            f"This OneTrainer differs from those that this plugin can export with:{listed}\nUpdate "
            "onetrainer-ema-select to a version that knows this OneTrainer (`onetrainer-ema-select doctor` shows each "
            "place), or name another OneTrainer with --onetrainer DIR.",
            path=order.onetrainer,
        )
    emit(Event(kind="progress", text="reading the backup"))
    config = read_run_config(order)
    _connect(config)
    if order.action == "names":
        emit(Event(kind="progress", text="loading the model"))
        emit(Event(kind="names", names=trained_names(config, opened)))
        return
    Exporter(order, config, opened, readback=readback, emit=emit).run()


def _connect(config: RunConfig) -> None:
    """Have base models on Hugging Face found as in a run: offline or not, with the user's cache and token."""
    token = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        token = str(json.loads(Path("secrets.json").read_text(encoding="utf-8")).get("huggingface_token") or "")
    if token:
        # As a login would, but without asking the hub, and without writing it down.
        os.environ.setdefault("HF_TOKEN", token)
    working = config.working
    # What lies on the disk is read without asking the hub either, which may not be reached from here.
    local = all(Path(place).is_dir() for place in places_outside(config).values())
    # A folder of the machine that the run was on may not be there.
    cache = getattr(working, "huggingface_cache_dir", "")
    cache = cache if Path(cache).is_dir() else ""
    offline = getattr(working, "offline_mode", False) or local
    try:
        from modules.util import huggingface_util
    except ImportError:  # OneTrainer before 2026-07-24, which leaves both to the environment
        if offline:  # by name: only OneTrainer's environment has it
            importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    else:
        huggingface_util.configure_hub("", offline_mode=offline, cache_dir=cache)


class Exporter:
    """Writes the sets of one backup."""

    def __init__(
        self, order: ExportOrder, config: RunConfig, opened: Backup, *, readback: ReadBack, emit: Emit
    ) -> None:
        """Check all that can be checked without a model.

        Raises:
            ExportError: Something is in the way.
        """
        self._order = order
        self._config = config
        self._opened = opened
        self._readback = readback
        self._emit = emit
        original = config.original
        self._sets = chosen_sets(opened, order.sets)
        self._format = choose_format(config, order.format)
        self._dtype = choose_dtype(config, order.dtype)
        self._rounding = chosen_rounding(opened, order.rounding)
        ending = str(self._format.file_extension())
        mixture = order.mixture
        self._paths = output_paths(
            order.output,
            sets=self._sets,
            backup=order.backup,
            ending=ending,
            name=f"{mixture.name}-post-hoc-{mixture.sigma_rel:g}" if mixture is not None else "",
        )
        # In spite of its name, and only of this type of model.
        cascade = str(original.model_type) == "STABLE_CASCADE_1" and str(self._format) == "LEGACY_SAFETENSORS"
        check_places(
            self._paths,
            is_folder=cascade or not ending,
            format_name=str(self._format),
            overwrite=order.overwrite,
        )
        torch_dtype = self._dtype.torch_dtype()
        self._each = expected_bytes(order.backup, itemsize=torch_dtype.itemsize if torch_dtype is not None else None)
        self._free = check_space(self._paths, each=self._each)
        #: What OneTrainer's saver raised last.
        self._refused: Exception | None = None
        #: Whether weights were rounded at random.
        self._rounded = False
        self._adapter = is_adapter(config, opened, self._sets)
        if not self._adapter and (problem := base_model_problem(config)):
            raise ExportError(problem)

    def run(self) -> None:
        """Write everything, or with ``plan`` say what would be."""
        if self._order.action == "plan":
            sets = tuple(ExportedSet(set=each, path=path, size_bytes=self._each) for each, path in self._paths.items())
            how = "from the backup's own file; in most formats the base model is not needed"
            self._report(sets, how=how if self._adapter else "through OneTrainer's loader and setup", notes=())
            return
        self._emit(Event(kind="progress", text="loading the model"))
        for attempt in self._attempts():
            try:
                source = attempt()
            except ExportError as error:
                if not self._adapter or self._refused is not None:
                    raise
                self._refused = error
                continue
            try:
                written, notes = self._write_all(source)
                break
            except EmaSelectError:
                raise
            except OSError as error:
                raise self._not_writable(error) from error
            except Exception as error:  # noqa: BLE001 - what a saver of OneTrainer raises may be anything
                # Its frames would keep this model in memory while the next one is loaded.
                self._refused = error.with_traceback(None)
                self._refused.__context__ = None
                del source
        else:
            raise self._not_writable(self._refused or RuntimeError("there is no way to write it")) from self._refused
        self._adapter = self._adapter and isinstance(source, AdapterSource)
        self._report(written, how=source.how, notes=notes)

    def _attempts(self) -> Iterator[Callable[[], Source]]:
        """The ways to the weights, the cheapest first; the next one is for where a saver wants more.

        Raises:
            ExportError: It wants more than there is.
        """
        opened, sets, config = self._opened, self._sets, self._config
        if self._adapter:
            # OneTrainer converts most adapters without their base, and some only with it.
            yield lambda: open_adapter(config, opened, sets)
            if problem := base_model_problem(config):
                refusal = text_of(self._refused) if self._refused is not None else "it wants the base model"
                raise ExportError(
                    f"OneTrainer could not write this backup as {self._format} without its base model: {refusal}. "
                    f"{problem}"
                )
            self._emit(Event(kind="progress", text="loading the base model"))
        yield lambda: open_model(config, opened, sets)
        if isinstance(self._refused, UnreadWeightsError):
            self._emit(Event(kind="progress", text="loading all weights"))
            yield lambda: open_model(config, opened, sets, structure_only=False)

    def _not_writable(self, error: Exception) -> ExportError:
        original = self._config.original
        if isinstance(error, OSError):
            first = next(iter(self._paths.values()))
            return ExportError(
                f"{first} could not be written: {text_of(error)}. Nothing is left of it. Check the disk space and "
                "the folder, or give another place with --output.",
                path=first,
            )
        others = [
            str(each)
            for each in original.model_type.supported_output_formats(original.training_method)
            if each != self._format
        ]
        return ExportError(
            f"OneTrainer could not write this backup as {self._format}: {text_of(error)}. "
            + (f"Try another --format: {', '.join(others)}." if others else "Please report this with the model type."),
            key="format",
            found=str(self._format),
        )

    def _write_all(self, source: Source) -> tuple[tuple[ExportedSet, ...], tuple[str, ...]]:
        """Write every set in private first, so that nothing appears before all are whole."""
        stagings: list[Staging] = []
        written: list[ExportedSet] = []
        try:
            # The averages take the live weights' place in memory, so those are written first.
            for weight_set, path in sorted(self._paths.items(), key=lambda entry: entry[0] is WeightSet.EMA):
                clear_old_leftovers(self._order.backup, path.parent)
                staging = Staging(path, workspace=self._order.backup)
                stagings.append(staging)
                self._emit(Event(kind="staging", text=str(staging.folder)))
                if written:
                    gc.collect()  # savers leave whole copies of a model in cycles
                written.append(self._write_one(source, weight_set, staging))
            written.sort(key=lambda each: list(self._paths).index(each.set))
            self._emit(Event(kind="progress", text="flushing to the disk"))
            for staging in stagings:
                check_no_mixture(staging.path, staging.destination)
            notes = tuple(_notes(written))
            for staging in stagings:
                for beside in staging.publish():
                    notes += (
                        f"{beside.wanted} could not be replaced ({beside.reason}): the new one lies beside it as "
                        f"{beside.actual.name}.",
                    )
        finally:
            for staging in stagings:
                staging.discard()
        return tuple(written), notes

    def _write_one(self, source: Source, weight_set: WeightSet, staging: Staging) -> ExportedSet:
        path = staging.destination
        model = source.model
        dtype = self._dtype.torch_dtype()
        self._readback.files.clear()
        saver = create.create_model_saver(self._config.original.model_type, self._config.original.training_method)
        rounding = self._rounding_of(source, weight_set, dtype)
        progress, called = model.train_progress, str(weight_set)
        if (mixture := self._order.mixture) is not None:
            # The rest of the model may come out of a backup of another moment.
            progress, called = mixture, f"POST_HOC {mixture.sigma_rel:g}"
        marks = self._marks(weight_set, progress)
        if rounding is not None:
            marks |= STOCHASTIC_MARK
            self._rounded = True
        with (
            Marked(model, marks, title=title_of(path, called, progress)),
            source.showing(weight_set, dtype, rounding=rounding),
            self._watched(staging, f"writing {path.name}"),
            staging.writing() as place,
        ):
            saver.save(model, self._config.original.model_type, self._format, str(place), dtype)
        checked = {file.path.relative_to(staging.folder) for file in self._readback.files}
        written = {file.relative_to(staging.folder) for file in staging.folder.rglob("*.safetensors") if file.is_file()}
        if unchecked := written - checked:
            raise ExportError(
                f"{min(unchecked)} was written in a way that could not be checked. Please report this with the model "
                "type and format.",
                path=path,
            )
        mark_files(staging.path, marks)
        if not staging.path.exists():
            raise ExportError(f"OneTrainer's saver has written nothing for {path}. Please report this.", path=path)
        files = sorted(file for file in staging.folder.rglob("*") if file.is_file())
        return ExportedSet(
            set=weight_set,
            path=path,
            files=tuple(path.parent / file.relative_to(staging.folder) for file in files),
            size_bytes=size_of(staging.folder),
            tensors=sum(file.tensors for file in self._readback.files),
            weights=len(source.asked),
            left_out=tuple(name for name in source.names if name not in source.asked),
            nonfinite=tuple(name for file in self._readback.files for name in file.nonfinite),
        )

    @contextlib.contextmanager
    def _watched(self, staging: Staging, text: str) -> Iterator[None]:
        """Tell how much has been written, meanwhile."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_TICK):
                self._emit(Event(kind="progress", text=text, done=_on_disk(staging.folder), total=self._each))

        self._emit(Event(kind="progress", text=text, total=self._each))
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _marks(self, weight_set: WeightSet, progress: Any) -> dict[str, str]:
        if (mixture := self._order.mixture) is not None:
            marks = moment_marks(progress, (POST_HOC,), run=mixture.run, leg=mixture.leg)
            marks["ema_select.exported_from"] = mixture.name.replace("\n", " ")
            return marks | mixture_marks(mixture.sigma_rel, mixture.fit_error)
        manifest = self._opened.manifest
        run, leg, milestones = (
            ("", "", ()) if manifest is None else (manifest.run, manifest.leg.id, manifest.milestones)
        )
        marks = moment_marks(progress, self._paths, run=run, leg=leg, milestones=milestones)
        marks["ema_select.set"] = str(weight_set)
        marks["ema_select.exported_from"] = self._order.backup.name.replace("\n", " ")
        if weight_set is WeightSet.EMA and manifest is not None and manifest.ema is not None:
            marks |= average_marks(manifest.ema)
        return marks

    def _rounding_of(
        self, source: Source, weight_set: WeightSet, dtype: torch.dtype | None
    ) -> StochasticRounding | None:
        """What rounds in the saver's place, as in a save of this step; None where nothing is rounded at random."""
        average = self._opened.sets[WeightSet.EMA] if weight_set is WeightSet.EMA else None
        held = None if average is None else {average.dtype(name) for name in average}
        if self._rounding is SaveRounding.NEAREST or not any(
            rounds(dtype, own=own, held=each) for own in source.dtypes for each in held or (own,)
        ):
            return None
        manifest = self._opened.manifest
        return StochasticRounding("" if manifest is None else manifest.run, self._opened.step)

    def _report(self, sets: tuple[ExportedSet, ...], *, how: str, notes: tuple[str, ...]) -> None:
        original = self._config.original
        self._emit(
            Event(
                kind="result",
                result=ExportResult(
                    backup=self._order.backup,
                    step=self._opened.step,
                    epoch=self._opened.epoch,
                    model_type=str(original.model_type),
                    training_method=str(original.training_method),
                    format=str(self._format),
                    dtype=str(self._dtype),
                    rounding=str(SaveRounding.STOCHASTIC if self._rounded else SaveRounding.NEAREST),
                    sets=sets,
                    base_model=""
                    if self._adapter or self._config.is_fine_tune
                    else self._config.working.base_model_name,
                    how=how,
                    free_bytes=self._free,
                    notes=self._config.notes + notes,
                    dry_run=self._order.action == "plan",
                ),
            )
        )


def _on_disk(folder: Path) -> int:
    """Bytes that have been written; a file may have its full size from the beginning."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            state = file.stat()
            total += min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512)
    return total


def _notes(written: list[ExportedSet]) -> Iterator[str]:
    for each in written:
        if each.nonfinite:
            yield (
                f"{each.path.name} holds NaN or Inf in {len(each.nonfinite)} tensors: {some(each.nonfinite)}. If the "
                "other set or another --dtype has none, use that."
            )
        if each.left_out:
            yield (
                f"{len(each.left_out)} trained weights have no place in this format and are not in {each.path.name}: "
                f"{some(each.left_out)}."
            )
