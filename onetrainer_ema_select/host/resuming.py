"""Carry out a resume plan on a model that OneTrainer has just loaded, and set averages aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from modules.util import multi_gpu_util
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onetrainer_ema_select import __version__
from onetrainer_ema_select.errors import ManifestError, ResumeError, TrackError
from onetrainer_ema_select.host.parameters import find_parameters
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.integrity import EMA_FILE, safetensors_problem
from onetrainer_ema_select.manifest import (
    EmaRecord,
    Manifest,
    ParameterRecord,
    ParkedRecord,
    read_manifest,
    write_manifest,
)
from onetrainer_ema_select.mixture import Mixture
from onetrainer_ema_select.resume import EmaSource, match_names, some
from onetrainer_ema_select.settings import WeightSet
from onetrainer_ema_select.store import Staging
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.tracks import check_positions
from onetrainer_ema_select.workspace import PARKED_FOLDER

PARKED_FILE = "ema.safetensors"


def apply_plan(session: Session, model: Any, parameters: Sequence[Tensor]) -> None:
    """Load the set that was chosen, set the average aside where it is not used, and hand it over where it is.

    Args:
        session: The run.
        model: OneTrainer's model with what it has read from the backup: ``ema_state_dict`` is taken out of
            it, and ``optimizer_state_dict`` where the optimizer starts anew.
        parameters: The trained weights, named by ``session.names``.

    Raises:
        EmaSelectError: If names or shapes do not match; no weight has been changed then.
    """
    plan = session.plan
    state = model.ema_state_dict
    model.ema_state_dict = None
    saved: dict[str, Tensor] = {}
    if plan.park or plan.weights is WeightSet.EMA or plan.ema is EmaSource.BACKUP:
        tensors = _average_tensors(session, state)
        if plan.park and multi_gpu_util.is_master():
            park(session, tensors, parameters, decay=state.get("decay"))
        if plan.weights is WeightSet.EMA or plan.ema is EmaSource.BACKUP:
            saved = _by_name(session, tensors, parameters)
    if session.mixture is not None:
        _load_mixture(session, model, session.mixture, parameters)
    elif plan.weights is WeightSet.EMA:
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        _load_as_weights(session, model, saved, parameters, shapes=shapes, called="EMA")
    if plan.ema is EmaSource.BACKUP:
        saved = _matched(session, saved)
    if plan.reset_optimizer:
        model.optimizer_state_dict = None
    if plan.ema is EmaSource.PARKED and multi_gpu_util.is_master():
        saved = _take_up_parked(session)
    if plan.ema in (EmaSource.BACKUP, EmaSource.PARKED):
        _check_shapes(session, {name: tuple(tensor.shape) for name, tensor in saved.items()}, parameters)
        if multi_gpu_util.is_master():  # the others keep no average
            session.initial = saved


def _average_tensors(session: Session, state: Any) -> list[Tensor]:
    """The averages that OneTrainer has read from the backup's ``ema.pt``, in its order.

    Raises:
        ResumeError: If it has read none, or something else; going on would begin a new average without a word.
    """
    tensors = state.get("ema_parameters") if isinstance(state, Mapping) else None
    if isinstance(tensors, list) and all(isinstance(tensor, Tensor) for tensor in tensors):
        return tensors
    raise ResumeError(
        f"The EMA of backup {session.backup} could not be read: OneTrainer has loaded no list of weights from its "
        f"{EMA_FILE.as_posix()}. Choose another backup with ema_select.resume_backup, or set ema_select.resume_ema to "
        "RESTART and ema_select.resume_weights to NON_EMA.",
        path=str(session.backup),
    )


def _load_mixture(session: Session, model: Any, mixture: Mixture, parameters: Sequence[Tensor]) -> None:
    """Copy a post-hoc average into the weights, made tensor by tensor from its snapshots.

    Raises:
        EmaSelectError: As :func:`_load_as_weights`, and if a snapshot cannot be read.
    """
    files, coefficients = zip(*((source.file, source.coefficient) for source in mixture.sources), strict=True)
    with Synthesis(files, coefficients) as average:
        shapes = {name: average.shape(name) for name in average}
        _load_as_weights(session, model, average, parameters, shapes=shapes, called="post-hoc EMA")


def _load_as_weights(
    session: Session,
    model: Any,
    saved: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    called: str,
) -> None:
    """Copy an average into every weight that it has a value for, trained or not any more.

    Raises:
        EmaSelectError: If nothing fits, or a trained weight has another shape; nothing has been changed then.
    """
    match = match_names(tuple(saved), session.names)
    _check_shapes(session, shapes, parameters)
    targets = dict(zip(session.names, parameters, strict=True))
    places = find_parameters(model, match.gone)
    loaded, left = [], []
    for name in match.gone:
        parameter = places.get(name)
        if parameter is not None and parameter.is_floating_point() and tuple(parameter.shape) == shapes[name]:
            targets[name] = parameter
            loaded.append(name)
        else:
            left.append(name)
    with torch.no_grad():
        for name, parameter in targets.items():
            if name in saved and parameter.is_floating_point():
                parameter.detach().copy_(saved[name])
    notes = (
        (match.new, f"trained weights are not in the saved {called} and stay as the backup has them (non-EMA)"),
        (loaded, f"weights that are not trained any more were loaded from the {called} too"),
        (left, f"weights of the saved {called} do not fit anything in this model and were left out"),
    )
    session.match_notes += tuple(f"{len(names)} {text}: {some(names)}." for names, text in notes if names)


def _by_name(session: Session, tensors: list[Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """All tensors of ``ema.pt`` under their names: by the manifest, or by position where there is none."""
    manifest = session.contents.manifest if session.contents is not None else None
    if manifest is None:
        check_positions(tensors, list(parameters))
        return dict(zip(session.names, tensors, strict=True))
    if len(manifest.parameters) != len(tensors):
        raise ManifestError(
            f"The manifest of backup {session.backup} names {len(manifest.parameters)} weights, its ema.pt holds "
            f"{len(tensors)}: one of the two files is not of this backup. Choose another backup with "
            "ema_select.resume_backup.",
            path=str(session.backup),
        )
    return {p.name: t for p, t in zip(manifest.parameters, tensors, strict=True)}


def _matched(session: Session, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    match = match_names(tuple(saved), session.names)
    session.match_notes += match.sentences()
    return {name: saved[name] for name in match.matched}


def _check_shapes(session: Session, saved: Mapping[str, tuple[int, ...]], parameters: Sequence[Tensor]) -> None:
    for name, parameter in zip(session.names, parameters, strict=True):
        if name in saved and saved[name] != tuple(parameter.shape):
            raise TrackError(
                f"The saved EMA of {name} has the shape {saved[name]}, the weight has "
                f"{tuple(parameter.shape)}. Restore the settings of that run (for a LoRA its rank), or set "
                "ema_select.resume_ema to RESTART and ema_select.resume_weights to NON_EMA.",
                key=name,
                expected=str(tuple(parameter.shape)),
                found=str(saved[name]),
            )


def park(session: Session, tensors: Sequence[Tensor], parameters: Sequence[Tensor], *, decay: float | None) -> None:
    """Copy the average of the backup that is resumed to ``WORKSPACE/ema_select/parked``, before training.

    Its name goes into every later manifest. Does nothing where it has been done by an earlier start.

    Raises:
        ResumeError: If it cannot be written: going on would lose the average with the next rolling deletion.
    """
    contents = session.contents
    if contents is None:
        return
    record = ParkedRecord(name=f"{contents.name}-ema", step=contents.step)
    folder = session.workspace / PARKED_FOLDER / record.name
    session.parked = [entry for entry in session.parked if entry.name != record.name] + [record]
    if (folder / "manifest.json").is_file():
        return
    manifest = contents.manifest
    if manifest is not None and len(manifest.parameters) == len(tensors):
        names: tuple[str, ...] = tuple(parameter.name for parameter in manifest.parameters)
    elif _fits_by_position(tensors, parameters):
        names = session.names
    else:
        names = tuple(f"position.{position}" for position in range(len(tensors)))
    named = {name: tensor.detach().contiguous().cpu() for name, tensor in zip(names, tensors, strict=True)}
    try:
        staging = Staging(folder, workspace=session.workspace)
        try:
            staging.path.mkdir()
            with staging.writing():
                save_file(named, staging.path / PARKED_FILE, metadata={"ema_select.set": "EMA"})
            write_manifest(_parked_manifest(session, named, decay), staging.path)
            staging.publish()
        finally:
            staging.discard()
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ResumeError(
            f"The EMA of backup {contents.name} could not be set aside in {folder}: {error}. Without that, switching "
            "EMA off would lose it with the next rolling deletion. Free disk space or make the folder writable, then "
            "start again.",
            path=str(folder),
        ) from error


def _parked_manifest(session: Session, named: Mapping[str, Tensor], decay: float | None) -> Manifest:
    contents = session.contents
    old = contents.manifest if contents is not None else None
    ema = old.ema if old is not None else None
    step = contents.step if contents is not None else 0
    return Manifest(
        kind="parked",
        plugin_version=__version__,
        run=session.run,
        step=step,
        epoch=contents.epoch if contents is not None else 0,
        epoch_step=0,
        model_type=str(session.config.model_type),
        training_method=str(session.config.training_method),
        parameters=tuple(
            ParameterRecord(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            for name, tensor in named.items()
        ),
        ema=EmaRecord(
            file=PARKED_FILE,
            dtype=ema.dtype if ema is not None else "PARAMETER",
            decay=float(decay if decay is not None else session.config.ema_decay),
            update_step_interval=ema.update_step_interval
            if ema is not None
            else session.config.ema_update_step_interval,
            updates=ema.updates if ema is not None else 0,
            step=step,
            half_life=ema.half_life if ema is not None else "",
            age=ema.age if ema is not None else None,
            updated_at_step=ema.updated_at_step if ema is not None else None,
            accumulation=ema.accumulation if ema is not None else None,
            images_per_step=ema.images_per_step if ema is not None else None,
            steps_per_epoch=ema.steps_per_epoch if ema is not None else None,
        ),
    )


def _take_up_parked(session: Session) -> dict[str, Tensor]:
    """Load the average that was set aside last.

    Raises:
        EmaSelectError: If it is gone, or belongs to other weights.
    """
    contents = session.contents
    record = contents.parked if contents is not None else None
    folder: Path = session.workspace / PARKED_FOLDER / (record.name if record is not None else "")
    manifest = read_manifest(folder) if record is not None else None
    if record is None or manifest is None or manifest.ema is None or not (folder / manifest.ema.file).is_file():
        raise ResumeError(
            f"The parked EMA in {folder} is not there any more. Bring the folder back, or set ema_select.resume_ema "
            "to RESTART to begin a new average at the loaded weights.",
            path=str(folder),
        )
    file = folder / manifest.ema.file
    if problem := safetensors_problem(file):
        raise ResumeError(
            f"The parked EMA {file} {problem}. Bring back a whole one, or set ema_select.resume_ema to RESTART to "
            "begin a new average at the loaded weights.",
            path=str(file),
        )
    session.parked_ema = manifest.ema
    try:
        return _matched(session, load_file(file))
    except (OSError, SafetensorError) as error:
        raise ResumeError(
            f"The parked EMA {file} cannot be read: {error}. Bring back a whole one, or set ema_select.resume_ema to "
            "RESTART to begin a new average at the loaded weights.",
            path=str(file),
        ) from error


def _fits_by_position(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    try:
        check_positions(list(tensors), list(parameters))
    except TrackError:
        return False
    return True
