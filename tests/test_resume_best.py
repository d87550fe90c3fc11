"""`resume_weights: BEST`: which set a backup's validation makes it, and where that cannot be told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.manifest import EmaRecord, LegRecord, Manifest
from onetrainer_ema_select.resume import BackupContents, EmaSource, plan_resume, resume_choices
from onetrainer_ema_select.settings import EmaSelectSettings, ResumeWeights, WeightSet
from onetrainer_ema_select.validation import ValidationRecord, judge

NAME, STEP = "2026-03-01_12-00-00-backup-400-10-0", 400
BEST = EmaSelectSettings(enabled=True, resume_weights=ResumeWeights.BEST)
LIVE = [1.0, 2.0, 4.0]


def measured(differences: list[float], *, step: int = STEP) -> ValidationRecord:
    ema = [one + other for one, other in zip(LIVE, differences, strict=True)]
    return judge(step=step, epoch=10, labels=["a", "a", "b"], ema=ema, non_ema=LIVE)


def backup(validation: ValidationRecord | None, *, holds_ema: bool = True, leg: LegRecord | None = None):
    ema = EmaRecord(file="ema/ema.pt", dtype="FLOAT_32", decay=0.9, update_step_interval=1, updates=1, step=STEP)
    manifest = Manifest(
        kind="backup", plugin_version="0", run="r", step=STEP, epoch=10, epoch_step=0, parameters=(),
        ema=ema if holds_ema else None, validation=validation, leg=leg or LegRecord(),
    )  # fmt: skip
    return BackupContents(name=NAME, step=STEP, epoch=10, holds_ema=holds_ema, manifest=manifest)


@pytest.mark.parametrize(
    ("differences", "weights"),
    [
        ([-0.1, -0.11, -0.09], WeightSet.EMA),
        ([0.1, 0.11, 0.09], WeightSet.NON_EMA),
        # lower, though nobody could say whether by chance
        ([-0.5, 0.3, 0.1], WeightSet.EMA),
        ([0.0, 0.0, 0.0], WeightSet.NON_EMA),
        ([float("nan"), 0.0, 0.0], WeightSet.NON_EMA),
    ],
)
@pytest.mark.parametrize("ema_on", [True, False])
def test_the_lower_loss_wins(differences: list[float], weights: WeightSet, ema_on: bool) -> None:
    plan = plan_resume(BEST, ema_on=ema_on, backup=backup(measured(differences)))
    named = plan_resume(
        EmaSelectSettings(resume_weights=ResumeWeights(str(weights)), resume_leg="x"),
        ema_on=ema_on,
        backup=backup(measured(differences)),
    )
    assert (plan.weights, plan.ema, plan.park) == (weights, named.ema, named.park)
    assert plan.leg == LegRecord(choices=resume_choices(BEST), began_from=NAME, began_at_step=STEP, best=str(weights))


def test_the_sentence_says_both_losses_how_sure_and_when() -> None:
    validation = measured([-0.1, -0.125, -0.075], step=300)
    assert plan_resume(BEST, ema_on=True, backup=backup(validation)).sentence == (
        f"Resumed from backup {NAME} (step 400, epoch 10): its EMA weights were loaded (its non-EMA weights stay in "
        "that backup), its EMA goes on, and the optimizer state was kept. BEST is EMA by validation loss: EMA 2.233 "
        "against non-EMA 2.333 (difference 0.1 ± 0.01443, probable; 3 batches), measured at step 300, 100 steps "
        "before the backup."
    )
    sentence = plan_resume(BEST, ema_on=True, backup=backup(measured([0.5, -0.3, -0.1]))).sentence
    assert sentence.endswith(
        " BEST is non-EMA by validation loss: non-EMA 2.333 against EMA 2.367 (difference 0.03333 ± 0.2404, cannot be "
        "told whether that is chance; 3 batches), measured at step 400."
    )
    assert plan_resume(BEST, ema_on=True, backup=backup(measured([0.0] * 3, step=399))).sentence.endswith(
        " BEST: the validation loss of both sets is EMA 2.333 against non-EMA 2.333, measured at step 399, 1 step "
        "before the backup; where they are the same, non-EMA is taken."
    )


ADVICE = (
    " Set ema_select.resume_weights to EMA or NON_EMA, or name a backup in ema_select.resume_backup that knows both "
    "losses (`onetrainer-ema-select list WORKSPACE` names the better set of each). Backups know them where "
    "OneTrainer's validation is on (validation: true, and a concept of the type VALIDATION) and EMA too."
)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (
            backup(None),
            "says nothing of the validation loss of its two sets: in its leg of the run there was no validation before "
            "it was made.",
        ),
        (
            replace(backup(None), manifest=None),
            "was made without the plugin, so it says nothing of the validation loss of its two sets.",
        ),
        (
            backup(measured([-0.1] * 3), holds_ema=False),
            "holds one set only, non-EMA, so there is nothing to choose from.",
        ),
        (
            backup(
                judge(step=399, epoch=10, labels=["a"], ema=[float("nan")], non_ema=[float("inf")]),
            ),
            "says that neither set's validation loss was a finite number at step 399, so none is better.",
        ),
    ],
    ids=["no validation", "plain", "one set", "not finite"],
)
def test_what_cannot_be_told_is_refused(contents: BackupContents, problem: str) -> None:
    with pytest.raises(ResumeError) as caught:
        plan_resume(BEST, ema_on=True, backup=contents)
    assert str(caught.value) == (
        f"ema_select.resume_weights is BEST, but backup {NAME} (step 400, epoch 10) {problem}{ADVICE}"
    )
    assert caught.value.key == "resume_weights"


def test_a_crash_goes_on_whatever_the_validation_says_by_then() -> None:
    first = plan_resume(BEST, ema_on=True, backup=backup(measured([-0.1, -0.11, -0.09])))
    assert first.weights is WeightSet.EMA
    for later in (measured([0.1, 0.11, 0.09]), measured([-0.1, -0.11, -0.09]), None):
        again = plan_resume(BEST, ema_on=True, backup=backup(later, leg=first.leg))
        assert (again.weights, again.ema, again.leg) == (WeightSet.NON_EMA, EmaSource.BACKUP, first.leg)
        assert again.sentence.endswith(
            "The resume_* choices were applied at step 400 and are not applied twice; set ema_select.resume_leg to a "
            "new text to apply them again. BEST was EMA then."
        )


def test_a_fresh_start_has_no_use_for_it() -> None:
    assert plan_resume(BEST, ema_on=True, backup=None).weights is WeightSet.NON_EMA
