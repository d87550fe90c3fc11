"""What a run begins with: a pure function from the settings and what a backup holds to a plan with its reason.

No file is read here and nothing is loaded; every row of the table is a test in ``tests/test_resume.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.manifest import LegRecord, Manifest, ParkedRecord
from onetrainer_ema_select.settings import (
    EmaSelectSettings,
    ResumeEma,
    ResumeOptimizer,
    ResumeWeights,
    WeightSet,
)
from onetrainer_ema_select.validation import ValidationRecord


class EmaSource(Enum):
    """Where the average of a run comes from."""

    OFF = "OFF"
    """EMA is off in OneTrainer: there is none."""
    LOADED_WEIGHTS = "LOADED_WEIGHTS"
    """It begins at the weights that were loaded."""
    BACKUP = "BACKUP"
    """The backup's average goes on."""
    PARKED = "PARKED"
    """An average that was set aside earlier is taken up again."""


@dataclass(frozen=True)
class BackupContents:
    """What matters of a backup.

    Attributes:
        name: The backup's folder name.
        step: The host's ``global_step`` it was made at.
        epoch: Epochs finished by then.
        holds_ema: Whether it holds an average that can be read.
        manifest: The plugin's manifest, None where plain OneTrainer made it.
        parked: The average that was set aside last before it was made, if any.
    """

    name: str
    step: int
    epoch: int
    holds_ema: bool
    manifest: Manifest | None = None
    parked: ParkedRecord | None = None


@dataclass(frozen=True)
class ResumePlan:
    """What a run does at its start.

    Attributes:
        weights: The set that becomes the live weights.
        ema: Where the average comes from.
        park: Whether the backup's average is set aside first.
        reset_optimizer: Whether the optimizer starts anew.
        leg: The leg that the run's backups belong to.
        sentence: What was decided and why, for people.
        sigma_rel: Of the post-hoc average that becomes the live weights in the place of ``weights``; else None.
        restarts: Whether all averages begin anew because that was asked for.
    """

    weights: WeightSet
    ema: EmaSource
    park: bool
    reset_optimizer: bool
    leg: LegRecord
    sentence: str
    sigma_rel: float | None = None
    restarts: bool = False


def resume_choices(settings: EmaSelectSettings) -> dict[str, str]:
    """The choices that begin a leg, as they are recorded in manifests."""
    choices = {
        "resume_weights": str(settings.resume_weights),
        "resume_backup": settings.resume_backup,
        "resume_optimizer": str(settings.resume_optimizer),
        "resume_ema": str(settings.resume_ema),
        "resume_leg": settings.resume_leg,
    }
    if settings.resume_weights is ResumeWeights.POST_HOC and settings.resume_length is not None:
        # Only there: manifests of versions that did not know the key name the same choices without it.
        choices["resume_sigma_rel"] = f"{settings.resume_length:g}"
    return choices


_PLAIN_CHOICES = resume_choices(EmaSelectSettings())


def continues_leg(settings: EmaSelectSettings, manifest: Manifest | None) -> bool:
    """Whether a backup belongs to a leg that these settings began, so that it goes on as it is.

    A run that was never resumed is gone on with under the default choices, which change nothing; any other
    choice is one that has not been made yet.
    """
    if manifest is None:
        return False
    choices = resume_choices(settings)
    if manifest.leg.choices is None:
        return choices == _PLAIN_CHOICES
    return manifest.leg.choices == choices


def plan_resume(settings: EmaSelectSettings, *, ema_on: bool, backup: BackupContents | None) -> ResumePlan:
    """Decide what a run begins with.

    Args:
        settings: The run's settings.
        ema_on: Whether OneTrainer's own ``ema`` is CPU or GPU.
        backup: The backup that is resumed, None for a fresh start.

    Raises:
        ResumeError: If the settings ask for a set that the backup does not hold.
    """
    if backup is None:
        ema = EmaSource.LOADED_WEIGHTS if ema_on else EmaSource.OFF
        average = "the EMA begins at the model's weights" if ema_on else _EMA_OFF_SENTENCE
        return ResumePlan(
            WeightSet.NON_EMA,
            ema,
            park=False,
            reset_optimizer=False,
            leg=LegRecord(),
            sentence=f"Training starts from the model as configured; {average}.",
        )
    if continues_leg(settings, backup.manifest) and backup.manifest is not None:
        return _continue_leg(settings, backup, backup.manifest, ema_on=ema_on)
    return _begin_leg(settings, backup, ema_on=ema_on)


_EMA_OFF_SENTENCE = "EMA is off in OneTrainer (ema: OFF), so there is one set, non-EMA; set ema to CPU or GPU for both"


def _continue_leg(
    settings: EmaSelectSettings, backup: BackupContents, manifest: Manifest, *, ema_on: bool
) -> ResumePlan:
    began = manifest.leg
    # RESTART was done when the leg began, so the average goes on; unless EMA was off then, and the only average
    # there is was set aside before.
    restart = (
        settings.resume_ema is ResumeEma.RESTART
        and not backup.holds_ema
        and backup.parked is not None
        and backup.parked.step <= began.began_at_step
    )
    ema, average = _average(backup, ema_on=ema_on, restart=restart)
    if began.choices is None or began.choices == _PLAIN_CHOICES:
        reason = ""
    else:
        reason = (
            f" The resume_* choices were applied at step {began.began_at_step} and are not applied twice; "
            "set ema_select.resume_leg to a new text to apply them again."
        )
        if began.best:
            reason += f" BEST was {'EMA' if began.best == str(WeightSet.EMA) else 'non-EMA'} then."
    return ResumePlan(
        WeightSet.NON_EMA,
        ema,
        park=not ema_on and backup.holds_ema,
        reset_optimizer=False,
        leg=began,
        sentence=f"Going on from {_name(backup)}: its non-EMA weights were loaded, {average}, and the optimizer "
        f"state was kept.{reason}",
    )


def _begin_leg(settings: EmaSelectSettings, backup: BackupContents, *, ema_on: bool) -> ResumePlan:
    chosen = ""
    if settings.resume_weights is ResumeWeights.BEST:
        weights, chosen = _best(backup)
    else:
        weights = WeightSet.EMA if settings.resume_weights is ResumeWeights.EMA else WeightSet.NON_EMA
    if weights is WeightSet.EMA and not backup.holds_ema:
        raise ResumeError(_no_ema_message(backup), key="resume_weights", expected="EMA", found="NON_EMA")
    restart = settings.resume_ema is ResumeEma.RESTART
    ema, average = _average(backup, ema_on=ema_on, restart=restart)
    reset = settings.resume_optimizer is ResumeOptimizer.RESET
    optimizer = "the optimizer starts anew" if reset else "the optimizer state was kept"
    sigma_rel = settings.resume_length if settings.resume_weights is ResumeWeights.POST_HOC else None
    loaded = "EMA" if weights is WeightSet.EMA else "non-EMA"
    if sigma_rel is not None:
        loaded = f"post-hoc EMA (sigma_rel {sigma_rel:g})"
    other = ""
    if weights is WeightSet.EMA or sigma_rel is not None:
        other = " (its non-EMA weights stay in that backup)"
    return ResumePlan(
        weights,
        ema,
        park=not ema_on and backup.holds_ema,
        reset_optimizer=reset,
        leg=LegRecord(
            choices=resume_choices(settings),
            began_from=backup.name,
            began_at_step=backup.step,
            best=str(weights) if chosen else "",
        ),
        sentence=f"Resumed from {_name(backup)}: its {loaded} weights were loaded{other}, {average}, and {optimizer}."
        f"{chosen}",
        sigma_rel=sigma_rel,
        restarts=restart,
    )


def _best(backup: BackupContents) -> tuple[WeightSet, str]:
    """The set with the lower validation loss, and the sentence that says so.

    Raises:
        ResumeError: If the backup does not tell.
    """
    record = backup.manifest.validation if backup.manifest is not None else None
    if not backup.holds_ema:
        problem = "holds one set only, non-EMA, so there is nothing to choose from"
    elif backup.manifest is None:
        problem = "was made without the plugin, so it says nothing of the validation loss of its two sets"
    elif record is None:
        problem = (
            "says nothing of the validation loss of its two sets: in its leg of the run there was no validation "
            "before it was made"
        )
    elif record.better is None and record.ema is None:
        problem = (
            f"says that neither set's validation loss was a finite number at step {record.step}, so none is better"
        )
    else:
        return _better(record, backup)
    raise ResumeError(
        f"ema_select.resume_weights is BEST, but {_name(backup)} {problem}. Set ema_select.resume_weights to EMA or "
        "NON_EMA, or name a backup in ema_select.resume_backup that knows both losses (`onetrainer-ema-select list "
        "WORKSPACE` names the better set of each). Backups know them where OneTrainer's validation is on (validation: "
        "true, and a concept of the type VALIDATION) and EMA too.",
        key="resume_weights",
        expected="validation losses of both sets",
        found="none",
    )


def _better(record: ValidationRecord, backup: BackupContents) -> tuple[WeightSet, str]:
    age = backup.step - record.step
    when = f"measured at step {record.step}"
    if age > 0:
        when += f", {age} {'step' if age == 1 else 'steps'} before the backup"
    if record.better is None:
        return WeightSet.NON_EMA, (
            f" BEST: the validation loss of both sets is {record.losses_text}, {when}; where they are the same, "
            "non-EMA is taken."
        )
    name = "EMA" if record.better is WeightSet.EMA else "non-EMA"
    return record.better, f" BEST is {name} by validation loss: {record.losses_text} ({record.sure_text}), {when}."


def _average(backup: BackupContents, *, ema_on: bool, restart: bool) -> tuple[EmaSource, str]:
    if not ema_on:
        if backup.holds_ema:
            return EmaSource.OFF, "its EMA was parked because EMA is off in OneTrainer (ema: OFF)"
        return EmaSource.OFF, "there is no EMA because EMA is off in OneTrainer (ema: OFF)"
    if restart:
        return EmaSource.LOADED_WEIGHTS, "a new EMA begins at the loaded weights (resume_ema: RESTART)"
    if backup.holds_ema:
        return EmaSource.BACKUP, "its EMA goes on"
    if backup.parked is not None:
        stopped = backup.parked.step
        return EmaSource.PARKED, (
            f"the EMA parked at step {stopped} was taken up again (it has not seen the {backup.step - stopped} "
            "steps since; set ema_select.resume_ema to RESTART to begin a new one)"
        )
    return EmaSource.LOADED_WEIGHTS, "a new EMA begins at the loaded weights because the backup holds none"


def _no_ema_message(backup: BackupContents) -> str:
    message = f"ema_select.resume_weights is EMA, but {_name(backup)} holds no EMA."
    if backup.parked is not None:
        return (
            f"{message} An EMA was parked at step {backup.parked.step}: to go on with its average beside the "
            "newer weights, set ema_select.resume_weights to NON_EMA and ema to CPU or GPU; to go back to it, "
            "name a backup of that time in ema_select.resume_backup."
        )
    return (
        f"{message} Set ema_select.resume_weights to NON_EMA, or name a backup that holds one in "
        "ema_select.resume_backup; `onetrainer-ema-select list WORKSPACE` shows which do."
    )


def _name(backup: BackupContents) -> str:
    return f"backup {backup.name} (step {backup.step}, epoch {backup.epoch})"


@dataclass(frozen=True)
class NameMatch:
    """How saved names fit the trained ones.

    Attributes:
        matched: In both, in the trained order.
        new: Trained now, not saved.
        gone: Saved, not trained now.
    """

    matched: tuple[str, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def sentences(self) -> tuple[str, ...]:
        """What is named to the user; nothing where everything matches."""
        found = []
        if self.new:
            found.append(
                f"{len(self.new)} trained weights are not in the saved EMA; their average begins at the loaded "
                f"weights: {some(self.new)}."
            )
        if self.gone:
            found.append(
                f"{len(self.gone)} weights of the saved EMA are not trained any more; their average stays in the "
                f"backup: {some(self.gone)}."
            )
        return tuple(found)


def match_names(saved: Sequence[str], trained: Sequence[str]) -> NameMatch:
    """Match the names of a saved average with those that are trained now.

    Raises:
        ResumeError: If not a single one fits.
    """
    known = set(saved)
    wanted = set(trained)
    matched = tuple(name for name in trained if name in known)
    if not matched:
        raise ResumeError(
            f"None of the {len(saved)} weights of the saved EMA ({some(saved)}) is among the {len(trained)} that "
            f"are trained now ({some(trained)}). Restore the training method and layer filter of that run, or "
            "set ema_select.resume_ema to RESTART and ema_select.resume_weights to NON_EMA.",
            expected=some(trained),
            found=some(saved),
        )
    return NameMatch(
        matched,
        new=tuple(name for name in trained if name not in known),
        gone=tuple(name for name in saved if name not in wanted),
    )


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
