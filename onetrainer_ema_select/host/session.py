"""One run with the plugin: what it was told, what it resumes from, and what it has done so far."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from onetrainer_ema_select import store
from onetrainer_ema_select.checksums import ChecksumWriter
from onetrainer_ema_select.errors import SECTION, EmaSelectError, PostHocError
from onetrainer_ema_select.host.decision import Decision
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.host.equal_parts import EqualParts
from onetrainer_ema_select.host.ledger import Ledger
from onetrainer_ema_select.host.milestones import MilestoneWatch
from onetrainer_ema_select.host.parameters import name_parameters
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.host.space import SpaceWatch
from onetrainer_ema_select.integrity import backup_problem
from onetrainer_ema_select.manifest import EmaRecord, ParkedRecord
from onetrainer_ema_select.mixture import Mixture
from onetrainer_ema_select.publisher import Publisher
from onetrainer_ema_select.resume import EmaSource
from onetrainer_ema_select.settings import EmaSelectSettings, WeightSet
from onetrainer_ema_select.state_dict_view import Site
from onetrainer_ema_select.workspace import is_pinned

if TYPE_CHECKING:  # they import this module
    from onetrainer_ema_select.host.drift import DriftWatch
    from onetrainer_ema_select.host.judging import Judge
    from onetrainer_ema_select.host.post_hoc import PostHoc

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
        failed_start: What kept the first process alone from starting, for all of them to stop by.
        names: Stable names of the trained weights in OneTrainer's order; empty before the setup.
        sites: Where savers find them.
        ema: The average, None where EMA is off and on every process but the first.
        drift: Looks at how far the sets are apart, None without an average.
        post_hoc: The power-function tracks beside it; None where none are kept.
        mixture: The post-hoc average that is to be loaded; else None.
        parked_ema: Of the average that was taken up again after it was set aside.
        length_said: Whether the average's length was said, an epoch's length being known.
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
        judge: Follows the validations; None on every process but the first.
        judged: The losses of both sets at the last one of this leg.
    """

    def __init__(self, trainer: Any, settings: EmaSelectSettings, decision: Decision) -> None:
        """Begin what was decided; reads nothing that another process might read differently."""
        self.trainer = trainer
        self.config = trainer.config
        self.settings = settings
        self.reporter = Reporter(trainer.callbacks.on_update_status)
        self.workspace = Path(self.config.workspace_dir)
        self.ema_on = str(self.config.ema) != "OFF"
        self.skipped = decision.skipped
        self.backup = decision.backup
        self.contents = decision.contents
        self.plan = decision.plan
        self.run = decision.run
        manifest = self.contents.manifest if self.contents is not None else None
        self.parked: list[ParkedRecord] = list(manifest.parked) if manifest is not None else []
        self.equal_parts = EqualParts()
        self.milestones = MilestoneWatch(settings.milestones)
        self.names: tuple[str, ...] = ()
        self.sites: tuple[Site, ...] = ()
        self.model: Any = None
        self.ema: HostEma | None = None
        self.drift: DriftWatch | None = None
        self.post_hoc: PostHoc | None = None
        self.mixture: Mixture | None = decision.mixture
        self.undo: list[Restorable] = []
        self.publisher = Publisher()
        self.space = SpaceWatch(self)
        self.checksums = ChecksumWriter(self._checksums_failed)
        self.initial: MutableMapping[str, Tensor] | None = None
        self.match_notes: tuple[str, ...] = ()
        self.parked_ema: EmaRecord | None = None
        self.length_said = False
        self.failed_updates = 0
        self.failed_tracks = False
        self.failed_start: Exception | None = None
        self.training = False
        self.ending = False
        self.lost: list[str] = []
        self.final_done: frozenset[WeightSet] = frozenset()
        self.pinned: set[str] = set()
        self.last_backup: Path | None = None
        self.lost_backup = ""
        self.judge: Judge | None = None
        same_leg = manifest is not None and manifest.leg == self.plan.leg
        self.judged = manifest.validation if manifest is not None and same_leg else None

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The list of saves, read when it is asked for first."""
        return Ledger(self.workspace)

    def register(self) -> None:
        """Let the seams find this run by its configuration, until :meth:`close`."""
        _sessions[getattr(self.config, SECTION)] = self

    def close(self) -> None:
        """Forget the run. The next one with the same configuration begins from nothing."""
        _sessions.pop(getattr(self.config, SECTION), None)
        self.checksums.stop()

    def begin_milestones(self) -> None:
        """Count from where the run begins.

        Owed are those that were due when the backup was made, and whose models or backup were not written after it.
        """
        self.milestones.begin(self.model.train_progress)
        manifest = self.contents.manifest if self.contents is not None else None
        if manifest is None:
            return
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
        self.milestones.pending = tuple(name for name in due if name in saves or name in unpinned)

    # -- the model ---------------------------------------------------------------------------------------

    def adopt(self, model: Any, parameters: Sequence[Tensor]) -> None:
        """Name the weights and apply the plan to them, on every process alike.

        Runs after the model is loaded and before OneTrainer broadcasts the weights and gives them to the
        optimizer.

        Raises:
            EmaSelectError: If names or shapes do not match what was saved, or the average of the backup could not
                be set aside; on every process, also where only one has failed.
        """
        from onetrainer_ema_select.host import processes, resuming  # they import the host, this module does not

        self.model = model
        problem: Exception | None = None
        try:
            self.names, self.sites = name_parameters(model, parameters)
            resuming.apply_plan(self, model, parameters)
        except Exception as error:  # noqa: BLE001 - raised below
            problem = error
        processes.raise_together(problem)

    @property
    def starts_average(self) -> bool:
        """Whether the average begins at the weights that were loaded."""
        return self.plan.ema is EmaSource.LOADED_WEIGHTS

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
        if isinstance(error, PostHocError):  # of the tracks beside the EMA, which itself has moved
            if not self.failed_tracks:
                self.failed_tracks = True
                self.reporter.problem(
                    f"The post-hoc tracks could not be updated at optimizer step {optimization_step}; training and the "
                    "EMA go on. Do not use snapshots of this run from here on.",
                    error,
                )
            return
        self.failed_updates += 1
        if self.failed_updates == 1:
            self.reporter.problem(
                f"The EMA could not be updated at optimizer step {optimization_step}; training goes on, and the "
                "following updates are tried. The EMA of this run is not what its length says any more."
                + (" The post-hoc tracks have missed that update too." if self.post_hoc is not None else ""),
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

    @staticmethod
    def _backup_loss(backup: Path) -> str:
        """What has become of a backup that was whole; empty where it still is.

        What is written into a folder while it is removed, as its checksums are, can keep a part of it there.
        """
        try:
            return "it is gone" if not backup.is_dir() else backup_problem(backup)
        except OSError as error:
            return f"it cannot be looked at: {error}"

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
        elif self.last_backup is not None and not rolling and (why := self._backup_loss(self.last_backup)):
            self.lost.append(
                f"the backup {self.last_backup.name} ({why}; OneTrainer removes one that it cannot finish)"
            )
        if not self.lost:
            return
        error = EmaSelectError(
            "The run has ended, but not everything that was asked for is on the disk: "
            f"{'; '.join(self.lost)}. Free disk space or mend the folder, then start the same run again with "
            "continue_last_backup: it goes on from the newest backup, and where nothing is left to train it writes "
            "what is missing of the final output."
        )
        if threading.current_thread() is threading.main_thread():
            from onetrainer_ema_select.host.processes import leave_group  # it imports the host

            leave_group()
            raise error
        self.reporter.say(str(error))
        self.reporter.show(error)


def ema_device(config: Any) -> torch.device:
    """Where OneTrainer's configuration wants the average."""
    return torch.device(config.train_device if str(config.ema) == "GPU" else "cpu")


def clear_leftovers(session: Session) -> None:
    """Remove what an interrupted run of this workspace left unfinished."""
    store.clear_leftovers(session.workspace, Path(session.config.output_model_destination))
