"""Which setting is shown where in the window, when it has a meaning, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from onetrainer_ema_select.choices import MilestoneBackups, SaveSets
from onetrainer_ema_select.errors import SettingsError
from onetrainer_ema_select.settings import EmaSelectSettings, allowed_values, parse_settings

#: Of the training tab, where OneTrainer has its own EMA options.
AVERAGE: Final = ("enabled", "ema_dtype", "ema_half_life", "post_hoc_sigma_rels", "post_hoc_every")
#: Of the backup tab; the switch is there as well.
SAVES: Final = ("save_sets", "primary_set", "save_rounding")
MILESTONES: Final = ("milestones", "milestone_backups", "milestone_keep")
RESUME: Final = (
    "resume_weights",
    "resume_sigma_rel",
    "resume_optimizer",
    "resume_ema",
    "resume_leg",
    "resume_backup",
)
KEYS: Final = AVERAGE + SAVES + MILESTONES + RESUME


def shown(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some keys that this version lets be set to more than one value."""
    return tuple(key for key in keys if (values := allowed_values(key)) is None or len(values) > 1)


def usable(values: Mapping[str, Any], *, ema_on: bool, continues: bool) -> frozenset[str]:
    """The keys that have a meaning as things stand; the others are greyed out, and keep their values.

    Args:
        values: The section's values by key, as the window has them.
        ema_on: Whether OneTrainer's own ``ema`` is GPU or CPU.
        continues: Whether OneTrainer is to continue from a backup.
    """
    if not values["enabled"]:
        return frozenset({"enabled"})
    meaningless: set[str] = set()
    if not ema_on:
        meaningless |= {"save_sets", "primary_set", "ema_dtype", "ema_half_life", "resume_ema"}
        meaningless |= {"post_hoc_sigma_rels", "post_hoc_every"}
    if str(values["save_sets"]) in (str(SaveSets.EMA), str(SaveSets.NON_EMA)):
        meaningless.add("primary_set")
    if not str(values["milestones"]).strip():
        meaningless |= {"milestone_backups", "milestone_keep"}
    if str(values["milestone_backups"]) != str(MilestoneBackups.ALL):
        meaningless.add("milestone_keep")
    if not continues:
        # a backup that is named is refused then: the user must be able to empty the field
        meaningless |= set(RESUME) - ({"resume_backup"} if str(values["resume_backup"]).strip() else set())
    if str(values["resume_weights"]) != "POST_HOC":
        meaningless.add("resume_sigma_rel")
    if not str(values["post_hoc_sigma_rels"]).strip():
        meaningless.add("post_hoc_every")
    return frozenset(KEYS) - meaningless


def state_sentence(values: Mapping[str, Any], *, ema_on: bool) -> str:
    """What the plugin will do in the next run, in one sentence."""
    if not values["enabled"]:
        return "Off: OneTrainer works exactly as without the plugin."
    if not ema_on:
        return (
            "On, but EMA is OFF (training tab): this run has one set, the non-EMA weights. Set EMA to GPU or CPU to "
            "keep both."
        )
    match str(values["save_sets"]):
        case "EMA":
            return "On: both sets are kept in backups, and every save writes the EMA set alone."
        case "NON_EMA":
            return "On: both sets are kept in backups, and every save writes the non-EMA set alone."
        case "BOTH_AT_MILESTONES":
            return "On: milestones and the end of the run write both sets, other saves the primary set alone."
        case _:
            return "On: every save writes both sets, EMA and non-EMA, side by side."


def value_problem(key: str, text: str) -> str | None:
    """What is wrong with a text that was typed for a key, in a few words; None if nothing is."""
    try:
        parse_settings({key: text})
    except SettingsError as error:
        problem = error.problems[0]
        return f"{problem.found}; {problem.expected}"
    return None


def title(key: str) -> str:
    """A key's label."""
    return EmaSelectSettings.model_fields[key].title or key


def tooltip(key: str) -> str:
    """A key's help text, with an example where its values cannot be listed, and its name in configs."""
    field = EmaSelectSettings.model_fields[key]
    example = f" For example: {field.examples[0]}." if field.examples and allowed_values(key) is None else ""
    return f"{field.description}{example} (ema_select.{key})"
