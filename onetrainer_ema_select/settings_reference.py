"""Writes the reference page of the settings from the settings model.

``python -m onetrainer_ema_select.settings_reference > docs/config.md``
"""

from __future__ import annotations

import json
import sys
from typing import Final

from onetrainer_ema_select.settings import (
    SECTION,
    EmaSelectSettings,
    allowed_values,
    parse_settings,
)
from onetrainer_ema_select.settings_advice import as_typed, example, kind, option

SHOWN_IN_EXAMPLE: Final[dict[str, bool | str]] = {"enabled": True, "milestones": "10 epochs, every 500 steps"}


def render_reference() -> str:
    """Return the page as Markdown, ending with a line break."""
    blocks = [*introduction(), *overview()]
    for key in EmaSelectSettings.model_fields:
        blocks.extend(chapter(key))
    return "\n\n".join(blocks) + "\n"


def introduction() -> list[str]:
    """Return the blocks on where settings are written."""
    parse_settings(SHOWN_IN_EXAMPLE)
    section = json.dumps({SECTION: SHOWN_IN_EXAMPLE}, indent=4)
    options = " ".join(option(key, as_typed(value)) for key, value in SHOWN_IN_EXAMPLE.items())
    return [
        "<!-- Generated: python -m onetrainer_ema_select.settings_reference > docs/config.md -->",
        "# Settings",
        f"All settings stand in one section of OneTrainer's config, `{SECTION}`. Write into your config file "
        "what you want to be different from the defaults:",
        f"```json\n{section}\n```",
        "or give it on the command line, for this run only and whatever the file says:",
        f"```\npython scripts/train.py --config-path my-config.json {options}\n```",
        "A key or value that is wrong stops the run before the model is loaded. The message names everything "
        "that is wrong at once, with what is allowed and what to type.",
    ]


def overview() -> list[str]:
    """Return the table of all keys."""
    rows = [f"| [`{key}`](#{key}) | {code(default(key))} | {allowed(key)} |" for key in EmaSelectSettings.model_fields]
    return ["## All keys", "\n".join(["| Key | Default | Allowed |", "|---|---|---|", *rows])]


def chapter(key: str) -> list[str]:
    """Return the heading and the blocks of one key."""
    field = EmaSelectSettings.model_fields[key]
    blocks = [f"## `{key}`", f"**{field.title}.** {field.description}"]
    blocks.append(f"Default: {code(default(key))}. Example: `{option(key, sample(key))}`")
    return blocks


def sample(key: str) -> str:
    """Return a value that is allowed and, where there is a choice, not the default."""
    field = EmaSelectSettings.model_fields[key]
    others = [value for value in allowed_values(key) or () if value != default(key)]
    return others[0] if others else example(field)


def default(key: str) -> str:
    """Return the default of a key as it is typed."""
    return as_typed(EmaSelectSettings.model_fields[key].default)


def allowed(key: str) -> str:
    """Return what a key accepts, for the table."""
    values = allowed_values(key)
    if values is None:
        field = EmaSelectSettings.model_fields[key]
        what = kind(field) if isinstance(field.default, int) else "text"
        return f"{what}, for example `{example(field)}`"
    return ", ".join(map(code, values))


def code(value: str) -> str:
    """Return a value in code style; Markdown has none for an empty one."""
    return f"`{value}`" if value else "empty"


if __name__ == "__main__":
    # Bytes, so that the page is UTF-8 with plain line breaks on Windows too.
    sys.stdout.buffer.write(render_reference().encode("utf-8"))
