"""A clone of this project, a OneTrainer under git, and an environment that holds what OneTrainer's does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import onetrainer_ema_select
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.wheel import NAME, REQUIRES

ROOT = Path(__file__).parents[2]
PACKAGE = Path(onetrainer_ema_select.__file__).parent
SCRIPTS = ("install.bat", "install.sh", "uninstall.bat", "uninstall.sh")

# Never imported by what the installer runs, and large: their entries alone are enough for pip.
NOT_COPIED = {"torch", "numpy", "sympy", "mypy", "setuptools", "networkx", "hypothesis", "safetensors"}


def copy_clone(destination: Path) -> Path:
    """What a user has cloned. The package is the one under test, which may be an installed one."""
    destination.mkdir(parents=True)
    for name in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, destination / name)
    shutil.copytree(PACKAGE, destination / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return destination


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def libraries_of(environment: Path) -> Path:
    if os.name == "nt":
        return environment / "Lib" / "site-packages"
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def needed(names: list[str]) -> dict[str, metadata.Distribution]:
    """The distributions of these names and of what they require in turn."""
    found: dict[str, metadata.Distribution] = {}
    while names:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", names.pop())[0].lower())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or another Python
        names += [text for text in found[name].requires or [] if "extra ==" not in text]
    return found


def make_environment(folder: Path) -> Path:
    """A venv with a pip and all that the plugin needs in it, copied from the Python that runs the tests."""
    venv.create(folder, with_pip=False)
    libraries = libraries_of(folder)
    for distribution in needed(["pip", *REQUIRES]).values():
        entry = Path(str(distribution.locate_file("")), distribution._path.name)
        shutil.copytree(entry, libraries / entry.name)
        tops = {file.parts[0] for file in distribution.files or [] if ".." not in file.parts}
        for top in tops - NOT_COPIED - {entry.name, "__pycache__"}:
            source = entry.parent / top
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "tests")
                shutil.copytree(source, libraries / top, ignore=ignored, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copy2(source, libraries / top)
    return folder


def git(folder: Path, *arguments: str) -> str:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *options, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def make_host(folder: Path) -> Path:
    """OneTrainer's stand-in as a git checkout that ignores what OneTrainer's does."""
    copy_standin(folder)
    (folder / ".gitignore").write_text("*.pyc\n/venv*\n/conda_env*\n/external\n", encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return folder


def listed(environment: Path) -> set[str]:
    """What `pip list` shows, without pip's own cost: name and version of each distribution."""
    found = metadata.distributions(path=[str(libraries_of(environment))])
    return {f"{one.metadata['Name']} {one.version}" for one in found}


def files_in(folder: Path) -> dict[str, int]:
    """Every file but what Python compiled, with its time and size."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns ^ path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def ours(names: object) -> list[str]:
    return [str(name) for name in names if re.search("ema.select", str(name))]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No OneTrainer is found by itself, and none of its variables is set. Returns the empty home."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("ONETRAINER_DIR", "VENV_DIR", "CONDA_EXE"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("OT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(home)
    return home


Stub = Callable[..., Path]


@pytest.fixture
def stub() -> Stub:
    """Puts an empty file where an environment's Python would be: `stub(folder, "venv")`."""

    def make(host: Path, name: str, *, conda: bool = False) -> Path:
        python = python_of(host / name)
        if conda and os.name == "nt":
            python = host / name / "python.exe"
        python.parent.mkdir(parents=True)
        python.touch()
        return python

    return make


__all__ = ["NAME"]
