"""One run with the plugin: what it was told, what it resumes from, and what it has done so far."""

from __future__ import annotations

import dataclasses
import threading
import uuid
import weakref
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from onetrainer_ema_select import store
from onetrainer_ema_select.checksums import ChecksumWriter
from onetrainer_ema_select.errors import SECTION, EmaSelectError, ResumeError, SettingProblem, SettingsError
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.host.equal_parts import EqualParts
from onetrainer_ema_select.host.ledger import Ledger
from onetrainer_ema_select.host.milestones import MilestoneWatch
from onetrainer_ema_select.host.parameters import name_parameters
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.host.space import SpaceWatch
from onetrainer_ema_select.integrity import EMA_FILE, backup_problem, read_progress
from onetrainer_ema_select.manifest import Manifest, ParkedRecord, read_manifest
from onetrainer_ema_select.publisher import Publisher
from onetrainer_ema_select.resume import BackupContents, EmaSource, ResumePlan, continues_leg, plan_resume
from onetrainer_ema_select.settings import EmaSelectSettings, WeightSet
from onetrainer_ema_select.state_dict_view import Site
from onetrainer_ema_select.workspace import (
    BACKUP_FOLDER,
    MILESTONE_FOLDER,
    PARKED_FOLDER,
    folders_in,
    is_pinned,
    newest_complete_backup,
    pinned_backups,
)

# Seconds that nobody has to be told of.
_SOON = 2.0

# By section object, not by configuration: OneTrainer copies configurations freely, and a copy must not find
# the run of the original.
_sessions: weakref.WeakKeyDictionary[Any, Session] = weakref.WeakKeyDictionary()


def session_of(config: Any) -> Session | None:
    """The run that a configuration drives, None where the plugin is off."""
    section = getattr(config, SECTION, None)
    return None if section is None else _sessions.get(section)


class Restorable(Protocol):
    """Something done to the model for the time of a save."""

    def restore(self) -> None:
        """Undo it; may be called again."""


class Session:
    """State of one run. Made before the model is loaded; everything that could stop a run is checked then.

    Attributes:
        plan: What the run begins with.
        backup: The backup that is resumed, None for a fresh start.
        run: Identifies the run over all its resumes.
        names: Stable names of the trained weights in OneTrainer's order; empty before the setup.
        sites: Where savers find them.
        ema: The average, None where EMA is off and on every process but the first.
        training: Whether OneTrainer has come as far as to train.
        ending: Whether OneTrainer's ``end`` is running, so that a save is the final output.
        undo: What a save has done to the model; undone by :meth:`settle` if an interrupt cut that short.
        publisher: Brings what is written to its place.
        checksums: Writes the checksums of backups in the background.
        space: Says so when something will not fit on its disk.
        lost: What was asked for and is not on the disk at the end.
        final_done: Sets whose final output an earlier start of this run has written already.
        pinned: Milestones whose backup this run has written, or has tried to, or that leave none.
        last_backup: The newest backup that this run has written.
        lost_backup: The last due one with its reason, if it could not be written.
    """

    def __init__(self, trainer: Any, settings: EmaSelectSettings) -> None:
        """Check the settings against the configuration, choose the backup and make the plan.

        Raises:
            EmaSelectError: If the run would be useless; nothing has been changed then.
        """
        self.trainer = trainer
        self.config = trainer.config
        self.settings = settings
        self.reporter = Reporter(trainer.callbacks.on_update_status)
        self.workspace = Path(self.config.workspace_dir)
        self.ema_on = str(self.config.ema) != "OFF"
        check_configuration(settings, self.config, ema_on=self.ema_on)
        self.skipped: tuple[str, ...] = ()
        self.backup: Path | None = None
        contents = self._choose_backup() if self.config.continue_last_backup else None
        manifest = contents.manifest if contents is not None else None
        self.plan: ResumePlan = plan_resume(settings, ema_on=self.ema_on, backup=contents)
        if contents is not None and (manifest is None or self.plan.leg != manifest.leg):
            leg = self.plan.leg.model_copy(update={"id": uuid.uuid4().hex[:12]})
            self.plan = dataclasses.replace(self.plan, leg=leg)
        self.contents = contents
        self.run = manifest.run if manifest is not None else uuid.uuid4().hex
        self.parked: list[ParkedRecord] = list(manifest.parked) if manifest is not None else []
        self.ledger = Ledger(self.workspace)
        self.equal_parts = EqualParts()
        self.milestones = MilestoneWatch(settings.milestones)
        if contents is not None and manifest is not None:
            self.milestones.pending = self._owed_milestones(manifest)
        self.names: tuple[str, ...] = ()
        self.sites: tuple[Site, ...] = ()
        self.model: Any = None
        self.ema: HostEma | None = None
        self.undo: list[Restorable] = []
        self.publisher = Publisher()
        self.space = SpaceWatch(self)
        self.checksums = ChecksumWriter(self._checksums_failed)
        self.initial: MutableMapping[str, Tensor] | None = None
        self.match_notes: tuple[str, ...] = ()
        self.parked_updates = 0
        self.failed_updates = 0
        self.training = False
        self.ending = False
        self.lost: list[str] = []
        self.final_done: frozenset[WeightSet] = frozenset()
        self.pinned: set[str] = set()
        self.last_backup: Path | None = None
        self.lost_backup = ""

    def register(self) -> None:
        """Let the seams find this run by its configuration, until :meth:`close`."""
        _sessions[getattr(self.config, SECTION)] = self

    def close(self) -> None:
        """Forget the run. The next one with the same configuration begins from nothing."""
        _sessions.pop(getattr(self.config, SECTION), None)
        self.checksums.stop()

    def _owed_milestones(self, manifest: Manifest) -> tuple[str, ...]:
        """Those that were due when the backup was made, and whose models or backup were not written after it."""
        due = manifest.pending_milestones
        saves = self.ledger.still_pending(
            due,
            step=manifest.step,
            run=self.run,
            leg=manifest.leg.id,
            sets=self.settings.sets_written(has_ema=self.ema_on, milestone=True),
        )
        self.milestones.saved = frozenset(due) - frozenset(saves)
        unpinned = [
            name
            for name in self.settings.pinned_milestones(due)
            if not is_pinned(self.workspace, name, step=manifest.step, run=self.run, leg=manifest.leg.id)
        ]
        return tuple(name for name in due if name in saves or name in unpinned)

    # -- choosing ----------------------------------------------------------------------------------------

    def _choose_backup(self) -> BackupContents | None:
        newest, self.skipped = newest_complete_backup(self.workspace)
        chosen = newest
        if self.settings.resume_backup:
            manifest = read_manifest(newest) if newest is not None else None
            if newest is None or not continues_leg(self.settings, manifest):
                chosen = self._named_backup(self.settings.resume_backup)
        self.backup = chosen
        return None if chosen is None else describe_backup(chosen, self.workspace)

    def _named_backup(self, name: str) -> Path:
        places = [self.workspace / BACKUP_FOLDER, self.workspace / MILESTONE_FOLDER]
        candidates = [place / name for place in places] + [Path(name)]
        found = next((path for path in candidates if path.is_dir()), None)
        if found is None:
            named = [folder for folder, manifest in pinned_backups(self.workspace) if name in manifest.milestones]
            found = named[0] if named else None
        if found is None:
            available = [folder.name for place in places for folder in folders_in(place)]
            listed = ", ".join(available) if available else "none"
            raise ResumeError(
                f'ema_select.resume_backup names "{name}", which is neither a backup in {self.workspace} nor a '
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

    # -- the model ---------------------------------------------------------------------------------------

    def adopt(self, model: Any, parameters: Sequence[Tensor]) -> None:
        """Name the weights and apply the plan to them, on every process alike.

        Runs after the model is loaded and before OneTrainer broadcasts the weights and gives them to the
        optimizer.

        Raises:
            EmaSelectError: If names or shapes do not match what was saved; no weight has been changed then.
        """
        from onetrainer_ema_select.host import (
            resuming,
        )  # it imports what needs the host, this module does not

        self.model = model
        self.names, self.sites = name_parameters(model, parameters)
        resuming.apply_plan(self, model, parameters)

    def settle(self) -> None:
        """Have the live weights in the model and in its state dicts, whatever was interrupted before."""
        while self.undo:
            self.undo[-1].restore()
            self.undo.pop()
        if self.ema is not None:
            self.ema.settle()

    def sets_written(self, *, milestone: bool) -> tuple[WeightSet, ...]:
        """The sets that a save of this run writes, the one with OneTrainer's own name first."""
        return self.settings.sets_written(has_ema=self.ema is not None, milestone=milestone)

    def average(self, name: str) -> Tensor | None:
        """The average of a weight for a save (an alias); None where it is the live weight itself."""
        return None if self.ema is None else self.ema.tracks.average(name)

    def update_failed(self, optimization_step: int, error: Exception) -> None:
        """Report the first update of the average that failed, and count the others for the end."""
        self.failed_updates += 1
        if self.failed_updates == 1:
            self.reporter.problem(
                f"The EMA could not be updated at optimizer step {optimization_step}; training goes on, and the "
                "following updates are tried. The EMA of this run is not what its length says any more.",
                error,
            )

    def finish_checksums(self) -> None:
        """Wait for the checksums of the last backups, and say so where that takes long."""
        if not self.checksums.wait(_SOON):
            self.reporter.say("The last backup's checksums are being written; Ctrl-C leaves them out.")
            try:
                self.checksums.wait()
            except KeyboardInterrupt:  # all that was asked for is written: no reason to end with an error
                self.checksums.stop()

    def _checksums_failed(self, folder: Path, error: Exception) -> None:
        self.reporter.problem(
            f"The checksums of the backup {folder.name} could not be written; the backup itself is whole.", error
        )

    # -- the end -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Repeat the problems, and end the process with an error where something asked for is missing.

        Raises:
            EmaSelectError: If the final output or the last backup is not on the disk, in a script. In the
                window, which runs trainings in a thread of its own, an exception here would leave it stuck.
        """
        if self.failed_updates > 1:
            self.reporter.problem(f"{self.failed_updates} updates of the EMA failed in this run.")
        self.reporter.repeat_problems()
        rolling = self.config.rolling_backup and self.config.rolling_backup_count < 1
        if self.lost_backup:
            self.lost.append(self.lost_backup)
        elif self.last_backup is not None and not self.last_backup.is_dir() and not rolling:
            self.lost.append(
                f"the backup {self.last_backup.name} (it is gone; OneTrainer removes one that it cannot finish)"
            )
        if self.lost and threading.current_thread() is threading.main_thread():
            raise EmaSelectError(
                "The run has ended, but not everything that was asked for is on the disk: "
                f"{'; '.join(self.lost)}. Free disk space or mend the folder, then start the same run again with "
                "continue_last_backup: it goes on from the newest backup, and where nothing is left to train it writes "
                "what is missing of the final output."
            )


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


def ema_device(config: Any) -> torch.device:
    """Where OneTrainer's configuration wants the average."""
    return torch.device(config.train_device if str(config.ema) == "GPU" else "cpu")


def clear_leftovers(session: Session) -> None:
    """Remove what an interrupted run of this workspace left unfinished."""
    store.clear_leftovers(session.workspace, Path(session.config.output_model_destination))


__all__ = [
    "EmaSource",
    "Session",
    "check_configuration",
    "clear_leftovers",
    "describe_backup",
    "ema_device",
    "session_of",
]
