"""What a setting with a fixed list of values can be."""

from __future__ import annotations

from enum import Enum


class Choice(Enum):
    """Base of the choices: as OneTrainer wants its own, names equal values and `str` returns them."""

    def __str__(self) -> str:
        """Return the value, which is what stands in a config."""
        return str(self.value)


class WeightSet(Choice):
    """One of the two sets of weights."""

    EMA = "EMA"
    NON_EMA = "NON_EMA"


class SaveSets(Choice):
    """Which sets a save writes."""

    BOTH = "BOTH"
    BOTH_AT_MILESTONES = "BOTH_AT_MILESTONES"
    EMA = "EMA"
    NON_EMA = "NON_EMA"


class SaveRounding(Choice):
    """How saves of 16 bits are rounded."""

    NEAREST = "NEAREST"
    STOCHASTIC = "STOCHASTIC"


class MilestoneBackups(Choice):
    """Which milestones leave a backup that is kept."""

    NAMED = "NAMED"
    ALL = "ALL"
    OFF = "OFF"


class ResumeWeights(Choice):
    """Which weights a resumed run starts from."""

    NON_EMA = "NON_EMA"
    EMA = "EMA"
    BEST = "BEST"
    POST_HOC = "POST_HOC"


class ResumeOptimizer(Choice):
    """What happens to the optimizer's state on resume."""

    KEEP = "KEEP"
    RESET = "RESET"


class ResumeEma(Choice):
    """What happens to the average on resume."""

    CONTINUE = "CONTINUE"
    RESTART = "RESTART"


class EmaDtype(Choice):
    """The precision the average is kept in."""

    FLOAT_32 = "FLOAT_32"
    PARAMETER = "PARAMETER"
