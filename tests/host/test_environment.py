"""OneTrainer's own environment, as its scripts choose it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onetrainer_ema_select.host.environment import find_environments

NEW = 'export OT_PREFER_VENV="${OT_PREFER_VENV:-true}"\n'
OLD = 'export OT_PREFER_VENV="${OT_PREFER_VENV:-false}"\n'


@pytest.fixture
def conda(tmp_path: Path) -> str:
    """A conda that can be run."""
    command = tmp_path / "miniconda" / "conda"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n", encoding="utf-8")
    command.chmod(0o755)
    return str(command)


def make(host: Path, name: str, python: str = "bin/python") -> None:
    place = host / name / python
    place.parent.mkdir(parents=True)
    place.touch()


def names(host: Path, *, windows: bool = False, **variables: str) -> list[tuple[str, bool]]:
    found = find_environments(host, variables, windows=windows)
    assert all(one.folder in one.python.parents for one in found)
    return [(one.folder.name, one.chosen) for one in found]


def test_none(onetrainer: Path) -> None:
    (onetrainer / "venv").mkdir()
    assert names(onetrainer) == names(onetrainer, windows=True) == []


@pytest.mark.skipif(os.name == "nt", reason="OneTrainer's bash scripts, and commands as bash finds them")
@pytest.mark.parametrize(
    ("library", "variables", "expected"),
    [
        ("", {}, ["venv", "conda_env"]),
        (NEW, {}, ["venv", "conda_env"]),
        (NEW, {"OT_CONDA_CMD": "CONDA"}, ["venv", "conda_env"]),
        (NEW, {"OT_CONDA_CMD": "CONDA", "OT_PREFER_VENV": "false"}, ["conda_env", "venv"]),
        (OLD, {"CONDA_EXE": "CONDA"}, ["conda_env", "venv"]),
        (OLD, {"CONDA_EXE": "CONDA", "OT_PREFER_VENV": "true"}, ["venv", "conda_env"]),
        (OLD, {"CONDA_EXE": "CONDA", "OT_PREFER_VENV": ""}, ["conda_env", "venv"]),
        (OLD, {"OT_CONDA_CMD": "/nowhere/conda"}, ["venv", "conda_env"]),
    ],
)
def test_conda_or_venv_as_the_library_decides(
    onetrainer: Path, conda: str, library: str, variables: dict[str, str], expected: list[str]
) -> None:
    (onetrainer / "lib.include.sh").write_text(library, encoding="utf-8")
    make(onetrainer, "venv")
    make(onetrainer, "conda_env")
    given = {key: conda if value == "CONDA" else value for key, value in variables.items()}
    assert names(onetrainer, PATH="", **given) == [(expected[0], True), (expected[1], False)]


def test_named_environments(onetrainer: Path, tmp_path: Path) -> None:
    make(onetrainer, "venv")
    make(tmp_path, "mine")
    make(onetrainer, "of mine", "Scripts/python.exe")
    for variable in ({"OT_PYTHON_VENV": "../mine"}, {"OT_PYTHON_VENV": str(tmp_path / "mine")}):
        assert names(onetrainer, **variable) == [("mine", True), ("venv", False)]
    assert names(onetrainer, windows=True, VENV_DIR="of mine") == [("of mine", True), ("venv", False)]
    # each script reads its own variable
    assert names(onetrainer, windows=True, OT_PYTHON_VENV="../mine") == [("venv", True)]


def test_one_that_the_scripts_would_not_take_is_found_and_marked(onetrainer: Path) -> None:
    make(onetrainer, "conda_env", "python.exe")
    assert names(onetrainer, windows=True) == [("conda_env", False)]
    make(onetrainer, ".venv")
    assert names(onetrainer) == [("conda_env", False), (".venv", False)]
