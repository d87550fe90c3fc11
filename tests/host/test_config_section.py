"""The section as OneTrainer's window handles it; in a process of its own, since the host's modules are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onetrainer_ema_select
from onetrainer_ema_select.demo.standin_copy import copy_standin

PACKAGE_FOLDER = Path(onetrainer_ema_select.__file__).parents[1]
PROGRAM = """
import json
from onetrainer_ema_select.host.config_section import EmaSelectConfig

seen = {}
section = EmaSelectConfig()
section.from_dict({"__version": 0, "enabled": True, "milestone_keep": 3, "milestones": "25%"})

# the window loads another file: wrong values and unknown keys; then it writes back what it shows
section.from_dict({"__version": 0, "milestone_keep": "many", "mileston": "x", "save_sets": "BOTHH", "primary_set": [],
    "milestones": "10 eopchs", "post_hoc_every": "2 epoks", "resume_weights": "BESTT"})
for name in section.default_values_by_name:
    setattr(section, name, getattr(section, name))
seen["shown"] = [section.milestone_keep, str(section.save_sets), section.enabled, section.milestones]
seen["mistakes"] = section.mistakes()
seen["written"] = {key: section.to_dict()[key] for key in ("milestone_keep", "mileston", "save_sets")}

# the user changes one of them, and back
section.milestone_keep = 4
section.milestone_keep = 0
seen["after a change"] = section.mistakes()
section.drop_mistakes()
seen["dropped"] = section.mistakes()
seen["shown after dropping"] = [section.milestones, str(section.resume_weights), section.post_hoc_every]
seen["raw"] = section.raw()

# one value after the other, as the command line gives them: nothing is forgotten
section = EmaSelectConfig()
section.from_dict({"__version": 0, "enabled": True, "milestones": "25%"})
section.from_dict({"milestone_keep": "2"}, migrate=False)
section.from_dict({"mileston": "x"}, migrate=False)
seen["command line"] = section.raw()
seen["command line, mistakes"] = section.mistakes()
section.drop_mistakes()
seen["explicit values after dropping"] = section.raw()

# the window empties the field of a number
section.milestone_keep = None
seen["emptied"] = [section.milestone_keep, section.to_dict()["milestone_keep"], section.settings().milestone_keep]

# not a section at all, then a whole one
section.from_dict(7)
seen["no section"] = section.mistakes()
section.enabled = not section.enabled
seen["after a change of a row"] = section.raw()
section.from_dict(7)
section.from_dict({"__version": 0, "enabled": True})
seen["a section again"] = [section.mistakes(), section.raw()]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = copy_standin(tmp_path_factory.mktemp("section") / "OneTrainer")
    path = os.pathsep.join([str(folder), str(PACKAGE_FOLDER)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_file_that_is_loaded_after_another_one_leaves_nothing_of_it(seen: dict[str, Any]) -> None:
    assert seen["shown"] == [0, "BOTH", False, "10 eopchs"]


def test_wrong_values_stay_until_they_are_changed_or_dropped(seen: dict[str, Any]) -> None:
    for text in (
        'milestone_keep: found "many"',
        "mileston: found a key",
        'save_sets: found "BOTHH"',
        "primary_set: found []",
    ):
        assert text in seen["mistakes"]
    assert seen["written"] == {"milestone_keep": "many", "mileston": "x", "save_sets": "BOTHH"}
    assert "milestone_keep" not in seen["after a change"]
    assert "mileston: found a key" in seen["after a change"]
    assert seen["dropped"] == ""
    assert seen["shown after dropping"] == ["", "NON_EMA", ""]
    assert seen["raw"] == {}


def test_values_of_the_command_line_are_laid_over_the_file(seen: dict[str, Any]) -> None:
    assert seen["command line"] == {"enabled": True, "milestones": "25%", "mileston": "x", "milestone_keep": "2"}
    assert seen["command line, mistakes"].startswith("ema_select.mileston: found a key")


def test_only_mistakes_are_dropped(seen: dict[str, Any]) -> None:
    assert seen["explicit values after dropping"] == {"enabled": True, "milestones": "25%", "milestone_keep": 2}


def test_an_emptied_number_stands_for_the_default(seen: dict[str, Any]) -> None:
    assert seen["emptied"] == [0, 0, 0]


def test_a_section_that_is_none_is_named_until_there_is_one(seen: dict[str, Any]) -> None:
    assert seen["no section"].startswith("ema_select: found 7")
    assert seen["after a change of a row"] == {"milestones": "25%"}
    assert seen["a section again"] == ["", {"enabled": True}]
