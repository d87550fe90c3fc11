"""Backups: OneTrainer's own, whole before they are seen, with a manifest of what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from onetrainer_ema_select import __version__, store
from onetrainer_ema_select.host.length import ema_record
from onetrainer_ema_select.host.locate import host_commit
from onetrainer_ema_select.host.request import SaveRequest
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.integrity import EMA_FILE
from onetrainer_ema_select.manifest import (
    CONFIG_NAME,
    FOLDER,
    Manifest,
    ParameterRecord,
    PostHocRecord,
    write_manifest,
)


def write_backup(session: Session, request: SaveRequest, destination: Path) -> None:
    """Write a backup in private, then move it to ``workspace/backup`` in one step.

    Raises:
        Exception: What OneTrainer's saver or the file system raised; OneTrainer catches it, shows it and
            goes on training. Nothing is left in ``workspace/backup`` then.
    """
    session.checksums.stop()
    session.space.before("backup", destination, count=1, dtype=None)
    try:
        staging = store.Staging(destination, workspace=session.workspace)
        try:
            with staging.writing() as place:
                request.write(place)
            describe(session, request.model, staging.path)
            staging.publish()
        finally:
            staging.discard()
    except Exception as error:
        session.reporter.problem(
            f"The backup {destination.name} could not be written. Check the disk space and the folder; the backups "
            "before it are as they were.",
            error,
        )
        session.lost_backup = f"the backup {destination.name} ({error})"
        raise
    session.last_backup, session.lost_backup = destination, ""
    session.space.after("backup", destination)
    session.checksums.start(destination)
    if session.post_hoc is not None:
        session.post_hoc.kept_in(destination)
        if session.post_hoc.at_backups and not session.ending:
            session.post_hoc.snapshot()  # last, on a disk that is nearly full; at the end after the final output


def describe(session: Session, model: Any, folder: Path, *, milestones: tuple[str, ...] = ()) -> None:
    """Add what the plugin knows. A backup without it is still a backup, so a failure is only reported."""
    try:
        own = folder / FOLDER
        own.mkdir(exist_ok=True)
        config = json.dumps(session.config.to_settings_dict(secrets=False), indent=1)
        (own / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
        post_hoc = session.post_hoc.keep(folder) if session.post_hoc is not None else None
        write_manifest(backup_manifest(session, model, milestones=milestones, post_hoc=post_hoc), own)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a mistake of ours must not cost a backup
        session.reporter.problem(
            f"The backup {folder.name} is complete, but could not be described: weights can be matched by "
            "position only. Please report this.",
            error,
        )


def backup_manifest(
    session: Session, model: Any, *, milestones: tuple[str, ...] = (), post_hoc: PostHocRecord | None = None
) -> Manifest:
    """The manifest of a backup made now, with the milestones that it is pinned for, and its post-hoc tracks."""
    named = zip(session.names, model.parameters.parameters(), strict=True)
    return Manifest(
        kind="backup",
        **of_moment(session, model, named),
        ema=ema_record(session, file=EMA_FILE.as_posix(), step=model.train_progress.global_step),
        post_hoc=post_hoc,
        parked=tuple(session.parked),
        pending_milestones=session.milestones.pending,
        milestones=milestones,
        validation=session.judged,
    )


def of_moment(session: Session, model: Any, named: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """What every manifest says of the moment that it is made at, and of the weights that it is about."""
    progress = model.train_progress
    return {
        "plugin_version": __version__,
        "onetrainer_commit": host_commit(Path.cwd()) or "",
        "run": session.run,
        "step": progress.global_step,
        "epoch": progress.epoch,
        "epoch_step": progress.epoch_step,
        "model_type": str(session.config.model_type),
        "training_method": str(session.config.training_method),
        "parameters": tuple(
            ParameterRecord(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
            for name, tensor in named
        ),
        "leg": session.plan.leg,
    }
