"""What a run begins with, found out before anything is loaded or written."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrainer_ema_select.errors import PostHocError, ResumeError, SettingProblem, SettingsError
from onetrainer_ema_select.integrity import EMA_FILE, backup_problem, read_progress
from onetrainer_ema_select.manifest import ParkedRecord, read_manifest
from onetrainer_ema_select.mixture import Mixture, mix
from onetrainer_ema_select.resume import BackupContents, ResumePlan, continues_leg, plan_resume
from onetrainer_ema_select.settings import EmaSelectSettings, ResumeWeights
from onetrainer_ema_select.snapshots import Snapshot, find_snapshots, read_snapshot
from onetrainer_ema_select.workspace import (
    BACKUP_FOLDER,
    MILESTONE_FOLDER,
    PARKED_FOLDER,
    SNAPSHOT_FOLDER,
    folders_in,
    newest_complete_backup,
    pinned_backups,
)


@dataclass(frozen=True)
class Decision:
    """What a run begins with, the same for all its processes.

    Attributes:
        run: Identifies the run over all its resumes.
        backup: The backup that is resumed, None for a fresh start.
        contents: What it holds.
        plan: What is made of it.
        skipped: A sentence for each newer folder that was passed over.
        mixture: The post-hoc average that becomes the live weights; None for a set of the backup.
    """

    run: str
    backup: Path | None
    contents: BackupContents | None
    plan: ResumePlan
    skipped: tuple[str, ...]
    mixture: Mixture | None = None


def decide(settings: EmaSelectSettings, config: Any) -> Decision:
    """Check the settings against OneTrainer's configuration, choose the backup and make the plan; only reads.

    Raises:
        EmaSelectError: If the run would be useless.
    """
    ema_on = str(config.ema) != "OFF"
    check_configuration(settings, config, ema_on=ema_on)
    workspace = Path(config.workspace_dir)
    backup: Path | None = None
    skipped: tuple[str, ...] = ()
    if config.continue_last_backup:
        backup, skipped = _choose_backup(settings, workspace)
    contents = None if backup is None else describe_backup(backup, workspace)
    manifest = contents.manifest if contents is not None else None
    plan = plan_resume(settings, ema_on=ema_on, backup=contents)
    if contents is not None and (manifest is None or plan.leg != manifest.leg):
        leg = plan.leg.model_copy(update={"id": uuid.uuid4().hex[:12]})
        plan = dataclasses.replace(plan, leg=leg)
    mixture = None
    if plan.sigma_rel is not None and backup is not None:
        mixture = _mix(backup, workspace, sigma_rel=plan.sigma_rel)
        told = " ".join(filter(None, (mixture.sentence + ".", mixture.fit.warning, *mixture.notes)))
        plan = dataclasses.replace(plan, sentence=f"{plan.sentence} That average is of {told}")
    run = manifest.run if manifest is not None else uuid.uuid4().hex
    return Decision(run, backup, contents, plan, skipped, mixture)


def _mix(backup: Path, workspace: Path, *, sigma_rel: float) -> Mixture:
    """The post-hoc average at a backup, out of the snapshots of the training that led to it.

    Raises:
        ResumeError: If there are none, or one is damaged.
    """
    home = next((folder for folder in backup.absolute().parents if (folder / SNAPSHOT_FOLDER).is_dir()), workspace)
    try:
        snapshots, problems = find_snapshots(home)
        mixture = mix(read_snapshot(backup), snapshots, sigma_rel=sigma_rel)
    except PostHocError as error:
        raise ResumeError(
            f"ema_select.resume_weights is POST_HOC, but the average cannot be made at this backup. {error} Or set "
            "ema_select.resume_weights to NON_EMA or EMA.",
            key="resume_weights",
            path=str(backup),
        ) from error
    return dataclasses.replace(
        mixture,
        end=_without_names(mixture.end),
        line=tuple(map(_without_names, mixture.line)),
        notes=mixture.notes + problems,
    )


def _without_names(snapshot: Snapshot) -> Snapshot:
    """The snapshot without the list of its weights: what was decided goes to every process."""
    return dataclasses.replace(snapshot, manifest=snapshot.manifest.model_copy(update={"parameters": ()}))


def _choose_backup(settings: EmaSelectSettings, workspace: Path) -> tuple[Path | None, tuple[str, ...]]:
    newest, skipped = newest_complete_backup(workspace)
    if settings.resume_backup:
        manifest = read_manifest(newest) if newest is not None else None
        if newest is None or not continues_leg(settings, manifest):
            return _named_backup(workspace, settings.resume_backup), skipped
    return newest, skipped


def _named_backup(workspace: Path, name: str) -> Path:
    places = [workspace / BACKUP_FOLDER, workspace / MILESTONE_FOLDER]
    candidates = [place / name for place in places] + [Path(name)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        named = [folder for folder, manifest in pinned_backups(workspace) if name in manifest.milestones]
        found = named[0] if named else None
    if found is None:
        available = [folder.name for place in places for folder in folders_in(place)]
        listed = ", ".join(available) if available else "none"
        raise ResumeError(
            f'ema_select.resume_backup names "{name}", which is neither a backup in {workspace} nor a '
            f"folder. Backups there: {listed}. Type one of these, a path, or nothing for the newest.",
            key="resume_backup",
            found=name,
        )
    problem = backup_problem(found)
    if problem:
        raise ResumeError(
            f"ema_select.resume_backup names {found}, which cannot be resumed from: {problem}. Type the name of "
            "another one, or nothing for the newest complete backup.",
            key="resume_backup",
            path=str(found),
        )
    return found


def describe_backup(path: Path, workspace: Path) -> BackupContents:
    """What matters of a complete backup.

    Raises:
        EmaSelectError: If its manifest or progress cannot be read.
    """
    manifest = read_manifest(path)
    progress = read_progress(path)
    step = progress["global_step"]
    parked = manifest.parked[-1] if manifest is not None and manifest.parked else None
    if manifest is None:
        # Plain OneTrainer made it, perhaps in the middle of a run of ours, and carries no word of the plugin.
        parked = _newest_parked(workspace, step)
    return BackupContents(
        name=path.name,
        step=step,
        epoch=progress["epoch"],
        holds_ema=(path / EMA_FILE).is_file(),
        manifest=manifest,
        parked=parked,
    )


def _newest_parked(workspace: Path, step: int) -> ParkedRecord | None:
    found = []
    for folder in folders_in(workspace / PARKED_FOLDER):
        manifest = read_manifest(folder)
        if manifest is not None and manifest.step <= step:
            found.append(ParkedRecord(name=folder.name, step=manifest.step))
    return max(found, key=lambda record: record.step, default=None)


def check_configuration(settings: EmaSelectSettings, config: Any, *, ema_on: bool) -> None:
    """Refuse combinations of the plugin's settings with OneTrainer's that cannot work.

    Raises:
        SettingsError: Naming all of them.
    """
    problems = []
    if settings.resume_backup and not config.continue_last_backup:
        problems.append(
            SettingProblem(
                "resume_backup",
                f'"{settings.resume_backup}" while continue_last_backup is false',
                "OneTrainer only asks for a backup when it continues from one",
                "type --config-value continue_last_backup=true, or leave ema_select.resume_backup empty",
            )
        )
    if settings.resume_weights is ResumeWeights.POST_HOC and settings.resume_length is None:
        problems.append(
            SettingProblem(
                "resume_weights",
                "POST_HOC while ema_select.resume_sigma_rel is empty",
                "the average to load needs a length",
                "type for example --config-value ema_select.resume_sigma_rel=0.10",
            )
        )
    optimizer = config.optimizer.optimizer
    if ema_on and optimizer is not None and optimizer.is_schedule_free:
        problems.append(
            SettingProblem(
                "enabled",
                f"true together with ema: {config.ema} and the schedule-free optimizer {optimizer}",
                "a schedule-free optimizer keeps an average of its own, and an EMA of its weights would average "
                "points that are not the model",
                "type --config-value ema=OFF, or choose an optimizer that is not schedule-free",
            )
        )
    if problems:
        raise SettingsError(tuple(problems))
