"""The setup's seams: the resume plan is applied to the weights, and the average is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from modules.util import multi_gpu_util
from torch import Tensor

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host import drift
from onetrainer_ema_select.host.announce import announce
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.host.length import make_pace
from onetrainer_ema_select.host.post_hoc import begin_post_hoc
from onetrainer_ema_select.host.session import Session, ema_device, session_of
from onetrainer_ema_select.manifest import EmaRecord
from onetrainer_ema_select.resume import EmaSource
from onetrainer_ema_select.settings import EmaDtype
from onetrainer_ema_select.tracks import WeightTracks


def create_setup(original: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseTrainer.create_model_setup``."""
    setup = original(trainer, *args, **kwargs)
    session = session_of(trainer.config)
    if session is None or setup is None:
        return setup
    original_create = setup.create_parameters

    def create_parameters(model: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        collection = original_create(model, config, *args, **kwargs)
        try:
            session.adopt(model, collection.parameters())
        except EmaSelectError as error:
            session.reporter.show(error)
            raise
        return collection

    setup.create_parameters = create_parameters
    return setup


def create_ema(
    original: Callable[..., Any],
    parameters: Iterable[Tensor],
    state_dict: Any,
    config: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Stand in for ``create.create_ema``, which OneTrainer calls on the first process only.

    Returns:
        The average, or None where EMA is off.

    Raises:
        Exception: If it cannot be built. Where there are other processes, that is raised on all of them later (see
            :func:`saver.create_saver`): they do not come by here.
    """
    session = session_of(config)
    if session is None:
        return original(parameters, state_dict, config, *args, **kwargs)
    try:
        _begin(session, list(parameters))
    except Exception as error:
        if multi_gpu_util.world_size() == 1:
            if isinstance(error, EmaSelectError):
                session.reporter.show(error)  # the window shows only that there was an error
            raise
        session.failed_start = error
    return session.ema


def _begin(session: Session, parameters: list[Tensor]) -> None:
    if session.ema_on:
        record = _record_of_average(session)
        tracks = _build_tracks(session, parameters, record)
        if session.settings.post_hoc_lengths:
            session.post_hoc = begin_post_hoc(session, parameters, device=tracks.device)
            tracks.beside = session.post_hoc.tracks
        session.ema = HostEma(tracks, failed=session.update_failed)
        drift.begin(session, record)
    session.begin_milestones()
    try:
        announce(session)
    except Exception as error:  # noqa: BLE001 - a sentence that cannot be made is no reason not to train
        session.reporter.problem("The start of the run could not be described.", error)
    if session.milestones.pending:
        # Due when the backup was made, and not written any more: the run owes them.
        session.trainer.commands.save()


def _record_of_average(session: Session) -> EmaRecord | None:
    """What is known of the average that goes on; None where a new one begins, or nothing was noted."""
    if session.plan.ema is EmaSource.PARKED:
        return session.parked_ema
    manifest = session.contents.manifest if session.contents is not None else None
    return manifest.ema if session.plan.ema is EmaSource.BACKUP and manifest is not None else None


def _build_tracks(session: Session, parameters: list[Tensor], record: EmaRecord | None) -> WeightTracks:
    config = session.config
    tracks = WeightTracks(
        zip(session.names, parameters, strict=True),
        decay=config.ema_decay,
        device=ema_device(config),
        dtype=torch.float32 if session.settings.ema_dtype is EmaDtype.FLOAT_32 else None,
        update_step_interval=config.ema_update_step_interval,
        initial=session.initial,
        pace=make_pace(session, record, from_backup=session.plan.ema is EmaSource.BACKUP),
    )
    session.initial = None
    if record is not None:
        tracks.updates = record.updates
    return tracks
