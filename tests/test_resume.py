from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.manifest import EmaRecord, LegRecord, Manifest, ParkedRecord
from onetrainer_ema_select.resume import (
    BackupContents,
    EmaSource,
    NameMatch,
    continues_leg,
    match_names,
    plan_resume,
    resume_choices,
)
from onetrainer_ema_select.settings import EmaSelectSettings, WeightSet

NAME, STEP, EPOCH = "2026-03-01_12-00-00-backup-4000-10-0", 4000, 10
# Parked before or after the leg of the backup began, at step 3000.
BEGAN_AT, PARKED_BEFORE, PARKED_SINCE = 3000, 2500, 3500

# What a run is resumed from. "plain": made by OneTrainer without the plugin.
CONTENTS: dict[str, tuple[bool, bool, int | None]] = {
    # name:                (ours, holds an EMA, step at which one was parked)
    "plain": (False, False, None),
    "plain+ema": (False, True, None),
    "plain+parked": (False, False, PARKED_BEFORE),
    "ours": (True, False, None),
    "ours+ema": (True, True, None),
    "ours+parked": (True, False, PARKED_BEFORE),
    "ours+parked-since": (True, False, PARKED_SINCE),
    "ours+ema+parked": (True, True, PARKED_BEFORE),
}


def contents(name: str, *, leg: LegRecord | None = None) -> BackupContents:
    ours, holds_ema, parked_at = CONTENTS[name]
    parked = None if parked_at is None else ParkedRecord(name="older-ema", step=parked_at)
    manifest = None
    if ours:
        ema = EmaRecord(file="ema/ema.pt", dtype="FLOAT_32", decay=0.9, update_step_interval=1, updates=1, step=STEP)
        manifest = Manifest(
            kind="backup",
            plugin_version="0",
            run="r",
            step=STEP,
            epoch=EPOCH,
            epoch_step=0,
            parameters=(),
            ema=ema if holds_ema else None,
            leg=leg or LegRecord(),
            parked=(parked,) if parked is not None else (),
        )
    return BackupContents(name=NAME, step=STEP, epoch=EPOCH, holds_ema=holds_ema, manifest=manifest, parked=parked)


# Choices that are made now: the backup is plain, or belongs to a leg that began with others.
#
#   from               ema   weights   resume_ema    loads     average          parks
BEGINNING = """
    plain              off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    plain              off   NON_EMA   RESTART       NON_EMA   OFF              -
    plain              off   EMA       CONTINUE      refused
    plain              off   EMA       RESTART       refused
    plain              on    NON_EMA   CONTINUE      NON_EMA   LOADED_WEIGHTS   -
    plain              on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    plain              on    EMA       CONTINUE      refused
    plain              on    EMA       RESTART       refused

    plain+ema          off   NON_EMA   CONTINUE      NON_EMA   OFF              parks
    plain+ema          off   NON_EMA   RESTART       NON_EMA   OFF              parks
    plain+ema          off   EMA       CONTINUE      EMA       OFF              parks
    plain+ema          off   EMA       RESTART       EMA       OFF              parks
    plain+ema          on    NON_EMA   CONTINUE      NON_EMA   BACKUP           -
    plain+ema          on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    plain+ema          on    EMA       CONTINUE      EMA       BACKUP           -
    plain+ema          on    EMA       RESTART       EMA       LOADED_WEIGHTS   -

    plain+parked       off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    plain+parked       off   NON_EMA   RESTART       NON_EMA   OFF              -
    plain+parked       off   EMA       CONTINUE      refused
    plain+parked       off   EMA       RESTART       refused
    plain+parked       on    NON_EMA   CONTINUE      NON_EMA   PARKED           -
    plain+parked       on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    plain+parked       on    EMA       CONTINUE      refused
    plain+parked       on    EMA       RESTART       refused

    ours               off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours               off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours               off   EMA       CONTINUE      refused
    ours               off   EMA       RESTART       refused
    ours               on    NON_EMA   CONTINUE      NON_EMA   LOADED_WEIGHTS   -
    ours               on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours               on    EMA       CONTINUE      refused
    ours               on    EMA       RESTART       refused

    ours+ema           off   NON_EMA   CONTINUE      NON_EMA   OFF              parks
    ours+ema           off   NON_EMA   RESTART       NON_EMA   OFF              parks
    ours+ema           off   EMA       CONTINUE      EMA       OFF              parks
    ours+ema           off   EMA       RESTART       EMA       OFF              parks
    ours+ema           on    NON_EMA   CONTINUE      NON_EMA   BACKUP           -
    ours+ema           on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours+ema           on    EMA       CONTINUE      EMA       BACKUP           -
    ours+ema           on    EMA       RESTART       EMA       LOADED_WEIGHTS   -

    ours+parked        off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours+parked        off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours+parked        off   EMA       CONTINUE      refused
    ours+parked        off   EMA       RESTART       refused
    ours+parked        on    NON_EMA   CONTINUE      NON_EMA   PARKED           -
    ours+parked        on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours+parked        on    EMA       CONTINUE      refused
    ours+parked        on    EMA       RESTART       refused

    ours+parked-since  off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours+parked-since  off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours+parked-since  off   EMA       CONTINUE      refused
    ours+parked-since  off   EMA       RESTART       refused
    ours+parked-since  on    NON_EMA   CONTINUE      NON_EMA   PARKED           -
    ours+parked-since  on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours+parked-since  on    EMA       CONTINUE      refused
    ours+parked-since  on    EMA       RESTART       refused

    ours+ema+parked    off   NON_EMA   CONTINUE      NON_EMA   OFF              parks
    ours+ema+parked    off   NON_EMA   RESTART       NON_EMA   OFF              parks
    ours+ema+parked    off   EMA       CONTINUE      EMA       OFF              parks
    ours+ema+parked    off   EMA       RESTART       EMA       OFF              parks
    ours+ema+parked    on    NON_EMA   CONTINUE      NON_EMA   BACKUP           -
    ours+ema+parked    on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours+ema+parked    on    EMA       CONTINUE      EMA       BACKUP           -
    ours+ema+parked    on    EMA       RESTART       EMA       LOADED_WEIGHTS   -
"""

# The same choices as the leg that the backup belongs to: it goes on from its live weights, whatever they say.
CONTINUING = """
    ours               off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours               off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours               off   EMA       CONTINUE      NON_EMA   OFF              -
    ours               off   EMA       RESTART       NON_EMA   OFF              -
    ours               on    NON_EMA   CONTINUE      NON_EMA   LOADED_WEIGHTS   -
    ours               on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours               on    EMA       CONTINUE      NON_EMA   LOADED_WEIGHTS   -
    ours               on    EMA       RESTART       NON_EMA   LOADED_WEIGHTS   -

    ours+ema           off   NON_EMA   CONTINUE      NON_EMA   OFF              parks
    ours+ema           off   NON_EMA   RESTART       NON_EMA   OFF              parks
    ours+ema           off   EMA       CONTINUE      NON_EMA   OFF              parks
    ours+ema           off   EMA       RESTART       NON_EMA   OFF              parks
    ours+ema           on    NON_EMA   CONTINUE      NON_EMA   BACKUP           -
    ours+ema           on    NON_EMA   RESTART       NON_EMA   BACKUP           -
    ours+ema           on    EMA       CONTINUE      NON_EMA   BACKUP           -
    ours+ema           on    EMA       RESTART       NON_EMA   BACKUP           -

    ours+parked        off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours+parked        off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours+parked        off   EMA       CONTINUE      NON_EMA   OFF              -
    ours+parked        off   EMA       RESTART       NON_EMA   OFF              -
    ours+parked        on    NON_EMA   CONTINUE      NON_EMA   PARKED           -
    ours+parked        on    NON_EMA   RESTART       NON_EMA   LOADED_WEIGHTS   -
    ours+parked        on    EMA       CONTINUE      NON_EMA   PARKED           -
    ours+parked        on    EMA       RESTART       NON_EMA   LOADED_WEIGHTS   -

    ours+parked-since  off   NON_EMA   CONTINUE      NON_EMA   OFF              -
    ours+parked-since  off   NON_EMA   RESTART       NON_EMA   OFF              -
    ours+parked-since  off   EMA       CONTINUE      NON_EMA   OFF              -
    ours+parked-since  off   EMA       RESTART       NON_EMA   OFF              -
    ours+parked-since  on    NON_EMA   CONTINUE      NON_EMA   PARKED           -
    ours+parked-since  on    NON_EMA   RESTART       NON_EMA   PARKED           -
    ours+parked-since  on    EMA       CONTINUE      NON_EMA   PARKED           -
    ours+parked-since  on    EMA       RESTART       NON_EMA   PARKED           -

    ours+ema+parked    off   NON_EMA   CONTINUE      NON_EMA   OFF              parks
    ours+ema+parked    off   NON_EMA   RESTART       NON_EMA   OFF              parks
    ours+ema+parked    off   EMA       CONTINUE      NON_EMA   OFF              parks
    ours+ema+parked    off   EMA       RESTART       NON_EMA   OFF              parks
    ours+ema+parked    on    NON_EMA   CONTINUE      NON_EMA   BACKUP           -
    ours+ema+parked    on    NON_EMA   RESTART       NON_EMA   BACKUP           -
    ours+ema+parked    on    EMA       CONTINUE      NON_EMA   BACKUP           -
    ours+ema+parked    on    EMA       RESTART       NON_EMA   BACKUP           -
"""


@dataclass(frozen=True)
class Row:
    contents: str
    ema_on: bool
    weights: str
    resume_ema: str
    loads: str
    average: str = ""
    parks: bool = False

    def __str__(self) -> str:
        return f"{self.contents}, ema {'on' if self.ema_on else 'off'}, {self.weights}, {self.resume_ema}"

    def settings(self, optimizer: str, leg: str = "") -> EmaSelectSettings:
        return EmaSelectSettings(
            resume_weights=self.weights, resume_ema=self.resume_ema, resume_optimizer=optimizer, resume_leg=leg
        )


def rows(table: str) -> list[Row]:
    found = []
    for line in table.splitlines():
        if line.strip():
            name, ema, *words = line.split()
            parks = words[-1] == "parks"
            found.append(Row(name, ema == "on", *words[:4], parks=parks))
    return found


def choices(**changed: str) -> dict[str, str]:
    """As they stand in the manifests on people's disks: neither names nor values may ever change."""
    return {
        "resume_weights": "NON_EMA",
        "resume_backup": "",
        "resume_optimizer": "KEEP",
        "resume_ema": "CONTINUE",
        "resume_leg": "",
        **changed,
    }


def test_the_tables_hold_every_combination_once() -> None:
    for table, names in ((BEGINNING, set(CONTENTS)), (CONTINUING, {name for name in CONTENTS if "ours" in name})):
        keys = [(row.contents, row.ema_on, row.weights, row.resume_ema) for row in rows(table)]
        assert len(keys) == len(set(keys)) == len(names) * 8
        assert {key[0] for key in keys} == names


@pytest.mark.parametrize("row", rows(BEGINNING), ids=str)
@pytest.mark.parametrize("optimizer", ["KEEP", "RESET"])
@pytest.mark.parametrize("before", ["another leg", "a run that was never resumed"])
def test_choices_that_were_not_made_yet_begin_a_leg(row: Row, optimizer: str, before: str) -> None:
    # The text alone makes it another leg, so that each row is tried with choices that are equal otherwise.
    now = {"resume_weights": row.weights, "resume_ema": row.resume_ema, "resume_optimizer": optimizer}
    old = LegRecord(choices=choices(**now), began_from="older", began_at_step=BEGAN_AT)
    backup = contents(row.contents, leg=old if before == "another leg" else None)

    def plan():
        return plan_resume(row.settings(optimizer, leg="2"), ema_on=row.ema_on, backup=backup)

    if row.loads == "refused":
        with pytest.raises(ResumeError) as caught:
            plan()
        assert (caught.value.key, caught.value.expected, caught.value.found) == ("resume_weights", "EMA", "NON_EMA")
        return
    found = plan()
    assert (found.weights, found.ema, found.park) == (WeightSet[row.loads], EmaSource[row.average], row.parks)
    assert found.reset_optimizer == (optimizer == "RESET")
    assert found.leg == LegRecord(choices=choices(**now, resume_leg="2"), began_from=NAME, began_at_step=STEP)
    assert found.sentence.startswith(f"Resumed from backup {NAME} (step 4000, epoch 10): ")


@pytest.mark.parametrize("row", rows(CONTINUING), ids=str)
@pytest.mark.parametrize("optimizer", ["KEEP", "RESET"])
def test_choices_that_were_made_already_are_not_made_twice(row: Row, optimizer: str) -> None:
    made = choices(resume_weights=row.weights, resume_ema=row.resume_ema, resume_optimizer=optimizer)
    leg = LegRecord(choices=made, began_from="older", began_at_step=BEGAN_AT)

    found = plan_resume(row.settings(optimizer), ema_on=row.ema_on, backup=contents(row.contents, leg=leg))

    assert (found.weights, found.ema, found.park) == (WeightSet[row.loads], EmaSource[row.average], row.parks)
    assert not found.reset_optimizer
    assert found.leg == leg
    assert found.sentence.startswith(f"Going on from backup {NAME} (step 4000, epoch 10): its non-EMA weights")


@pytest.mark.parametrize(
    "row", [row for row in rows(CONTINUING) if (row.weights, row.resume_ema) == ("NON_EMA", "CONTINUE")], ids=str
)
def test_a_run_that_was_never_resumed_goes_on_under_the_defaults(row: Row) -> None:
    found = plan_resume(EmaSelectSettings(), ema_on=row.ema_on, backup=contents(row.contents))
    assert (found.weights, found.ema, found.park) == (WeightSet[row.loads], EmaSource[row.average], row.parks)
    assert not found.reset_optimizer
    assert found.leg == LegRecord()  # still one that was never resumed: it would begin a leg with other choices


@pytest.mark.parametrize("ema_on", [True, False])
@pytest.mark.parametrize(
    "changed", [{}, {"resume_weights": "EMA", "resume_ema": "RESTART", "resume_optimizer": "RESET"}]
)
def test_a_fresh_start_has_nothing_to_choose_from(ema_on: bool, changed: dict[str, str]) -> None:
    found = plan_resume(EmaSelectSettings(**changed), ema_on=ema_on, backup=None)
    assert found.weights is WeightSet.NON_EMA
    assert found.ema is (EmaSource.LOADED_WEIGHTS if ema_on else EmaSource.OFF)
    assert not found.park
    assert not found.reset_optimizer
    assert found.leg == LegRecord()


#   ema   weights   resume_ema   loads     average
FRESH = """
    off   NON_EMA   CONTINUE     NON_EMA   OFF
    off   NON_EMA   RESTART      NON_EMA   OFF
    off   EMA       CONTINUE     NON_EMA   OFF
    off   EMA       RESTART      NON_EMA   OFF
    on    NON_EMA   CONTINUE     NON_EMA   LOADED_WEIGHTS
    on    NON_EMA   RESTART      NON_EMA   LOADED_WEIGHTS
    on    EMA       CONTINUE     NON_EMA   LOADED_WEIGHTS
    on    EMA       RESTART      NON_EMA   LOADED_WEIGHTS
"""


@pytest.mark.parametrize("line", FRESH.strip().splitlines(), ids=lambda line: " ".join(line.split()[:3]))
@pytest.mark.parametrize("optimizer", ["KEEP", "RESET"])
def test_a_fresh_start_is_the_same_under_every_choice(line: str, optimizer: str) -> None:
    ema, weights, resume_ema, loads, average = line.split()
    settings = EmaSelectSettings(resume_weights=weights, resume_ema=resume_ema, resume_optimizer=optimizer)
    found = plan_resume(settings, ema_on=ema == "on", backup=None)
    assert (found.weights, found.ema, found.park) == (WeightSet[loads], EmaSource[average], False)
    assert not found.reset_optimizer
    assert found.leg == LegRecord()


# -- legs -----------------------------------------------------------------------------------------------------


def manifest_of(leg: LegRecord) -> Manifest | None:
    return contents("ours+ema", leg=leg).manifest


def test_the_choices_of_a_leg() -> None:
    assert resume_choices(EmaSelectSettings()) == choices()
    changed = {
        "resume_weights": "EMA",
        "resume_backup": "b",
        "resume_optimizer": "RESET",
        "resume_ema": "RESTART",
        "resume_leg": "second",
    }
    assert resume_choices(EmaSelectSettings(**changed, milestones="10 epochs", save_sets="EMA")) == changed


OTHER_CHOICES = [
    {"resume_weights": "EMA"},
    {"resume_backup": NAME},
    {"resume_optimizer": "RESET"},
    {"resume_ema": "RESTART"},
    {"resume_leg": "second"},
]


@pytest.mark.parametrize("changed", OTHER_CHOICES, ids=str)
def test_one_other_choice_is_another_leg(changed: dict[str, str]) -> None:
    plain, other = EmaSelectSettings(), EmaSelectSettings(**changed)
    never, by_defaults = manifest_of(LegRecord()), manifest_of(LegRecord(choices=choices()))
    by_others = manifest_of(LegRecord(choices=choices(**changed)))

    assert [continues_leg(plain, leg) for leg in (None, never, by_defaults, by_others)] == [False, True, True, False]
    assert [continues_leg(other, leg) for leg in (None, never, by_defaults, by_others)] == [False, False, False, True]


def test_what_has_nothing_to_do_with_resuming_is_no_other_leg() -> None:
    leg = manifest_of(LegRecord(choices=choices(resume_weights="EMA")))
    changed = EmaSelectSettings(resume_weights="EMA", milestones="every 5 epochs", primary_set="NON_EMA")
    assert continues_leg(changed, leg)


def test_going_back_to_the_defaults_changes_nothing_but_the_leg() -> None:
    leg = LegRecord(choices=choices(resume_weights="EMA", resume_optimizer="RESET"), began_at_step=BEGAN_AT)
    found = plan_resume(EmaSelectSettings(), ema_on=True, backup=contents("ours+ema", leg=leg))
    assert (found.weights, found.ema, found.reset_optimizer) == (WeightSet.NON_EMA, EmaSource.BACKUP, False)
    assert found.leg.choices == choices()


def test_a_crash_in_a_leg_that_began_with_the_ema_goes_on() -> None:
    """The whole story: EMA taken once, a crash, the same command again, then a new leg asked for."""
    settings = EmaSelectSettings(resume_weights="EMA", resume_optimizer="RESET")
    first = plan_resume(settings, ema_on=True, backup=contents("ours+ema"))
    assert (first.weights, first.reset_optimizer) == (WeightSet.EMA, True)
    again = plan_resume(settings, ema_on=True, backup=contents("ours+ema", leg=first.leg))
    assert (again.weights, again.reset_optimizer) == (WeightSet.NON_EMA, False)
    once_more = plan_resume(settings, ema_on=True, backup=contents("ours+ema", leg=again.leg))
    assert once_more == again
    new = EmaSelectSettings(resume_weights="EMA", resume_optimizer="RESET", resume_leg="2")
    asked = plan_resume(new, ema_on=True, backup=contents("ours+ema", leg=again.leg))
    assert (asked.weights, asked.reset_optimizer) == (WeightSet.EMA, True)


# -- sentences ------------------------------------------------------------------------------------------------

HEAD = f"backup {NAME} (step 4000, epoch 10)"
ONCE = (
    " The resume_* choices were applied at step 3000 and are not applied twice; set ema_select.resume_leg to a new "
    "text to apply them again."
)

SENTENCES: list[tuple[str, bool, dict[str, str], str | None, str]] = [
    (
        "ours+ema",
        True,
        {"resume_weights": "EMA"},
        None,
        f"Resumed from {HEAD}: its EMA weights were loaded (its non-EMA weights stay in that backup), its EMA goes "
        "on, and the optimizer state was kept.",
    ),
    (
        "ours+ema",
        True,
        {"resume_weights": "EMA", "resume_ema": "RESTART", "resume_optimizer": "RESET"},
        None,
        f"Resumed from {HEAD}: its EMA weights were loaded (its non-EMA weights stay in that backup), a new EMA "
        "begins at the loaded weights (resume_ema: RESTART), and the optimizer starts anew.",
    ),
    (
        "ours+ema",
        False,
        {"resume_weights": "EMA"},
        None,
        f"Resumed from {HEAD}: its EMA weights were loaded (its non-EMA weights stay in that backup), its EMA was "
        "parked because EMA is off in OneTrainer (ema: OFF), and the optimizer state was kept.",
    ),
    (
        "plain",
        True,
        {},
        None,
        f"Resumed from {HEAD}: its non-EMA weights were loaded, a new EMA begins at the loaded weights because the "
        "backup holds none, and the optimizer state was kept.",
    ),
    (
        "plain",
        False,
        {},
        None,
        f"Resumed from {HEAD}: its non-EMA weights were loaded, there is no EMA because EMA is off in OneTrainer "
        "(ema: OFF), and the optimizer state was kept.",
    ),
    (
        "ours+parked",
        True,
        {"resume_leg": "back"},
        None,
        f"Resumed from {HEAD}: its non-EMA weights were loaded, the EMA parked at step 2500 was taken up again (it "
        "has not seen the 1500 steps since; set ema_select.resume_ema to RESTART to begin a new one), and the "
        "optimizer state was kept.",
    ),
    (
        "ours+ema",
        True,
        {},
        None,
        f"Going on from {HEAD}: its non-EMA weights were loaded, its EMA goes on, and the optimizer state was kept.",
    ),
    (
        "ours+ema",
        True,
        {},
        "same",
        f"Going on from {HEAD}: its non-EMA weights were loaded, its EMA goes on, and the optimizer state was kept.",
    ),
    (
        "ours+ema",
        True,
        {"resume_weights": "EMA"},
        "same",
        f"Going on from {HEAD}: its non-EMA weights were loaded, its EMA goes on, and the optimizer state was "
        f"kept.{ONCE}",
    ),
    (
        "ours+ema",
        False,
        {"resume_optimizer": "RESET"},
        "same",
        f"Going on from {HEAD}: its non-EMA weights were loaded, its EMA was parked because EMA is off in OneTrainer "
        f"(ema: OFF), and the optimizer state was kept.{ONCE}",
    ),
    (
        "ours+parked",
        True,
        {},
        None,
        f"Going on from {HEAD}: its non-EMA weights were loaded, the EMA parked at step 2500 was taken up again (it "
        "has not seen the 1500 steps since; set ema_select.resume_ema to RESTART to begin a new one), and the "
        "optimizer state was kept.",
    ),
    (
        "ours+parked",
        True,
        {"resume_ema": "RESTART"},
        "same",
        f"Going on from {HEAD}: its non-EMA weights were loaded, a new EMA begins at the loaded weights "
        f"(resume_ema: RESTART), and the optimizer state was kept.{ONCE}",
    ),
]


@pytest.mark.parametrize(("name", "ema_on", "changed", "leg", "sentence"), SENTENCES)
def test_one_sentence_says_what_was_decided(
    name: str, ema_on: bool, changed: dict[str, str], leg: str | None, sentence: str
) -> None:
    record = LegRecord(choices=choices(**changed), began_at_step=BEGAN_AT) if leg == "same" else None
    found = plan_resume(EmaSelectSettings(**changed), ema_on=ema_on, backup=contents(name, leg=record))
    assert found.sentence == sentence


def test_the_sentences_of_a_fresh_start() -> None:
    with_ema = plan_resume(EmaSelectSettings(), ema_on=True, backup=None)
    assert with_ema.sentence == ("Training starts from the model as configured; the EMA begins at the model's weights.")
    without = plan_resume(EmaSelectSettings(), ema_on=False, backup=None)
    assert without.sentence == (
        "Training starts from the model as configured; EMA is off in OneTrainer (ema: OFF), so there is one set, "
        "non-EMA; set ema to CPU or GPU for both."
    )


def test_what_a_refusal_says() -> None:
    settings = EmaSelectSettings(resume_weights="EMA")
    with pytest.raises(ResumeError) as caught:
        plan_resume(settings, ema_on=True, backup=contents("plain"))
    assert str(caught.value) == (
        f"ema_select.resume_weights is EMA, but {HEAD} holds no EMA. Set ema_select.resume_weights to NON_EMA, or "
        "name a backup that holds one in ema_select.resume_backup; `onetrainer-ema-select list WORKSPACE` shows "
        "which do."
    )
    with pytest.raises(ResumeError) as caught:
        plan_resume(settings, ema_on=True, backup=contents("ours+parked"))
    assert str(caught.value) == (
        f"ema_select.resume_weights is EMA, but {HEAD} holds no EMA. An EMA was parked at step 2500: to go on with "
        "its average beside the newer weights, set ema_select.resume_weights to NON_EMA and ema to CPU or GPU; to "
        "go back to it, name a backup of that time in ema_select.resume_backup."
    )


# -- names ----------------------------------------------------------------------------------------------------


def test_names_that_all_match_say_nothing() -> None:
    match = match_names(["b", "a"], ["a", "b"])
    assert match == NameMatch(matched=("a", "b"), new=(), gone=())
    assert match.sentences() == ()


def test_names_are_matched_in_the_trained_order_and_the_rest_is_named() -> None:
    match = match_names(["gone1", "c", "a", "gone2"], ["a", "new1", "b", "c", "new2", "new3"])
    assert match == NameMatch(matched=("a", "c"), new=("new1", "b", "new2", "new3"), gone=("gone1", "gone2"))
    assert match.sentences() == (
        "4 trained weights are not in the saved EMA; their average begins at the loaded weights: new1, b, new2 and "
        "1 more.",
        "2 weights of the saved EMA are not trained any more; their average stays in the backup: gone1, gone2.",
    )


def test_names_that_do_not_match_at_all_are_refused() -> None:
    saved, trained = ["lora.a", "lora.b", "lora.c", "lora.d", "lora.e"], ["unet.a", "unet.b", "unet.c"]
    with pytest.raises(ResumeError) as caught:
        match_names(saved, trained)
    assert str(caught.value) == (
        "None of the 5 weights of the saved EMA (lora.a, lora.b, lora.c and 2 more) is among the 3 that are trained "
        "now (unet.a, unet.b, unet.c). Restore the training method and layer filter of that run, or set "
        "ema_select.resume_ema to RESTART and ema_select.resume_weights to NON_EMA."
    )
    assert (caught.value.expected, caught.value.found) == (
        "unet.a, unet.b, unet.c",
        "lora.a, lora.b, lora.c and 2 more",
    )


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(NAMES, NAMES)
def test_every_name_is_accounted_for_once(saved: list[str], trained: list[str]) -> None:
    if not set(saved) & set(trained):
        with pytest.raises(ResumeError):
            match_names(saved, trained)
        return
    match = match_names(saved, trained)
    assert list(match.matched) == [name for name in trained if name in saved]
    assert sorted(match.matched + match.new) == sorted(trained)
    assert sorted(match.matched + match.gone) == sorted(saved)


POST_HOC = {"resume_weights": "POST_HOC", "resume_sigma_rel": "0.10"}


@pytest.mark.parametrize("restart", [False, True])
def test_a_post_hoc_average_is_loaded_once(restart: bool) -> None:
    settings = EmaSelectSettings(**POST_HOC, resume_ema="RESTART" if restart else "CONTINUE")
    plan = plan_resume(settings, ema_on=True, backup=contents("ours+ema"))
    assert (plan.weights, plan.sigma_rel, plan.restarts) == (WeightSet.NON_EMA, 0.1, restart)
    assert plan.ema is (EmaSource.LOADED_WEIGHTS if restart else EmaSource.BACKUP)
    assert "its post-hoc EMA (sigma_rel 0.1) weights were loaded (its non-EMA weights stay in that backup)" in (
        plan.sentence
    )
    assert plan.leg.choices is not None
    assert plan.leg.choices["resume_sigma_rel"] == "0.1"
    again = plan_resume(settings, ema_on=True, backup=contents("ours+ema", leg=plan.leg))
    assert (again.sigma_rel, again.restarts, again.leg) == (None, False, plan.leg)
    assert "are not applied twice" in again.sentence
    # the same length typed otherwise is the same choice, another one is not
    same = EmaSelectSettings(**{**POST_HOC, "resume_sigma_rel": "0.1"}, resume_ema=settings.resume_ema)
    assert plan_resume(same, ema_on=True, backup=contents("ours+ema", leg=plan.leg)).sigma_rel is None
    other = EmaSelectSettings(**{**POST_HOC, "resume_sigma_rel": "0.05"}, resume_ema=settings.resume_ema)
    assert plan_resume(other, ema_on=True, backup=contents("ours+ema", leg=plan.leg)).sigma_rel == 0.05


def test_a_length_without_post_hoc_changes_no_leg() -> None:
    plain, with_length = EmaSelectSettings(), EmaSelectSettings(resume_sigma_rel="0.10")
    assert resume_choices(plain) == resume_choices(with_length)
    assert "resume_sigma_rel" not in resume_choices(plain)
