"""Sentences about wrong settings: what was found, what is allowed and what to type."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from onetrainer_ema_select.errors import SECTION, SettingProblem
from onetrainer_ema_select.sigma_rel import LONGEST, SHORTEST

INVALID_MILESTONES: Final = "invalid_milestones"
INVALID_LENGTH: Final = "invalid_length"
INVALID_SIGMA_REL: Final = "invalid_sigma_rel"
INVALID_SIGMA_RELS: Final = "invalid_sigma_rels"
INVALID_INTERVAL: Final = "invalid_interval"
LONGEST_SHOWN: Final = 80
EMPTY: Final = "an empty text"
READ_BY_US: Final = frozenset(
    {INVALID_MILESTONES, INVALID_LENGTH, INVALID_SIGMA_REL, INVALID_SIGMA_RELS, INVALID_INTERVAL}
)
"""What pydantic says of these is the end of a sentence."""
ALLOWED_TEXTS: Final[Mapping[str, str]] = {
    "milestones": "10 epochs, 4000 steps, 25%, every 5 epochs, every 500 steps and the like, separated by commas",
    "ema_half_life": "2 epochs, 0.5 epochs, 5000 images, 800 steps and the like, or an empty text",
    "resume_sigma_rel": f"a number from {SHORTEST} to {LONGEST}, or an empty text",
    "post_hoc_sigma_rels": f"numbers from {SHORTEST} to {LONGEST}, separated by commas, or an empty text",
    "post_hoc_every": "200 steps, 1 epochs and the like, or an empty text",
}
"""What a key accepts whose text is read by a function."""
UNQUOTED: Final = re.compile(r"[\w.,:/%+=-]*")
# Special to some shell within double quotes too.
SPECIAL: Final = re.compile(r"[\"$`!\\\x00-\x1f\ud800-\udfff]")


def section_problem(raw: object) -> SettingProblem:
    """Describe a section that is not a mapping at all."""
    return SettingProblem(
        key="",
        found=shown(raw),
        expected="allowed: a section with keys and values",
        advice=f"type for example {option('enabled', 'true')}",
    )


def unknown_key_problem(key: object, value: object, *, fields: Mapping[str, FieldInfo]) -> SettingProblem:
    """Describe a key that does not exist, with the one that was probably meant."""
    text = str(key)
    meant = closest(text.removeprefix(f"{SECTION}."), fields)
    if meant is None:
        return SettingProblem(
            key=text,
            found="a key that does not exist",
            expected=f"allowed: {', '.join(fields)}",
            advice="leave it out",
        )
    # What the user wanted to set it to, as far as it is safe to type on every shell.
    typed = as_typed(value) if isinstance(value, str | int | float | Enum) else ""
    if not typed or SPECIAL.search(typed):
        typed = example(fields[meant])
    return SettingProblem(
        key=text,
        found="a key that does not exist",
        expected=f"probably meant: {meant}",
        advice=f"type for example {option(meant, typed)}",
    )


def value_problem(
    key: str, details: ErrorDetails, *, field: FieldInfo, allowed: tuple[str, ...] | None
) -> SettingProblem:
    """Describe a value that is not accepted.

    Args:
        key: The key it was given for.
        details: What pydantic says about it.
        field: The key's field.
        allowed: All values the key accepts, if they can be listed.
    """
    found = shown(details["input"])
    if details["type"] in READ_BY_US:
        found = f"{found}, in which {details['msg']}"
    if allowed is None:
        return SettingProblem(
            key=key,
            found=found,
            expected=f"allowed: {ALLOWED_TEXTS.get(key) or kind(field)}",
            advice=f"type for example {option(key, example(field))}",
        )
    if len(allowed) == 1:
        return SettingProblem(
            key=key,
            found=found,
            expected=f"allowed: only {allowed[0] or EMPTY}",
            advice=f"type {option(key, allowed[0])}",
        )
    return SettingProblem(
        key=key,
        found=found,
        expected=f"allowed: {', '.join(allowed)}",
        advice=f"type for example {option(key, closest(str(details['input']), allowed) or example(field))}",
    )


def kind(field: FieldInfo) -> str:
    """Say what a key accepts when its values cannot be listed."""
    return "a whole number, 0 or more" if isinstance(field.default, int) else "a text"


def example(field: FieldInfo) -> str:
    """Return a value to type for a key: its example, else its default."""
    return str(field.examples[0] if field.examples else field.default)


def closest(text: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant, if there is one, whatever its case."""
    folded = {name.casefold(): name for name in names}
    for match in difflib.get_close_matches(text.casefold(), folded, n=1):
        return folded[match]
    return None


def option(key: str, value: str) -> str:
    """Return the command-line option that sets a key, quoted if need be, which every shell understands."""
    assignment = f"{SECTION}.{key}={value}"
    return f"--config-value {assignment}" if UNQUOTED.fullmatch(assignment) else f'--config-value "{assignment}"'


def as_typed(value: str | int | float | Enum) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value) if isinstance(value, Enum) else str(value)


def shown(value: object) -> str:
    """Return a value as it stands in a config file, shortened if it is very long."""
    if isinstance(value, Enum):
        value = value.value
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    # A lone surrogate (a file name that is not UTF-8) could not be printed.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
