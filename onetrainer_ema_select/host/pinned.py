"""Backups that milestones leave: out of reach of rolling deletion and of "continue last backup"."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any

from onetrainer_ema_select import store
from onetrainer_ema_select.host.backup import describe
from onetrainer_ema_select.host.request import SaveRequest
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.integrity import backup_problem
from onetrainer_ema_select.manifest import FOLDER, read_manifest
from onetrainer_ema_select.schedule import is_repeating
from onetrainer_ema_select.workspace import MILESTONE_FOLDER, is_pinned, pinned_backups

_MAX_NAME = 80


def pin(session: Session, request: SaveRequest, milestones: tuple[str, ...]) -> None:
    """Leave a resumable backup of this moment, and delete the oldest of repeating ones beyond ``milestone_keep``.

    A rolling backup of the same step is linked where the file system can, so that it costs no space of its own
    as long as both are there; else OneTrainer's own saver writes another one. What goes wrong is reported.

    Args:
        session: The run.
        request: The save that OneTrainer asked for at this milestone.
        milestones: The milestones that leave a backup; nothing is done where there are none.
    """
    names = ", ".join(milestones)
    place = session.workspace / MILESTONE_FOLDER
    try:
        progress = request.model.train_progress
        due = tuple(name for name in milestones if not _is_done(session, name, progress.global_step))
        if due:
            place /= pinned_name(progress, due)
            session.reporter.say(f"Pinning a backup of the milestone {', '.join(due)}: {place}")
            _write(session, request, place, due)
    except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
        session.reporter.problem(
            f"The backup of the milestone {names} could not be written to {place}. Check the disk space and the "
            "folder.",
            error,
        )
        session.lost.append(f"the backup of the milestone {names} ({error})")
        return
    if due:
        if session.post_hoc is not None:
            session.post_hoc.kept_in(place)
        _drop_oldest(session, newest=place)
        session.checksums.start(place)


def _write(session: Session, request: SaveRequest, place: Path, milestones: tuple[str, ...]) -> None:
    staging = store.Staging(place, workspace=session.workspace)
    try:
        same = _rolling_backup_of(session, request.model.train_progress.global_step)
        if same is not None:
            _copy_backup(same, staging.path)
        else:
            session.space.before("backup", place, count=1, dtype=None)
            with staging.writing() as path:
                request.as_backup().write(path)
            _add_config(session, staging.path)
        describe(session, request.model, staging.path, milestones=milestones)
        staging.publish()
    finally:
        staging.discard()


def pinned_name(progress: Any, milestones: tuple[str, ...]) -> str:
    """A folder's name: the time, OneTrainer's progress and the milestones."""
    time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    slug = re.sub(r"[^0-9A-Za-z.]+", "-", "_".join(milestones).replace("%", " percent")).strip("-.")
    return f"{time}-backup-{progress.filename_string()}-{slug[:_MAX_NAME].rstrip('-.')}"


def _is_done(session: Session, milestone: str, step: int) -> bool:
    """Whether a milestone has its backup, though its models are still owed because they could not be written."""
    if milestone in session.pinned:
        return True
    resumed_here = session.contents is not None and session.contents.step == step
    return resumed_here and is_pinned(session.workspace, milestone, step=step, run=session.run, leg=session.plan.leg.id)


def _rolling_backup_of(session: Session, step: int) -> Path | None:
    backup = session.last_backup
    if backup is None or backup_problem(backup):
        return None
    manifest = read_manifest(backup)
    return backup if manifest is not None and (manifest.run, manifest.step) == (session.run, step) else None


def _copy_backup(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.suffix in store.TENSOR_SUFFIXES:
            store.link_or_copy(path, place)
        elif FOLDER not in path.relative_to(source).parts:  # its manifest is another one
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _add_config(session: Session, folder: Path) -> None:
    """What OneTrainer adds to its own backups after its saver has returned."""
    target = folder / "onetrainer_config"
    target.mkdir(exist_ok=True)
    settings = json.dumps(session.config.to_settings_dict(secrets=False), indent=4)
    (target / "args.json").write_text(settings, encoding="utf-8")
    for key, name in (("concept_file_name", "concepts.json"), ("sample_definition_file_name", "samples.json")):
        file = Path(getattr(session.config, key, "") or "")
        if file.is_file():
            shutil.copyfile(file, target / name)


def _drop_oldest(session: Session, *, newest: Path) -> None:
    """Keep the newest ones by the time in their names: a run that was taken back makes earlier steps later."""
    keep = session.settings.milestone_keep
    if keep == 0:
        return
    try:
        repeating = [
            folder
            for folder, manifest in pinned_backups(session.workspace)
            if manifest.run == session.run and all(is_repeating(name) for name in manifest.milestones)
        ]
        for folder in sorted(repeating, key=lambda path: path.name, reverse=True)[keep:]:
            if folder != newest:
                session.checksums.stop()
                shutil.rmtree(folder)
    except OSError as error:
        session.reporter.problem("An old backup of a milestone could not be deleted.", error)
