from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from onetrainer_ema_select.settings import EmaSelectSettings, parse_settings
from onetrainer_ema_select.settings_reference import render_reference

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "config.md"
WRITE = "python -m onetrainer_ema_select.settings_reference > docs/config.md"


def test_the_page_is_what_the_settings_say() -> None:
    # Bytes: a page with other line breaks or another encoding is another page.
    page = PAGE.read_bytes().decode("utf-8").replace("\r\n", "\n")
    assert page == render_reference(), f"run: {WRITE}"


def test_the_command_named_in_the_page_writes_it() -> None:
    assert WRITE in render_reference()
    command = [sys.executable, *shlex.split(WRITE)[1:3]]
    # A console that is not UTF-8, as on Windows, must not change the page.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    written = subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    assert written.decode("utf-8") == render_reference()


def test_every_key_has_a_row_and_a_chapter_with_its_help() -> None:
    page = render_reference()
    chapters = dict(re.findall(r"^## `(\w+)`\n\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(chapters) == list(EmaSelectSettings.model_fields)
    for key, field in EmaSelectSettings.model_fields.items():
        assert page.count(f"\n| [`{key}`](#{key}) | ") == 1
        assert str(field.description) in chapters[key]


def test_the_table_names_every_choice() -> None:
    page = render_reference()
    assert "| `NAMED`, `ALL`, `OFF` |" in page
    assert "| `NON_EMA`, `EMA`, `BEST`, `POST_HOC` |" in page


def test_every_example_is_accepted() -> None:
    page = render_reference()
    section = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])["ema_select"]
    assert parse_settings(section) != EmaSelectSettings()
    lines = re.findall(r"Example: `(.*)`", page) + re.findall(r"^python scripts/train.py (.*)$", page, re.MULTILINE)
    assert len(lines) == len(EmaSelectSettings.model_fields) + 1  # an example each, and the command at the top
    for line in lines:
        words = shlex.split(line)
        assigned = [after for word, after in itertools.pairwise(words) if word == "--config-value"]
        assert assigned
        raw = dict(option.removeprefix("ema_select.").split("=", 1) for option in assigned)
        settings = parse_settings(raw)
        for key in raw:
            assert getattr(settings, key) != EmaSelectSettings.model_fields[key].default
