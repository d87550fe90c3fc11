"""Which Python OneTrainer runs with: found as its own scripts find it. Runs nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Where an environment keeps its Python: POSIX; venv on Windows; conda on Windows.
_PYTHONS = (Path("bin", "python"), Path("Scripts", "python.exe"), Path("python.exe"))
_LIBRARY = "lib.include.sh"


@dataclass(frozen=True)
class Environment:
    """An environment of OneTrainer's that is there.

    Attributes:
        folder: The environment.
        python: Its Python.
        chosen: Whether OneTrainer's own scripts would run with it as they are called now.
    """

    folder: Path
    python: Path
    chosen: bool


def find_environments(
    directory: Path, variables: Mapping[str, str] | None = None, *, windows: bool = os.name == "nt"
) -> list[Environment]:
    """The environments that belong to a OneTrainer folder, the one that its scripts run with first.

    Args:
        directory: OneTrainer's folder.
        variables: The environment variables that its scripts would see; by default this process's.
        windows: Whether its `.bat` scripts are meant rather than its `.sh` ones.
    """
    variables = os.environ if variables is None else variables
    names = windows_names(variables) if windows else posix_names(directory, variables)
    found: list[Environment] = []
    # what else is usual comes after what the scripts name, for those who start OneTrainer in another way
    for name in dict.fromkeys([*names, "venv", ".venv", "conda_env"]):
        folder = directory / Path(name).expanduser()
        python = python_in(folder)
        if python is not None and all(folder != one.folder for one in found):
            found.append(Environment(folder, python, chosen=name == names[0]))
    return found


def windows_names(variables: Mapping[str, str]) -> list[str]:
    """The folder that `start-ui.bat` and `update.bat` use. They know venvs only."""
    return [variables.get("VENV_DIR") or "venv"]


def posix_names(directory: Path, variables: Mapping[str, str]) -> list[str]:
    """The folders that `lib.include.sh` chooses from, its choice first."""
    conda_env = variables.get("OT_CONDA_ENV") or "conda_env"
    venv = variables.get("OT_PYTHON_VENV") or "venv"
    prefers_venv = (variables.get("OT_PREFER_VENV") or default_of(directory, "OT_PREFER_VENV")) == "true"
    command = variables.get("OT_CONDA_CMD") or variables.get("CONDA_EXE") or "conda"
    if not prefers_venv and shutil.which(command, path=variables.get("PATH")) is not None:
        return [conda_env, venv]
    return [venv, conda_env]


def default_of(directory: Path, variable: str) -> str:
    """What OneTrainer's scripts take for a variable that is not set; it has changed over time."""
    try:
        text = (directory / _LIBRARY).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"\$\{{{variable}:-([^}}]*)\}}", text)
    return found[1] if found else ""


def python_in(folder: Path) -> Path | None:
    """The Python of an environment, None where there is none."""
    return next((folder / place for place in _PYTHONS if (folder / place).is_file()), None)
