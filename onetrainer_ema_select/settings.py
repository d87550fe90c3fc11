"""The `ema_select` section: the one source of its keys, types, defaults, help texts and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from onetrainer_ema_select import length, schedule
from onetrainer_ema_select.choices import (
    Choice,
    EmaDtype,
    MilestoneBackups,
    ResumeEma,
    ResumeOptimizer,
    ResumeWeights,
    SaveRounding,
    SaveSets,
    WeightSet,
)
from onetrainer_ema_select.errors import SECTION, SettingProblem, SettingsError
from onetrainer_ema_select.settings_advice import (
    INVALID_INTERVAL,
    INVALID_LENGTH,
    INVALID_MILESTONES,
    INVALID_SIGMA_REL,
    INVALID_SIGMA_RELS,
    section_problem,
    unknown_key_problem,
    value_problem,
)
from onetrainer_ema_select.sigma_rel import parse_sigma_rels

__all__ = [
    "SECTION",
    "Choice",
    "EmaDtype",
    "EmaSelectSettings",
    "MilestoneBackups",
    "ResumeEma",
    "ResumeOptimizer",
    "ResumeWeights",
    "SaveRounding",
    "SaveSets",
    "WeightSet",
    "allowed_values",
    "parse_settings",
]

if TYPE_CHECKING:
    from typing_extensions import LiteralString

VERSION_KEY: Final = "__version"
"""OneTrainer writes it into every section; it says nothing about ours."""


def _read_sigma_rel(text: str) -> float | None:
    found = parse_sigma_rels(text)
    if len(found) > 1:
        raise ValueError("there is more than one length")
    return found[0] if found else None


READ: Final[Mapping[str, tuple[Callable[[str], object], LiteralString]]] = {
    "milestones": (schedule.parse_milestones, INVALID_MILESTONES),
    "ema_half_life": (length.parse_half_life, INVALID_LENGTH),
    "resume_sigma_rel": (_read_sigma_rel, INVALID_SIGMA_REL),
    "post_hoc_sigma_rels": (parse_sigma_rels, INVALID_SIGMA_RELS),
    "post_hoc_every": (schedule.parse_interval, INVALID_INTERVAL),
}
"""Keys whose text is read by a function, and the kind of error of what that one refuses."""


class EmaSelectSettings(BaseModel):
    """The settings of one run, checked and unchangeable."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # A number is a fine value for free text (`"resume_leg": 2`), and OneTrainer turns it into text too.
        coerce_numbers_to_str=True,
        str_strip_whitespace=True,
    )

    enabled: bool = Field(
        default=False,
        title="Keep EMA And Non-EMA",
        description="Keeps the EMA and the non-EMA weights of this run apart, saves both, and lets you "
        "choose which of them a resumed run loads. Off, OneTrainer behaves exactly as without the plugin.",
        examples=["true"],
    )
    save_sets: SaveSets = Field(
        default=SaveSets.BOTH,
        title="Sets To Save",
        description="Which sets are written: BOTH at every save, at milestones and at the end; "
        "BOTH_AT_MILESTONES at milestones and at the end, with only the primary set at other saves to use "
        "less disk space; EMA or NON_EMA that set alone. Choose a single set only when you know you will "
        "not need the other one.",
    )
    primary_set: WeightSet = Field(
        default=WeightSet.EMA,
        title="Primary Set",
        description="The set that gets OneTrainer's own file name when both are written; the other one lies "
        "beside it with -non-ema or -ema in its name. Change it when other tools pick up OneTrainer's file "
        "name and should get the non-EMA weights.",
    )
    save_rounding: SaveRounding = Field(
        default=SaveRounding.NEAREST,
        title="Rounding At 16 Bits",
        description="How weights of 32 bits come into saves of 16: NEAREST rounds each to the nearest number that "
        "there is, which can lose what a slow EMA has moved; STOCHASTIC rounds up or down at random, so that it is "
        "kept on average, with more noise on each weight. Saves of 32 bits need neither: set OneTrainer's output "
        "data type to float32 where you can.",
    )
    milestones: str = Field(
        default="",
        title="Milestones",
        description="Points of the run at which a model is saved, separated by commas: once, as in 10 "
        "epochs, 4000 steps or 25%, or again and again, as in every 5 epochs or every 500 steps. A step is "
        "one batch, as OneTrainer counts it.",
        examples=["10 epochs, 25%, every 500 steps"],
    )
    milestone_backups: MilestoneBackups = Field(
        default=MilestoneBackups.NAMED,
        title="Milestone Backups",
        description="Which milestones also leave a backup that you can resume from and that OneTrainer's "
        "rolling deletion does not reach: NAMED those that come once, ALL every one, OFF none.",
    )
    milestone_keep: int = Field(
        default=0,
        ge=0,
        title="Milestone Backups To Keep",
        description="How many backups of milestones that come again and again are kept, the newest ones; 0 "
        "keeps them all.",
        examples=[3],
    )
    resume_weights: ResumeWeights = Field(
        default=ResumeWeights.NON_EMA,
        title="Resume From",
        description="Which weights a resumed run starts from: NON_EMA goes on where training stood, EMA "
        "goes on from the averaged weights, BEST from the set with the lower validation loss (it needs "
        "OneTrainer's validation), POST_HOC from an average of another length.",
    )
    resume_backup: str = Field(
        default="",
        title="Resume Backup",
        description="The name or path of the backup or milestone to resume from; empty takes the newest "
        "complete one. It needs OneTrainer's Continue from last backup.",
        examples=["2026-03-01_12-00-00-backup-4000-10-0"],
    )
    resume_sigma_rel: str = Field(
        default="",
        title="Resume Post-Hoc Length",
        description="The length of the average, as sigma_rel, that resuming from POST_HOC loads.",
        examples=["0.10"],
    )
    resume_optimizer: ResumeOptimizer = Field(
        default=ResumeOptimizer.KEEP,
        title="Optimizer On Resume",
        description="KEEP takes the optimizer's state (its momentum) from the backup, RESET starts it "
        "afresh. RESET is worth a try when you resume from weights other than those the optimizer was "
        "working on.",
    )
    resume_ema: ResumeEma = Field(
        default=ResumeEma.CONTINUE,
        title="EMA On Resume",
        description="CONTINUE goes on with the saved average, RESTART begins a new one from the weights "
        "that were loaded. Use RESTART to leave old steps out of the average, for example after changing "
        "the data.",
    )
    resume_leg: str = Field(
        default="",
        title="Resume Leg",
        description="Any text of your own. The resume choices are applied once, so that a run started again "
        "after a crash simply goes on; type a new text here to have them applied again.",
        examples=["second try"],
    )
    ema_dtype: EmaDtype = Field(
        default=EmaDtype.FLOAT_32,
        title="EMA Precision",
        description="FLOAT_32 keeps the average in 32 bits, which does justice to models of 16 bits too. "
        "PARAMETER keeps it in the precision of the weights, with random rounding at 16 bits: half the "
        "memory, for when it is short.",
    )
    ema_half_life: str = Field(
        default="",
        title="EMA Half-Life",
        description="After how long what was learnt counts half in the average: 2 epochs, 5000 images or 800 "
        "steps (batches), whatever the update interval, accumulation, batch size and GPUs. It takes the place of "
        "OneTrainer's EMA decay and its warm-up; empty uses these as they are.",
        examples=["2 epochs"],
    )
    post_hoc_sigma_rels: str = Field(
        default="",
        title="Post-Hoc Tracks",
        description="Lengths, as sigma_rel and separated by commas, of averages that are kept so that an "
        "average of any length can be made after training.",
        examples=["0.05, 0.10"],
    )
    post_hoc_every: str = Field(
        default="",
        title="Post-Hoc Snapshots",
        description="How often snapshots of the post-hoc tracks are written, as in 200 steps or 1 epochs; "
        "empty writes them at every backup and milestone.",
        examples=["200 steps"],
    )

    @field_validator("milestone_keep", mode="before")
    @classmethod
    def refuse_bool(cls, value: object) -> object:
        """Refuse true and false, which Python counts as 1 and 0."""
        if isinstance(value, bool):
            raise PydanticCustomError("int_type", "Input should be a number, not true or false")
        return value

    @field_validator(*READ)
    @classmethod
    def check_reading(cls, value: str, info: ValidationInfo) -> str:
        """Refuse what the key's own reader cannot read."""
        read, kind = READ[str(info.field_name)]
        try:
            read(value)
        except ValueError as error:
            raise PydanticCustomError(kind, "{reason}", {"reason": str(error)}) from error
        return value

    @property
    def resume_length(self) -> float | None:
        """``resume_sigma_rel`` as a number; None where it is empty."""
        return _read_sigma_rel(self.resume_sigma_rel)

    @property
    def post_hoc_lengths(self) -> tuple[float, ...]:
        """``post_hoc_sigma_rels`` as numbers, the shortest first."""
        return parse_sigma_rels(self.post_hoc_sigma_rels)

    def pinned_milestones(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of milestones that leave a backup, by ``milestone_backups``."""
        match self.milestone_backups:
            case MilestoneBackups.ALL:
                return tuple(names)
            case MilestoneBackups.NAMED:
                return tuple(name for name in names if not schedule.is_repeating(name))
            case MilestoneBackups.OFF:
                return ()

    def sets_written(self, *, has_ema: bool, milestone: bool) -> tuple[WeightSet, ...]:
        """Return the sets that a save writes, the one with OneTrainer's own name first.

        Args:
            has_ema: Whether the run keeps an EMA.
            milestone: Whether it is a milestone or the final output.
        """
        if not has_ema or self.save_sets is SaveSets.NON_EMA:
            return (WeightSet.NON_EMA,)
        if self.save_sets is SaveSets.EMA:
            return (WeightSet.EMA,)
        if self.save_sets is SaveSets.BOTH_AT_MILESTONES and not milestone:
            return (self.primary_set,)
        other = WeightSet.EMA if self.primary_set is WeightSet.NON_EMA else WeightSet.NON_EMA
        return (self.primary_set, other)


def allowed_values(key: str) -> tuple[str, ...] | None:
    """Return what a key accepts, as it is typed; None if that cannot be listed."""
    field = EmaSelectSettings.model_fields[key]
    if isinstance(field.default, Choice):
        return tuple(str(choice) for choice in type(field.default))
    if isinstance(field.default, bool):
        return ("true", "false")
    return None


def parse_settings(raw: object) -> EmaSelectSettings:
    """Check a section as it came from a config file or the command line.

    Args:
        raw: A mapping of keys to values, or whatever stands there instead; what is missing has its default.
            Text is accepted for numbers and switches, as on the command line everything is. Not changed.

    Raises:
        SettingsError: Anything is wrong with it, all of which the error names.
    """
    if not isinstance(raw, Mapping):
        raise SettingsError((section_problem(raw),))
    values = {key: value for key, value in raw.items() if key in EmaSelectSettings.model_fields}
    wrong: dict[object, SettingProblem] = {
        key: unknown_key_problem(key, value, fields=EmaSelectSettings.model_fields)
        for key, value in raw.items()
        if key not in values and key != VERSION_KEY
    }
    settings = None
    try:
        settings = EmaSelectSettings.model_validate(values)
    except ValidationError as error:
        for details in error.errors():
            key = str(details["loc"][0])
            wrong[key] = value_problem(
                key, details, field=EmaSelectSettings.model_fields[key], allowed=allowed_values(key)
            )
    if settings is None or wrong:
        # In the order they were written, where the user will look for them.
        raise SettingsError(tuple(wrong[key] for key in raw if key in wrong))
    return settings
