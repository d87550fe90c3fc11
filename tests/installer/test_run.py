"""The scripts themselves, in a real environment and a OneTrainer under git: installed, upgraded, taken out again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from onetrainer_ema_select import __version__
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.wheel import NAME, build_wheel

from .conftest import (
    PACKAGE,
    ROOT,
    copy_clone,
    files_in,
    git,
    libraries_of,
    listed,
    make_environment,
    make_host,
    ours,
    python_of,
)

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")

ADDED = "?? modules/modelSetup/ema_select_dropin.py\n"
NEWER = "9.8.7"


class Place:
    """A folder of a user's: OneTrainer with its environment, and beside it two versions of the plugin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = make_host(folder / "OneTrainer")
        self.environment = make_environment(self.host / "venv")
        self.clone = copy_clone(folder / "onetrainer-ema-select")
        self.newer = copy_clone(folder / "newer")
        for name, old, new in (
            ("__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{NEWER}"'),
            ("host/dropin_file.py", "NOT_STOPPED", "STILL_NOT_STOPPED"),
        ):
            file = self.newer / PACKAGE.name / name
            text = file.read_text(encoding="utf-8")
            assert old in text
            file.write_text(text.replace(old, new), encoding="utf-8", newline="\n")
        self.packages = listed(self.environment)
        self.files = files_in(self.environment)
        self.clone_files = files_in(self.clone)

    def run(self, clone: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a user does, with settings of pip's around that would lead it astray."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ONETRAINER_", "OT_", "VENV_"))}
        hostile = {"PIP_TARGET": str(self.folder / "astray"), "PIP_REQUIRE_HASHES": "1", "PIP_NO_INDEX": "0"}
        command = [clone / f"{script}.bat"] if os.name == "nt" else ["bash", clone / f"{script}.sh"]
        return subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            env={**kept, **hostile, "PYTHONIOENCODING": "utf-8", "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )

    def status(self) -> str:
        return git(self.host, "status", "--porcelain", "--untracked-files=all")

    def installed(self) -> metadata.Distribution | None:
        return next(iter(metadata.distributions(name=NAME, path=[str(libraries_of(self.environment))])), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("user") / "Eigene (ü) & Dateien 100%")


def test_install_adds_the_package_and_one_file_and_touches_nothing_else(place: Place) -> None:
    ran = place.run(place.clone, "install")
    assert ran.returncode == 0, ran.stdout
    lines = ran.stdout.splitlines()
    assert lines[2] == f"installed    {NAME} {__version__} (new); no other package was changed"
    assert lines[-4].startswith(f"DONE. {NAME} {__version__} is installed")
    # as the page on installation shows it
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith(("installed ", "DONE. "))]
    assert shown == [line.replace(__version__, "0.1.0") for line in (lines[2], lines[-4])]
    starts = [line.split()[0] for line in page.split("```text\n")[1].split("```")[0].splitlines() if line]
    assert starts == [line.split()[0] for line in lines[:-3] if line]
    assert listed(place.environment) - place.packages == {f"{NAME} {__version__}"}
    assert place.packages <= listed(place.environment)
    after = files_in(place.environment)
    assert place.files.items() <= after.items()
    added = after.keys() - place.files.keys()
    assert len(added) > 100
    assert set(ours(added)) == added
    assert place.status() == ADDED
    assert files_in(place.clone) == place.clone_files
    assert not list(place.clone.rglob("__pycache__"))
    assert not (place.folder / "astray").exists()


def test_what_pip_says_of_it(place: Place) -> None:
    installed = place.installed()
    assert installed is not None
    assert json.loads(installed.read_text("direct_url.json") or "")["url"] == place.clone.as_uri()
    python = [python_of(place.environment), "-I", "-m", "pip", "--isolated", "--disable-pip-version-check"]
    shown = subprocess.run([*python, "show", "--files", NAME], capture_output=True, encoding="utf-8", check=True)
    assert f"Version: {__version__}" in shown.stdout
    command = place.environment / ("Scripts/onetrainer-ema-select.exe" if os.name == "nt" else f"bin/{NAME}")
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"{NAME} {__version__}\n"


def test_upgrade_and_back(place: Place) -> None:
    before = __version__
    for clone, version in ((place.newer, NEWER), (place.clone, __version__)):
        ran = place.run(clone, "install", "OneTrainer")
        assert ran.returncode == 0, ran.stdout
        assert f"installed    {NAME} {version} (instead of {before}); no other package was changed\n" in ran.stdout
        before = version
        assert listed(place.environment) - place.packages == {f"{NAME} {version}"}
        # the file in OneTrainer is renewed by the version that is there now
        text = dropin.dropin_path(place.host).read_text(encoding="utf-8")
        assert ("STILL_NOT_STOPPED" in text) == (version == NEWER)
        assert place.status() == ADDED
    assert dropin.is_current(place.host)


def test_an_environment_that_was_made_anew_is_mended_and_a_onetrainer_that_does_not_fit_is_told(place: Place) -> None:
    for one in ours(libraries_of(place.environment).iterdir()):
        shutil.rmtree(one)
    assert place.installed() is None
    file = place.host / "modules" / "module" / "EMAModule.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("store_temp", "keep"), encoding="utf-8")
    try:
        ran = place.run(place.clone, "install")
    finally:
        git(place.host, "checkout", "--quiet", "--", "modules/module/EMAModule.py")
    assert ran.returncode == 1
    assert f"installed    {NAME} {__version__} (new); no other package was changed\n" in ran.stdout
    assert place.installed() is not None
    assert "  NOT  modules.module.EMAModule:EMAModuleWrapper.copy_ema_to: found (self, parameters, keep)" in ran.stdout
    assert "INSTALLED, BUT IT DOES NOT FIT. This OneTrainer is not one that the plugin knows" in ran.stdout


def test_the_same_again(place: Place) -> None:
    ran = place.run(place.clone, "install")
    assert ran.returncode == 0, ran.stdout
    assert f"installed    {NAME} {__version__} (instead of {__version__}); no other package" in ran.stdout
    assert listed(place.environment) - place.packages == {f"{NAME} {__version__}"}


def test_uninstall_leaves_nothing(place: Place) -> None:
    # what Python compiles when it is used
    used = [python_of(place.environment), "-I", "-m", PACKAGE.name, "doctor", place.host]
    subprocess.run(used, cwd=place.host, capture_output=True, check=True)
    subprocess.run([*used[:2], "-m", "compileall", "-q", dropin.dropin_path(place.host).parent], check=True)
    # and what pip does not know of: another Python's, and what pip itself could not delete at an upgrade
    for stray in ("onetrainer_ema_select/__pycache__/errors.cpython-399.pyc", "~netrainer_ema_select/errors.py"):
        (libraries_of(place.environment) / stray).parent.mkdir(exist_ok=True)
        (libraries_of(place.environment) / stray).touch()
    ran = place.run(place.clone, "uninstall")
    assert ran.returncode == 0, ran.stdout
    assert f"uninstalled  {NAME} {__version__}; no other package was changed\n" in ran.stdout
    assert listed(place.environment) == place.packages
    assert files_in(place.environment) == place.files
    assert ours(path.relative_to(place.host) for path in place.host.rglob("*")) == []
    assert place.status() == ""


def test_what_an_interrupted_removal_left_goes_and_what_is_not_the_plugins_stays(place: Place) -> None:
    libraries = libraries_of(place.environment)
    left = [libraries / PACKAGE.name / "host" / "loop.py", libraries / f"{PACKAGE.name}-0.0.1.dist-info" / "INSTALLER"]
    mine = libraries / PACKAGE.name / "host" / "mine.txt"
    command = python_of(place.environment).with_name(f"{NAME}.exe" if os.name == "nt" else NAME)
    for file in (*left, mine, command):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    ran = place.run(place.clone, "uninstall")
    assert ran.returncode == 1
    assert (
        f"NOT DONE. These could not be removed, or hold files that are not the package's: {mine.parents[1]}."
        in ran.stdout
    )
    assert [file for file in (*left, command) if file.exists()] == []
    assert mine.is_file()
    mine.unlink()
    ran = place.run(place.clone, "uninstall")
    assert ran.returncode == 0
    assert files_in(place.environment) == place.files
    assert not (libraries / PACKAGE.name).exists()
    again = place.run(place.clone, "uninstall")
    assert again.returncode == 0
    assert "uninstalled  nothing: the package was not there\n" in again.stdout


def test_the_wheel_alone(place: Place) -> None:
    """As docs/install.md says it for those who have the wheel and no clone; the script takes that out as well."""
    wheel = build_wheel(place.folder / "dist")
    python = [python_of(place.environment), "-I", "-m"]
    pip = ["pip", "--isolated", "--disable-pip-version-check", "install", "--no-deps", "--no-index", wheel]
    for command in (pip, [PACKAGE.name, "enable", place.host], [PACKAGE.name, "doctor", place.host]):
        ran = subprocess.run([*python, *command], capture_output=True, encoding="utf-8", check=False)
        assert ran.returncode == 0, ran.stderr
    assert listed(place.environment) - place.packages == {f"{NAME} {__version__}"}
    assert place.status() == ADDED
    assert place.run(place.clone, "uninstall").returncode == 0
    assert files_in(place.environment) == place.files
    assert place.status() == ""


def test_what_needs_more_is_refused_and_left_alone(place: Place) -> None:
    [entry] = libraries_of(place.environment).glob("tqdm-*.dist-info")
    away = entry.rename(place.folder / entry.name)
    try:
        ran = place.run(place.clone, "install")
    finally:
        away.rename(entry)
    assert ran.returncode == 1
    assert "NOT DONE." in ran.stdout
    assert "lacks what the plugin needs: tqdm>=4.60 (not there). Nothing was installed." in ran.stdout
    assert files_in(place.environment) == place.files
    assert place.status() == ""


def test_without_an_environment(place: Place) -> None:
    away = place.environment.rename(place.folder / "away")
    dropin.enable(place.host)
    arguments = [sys.executable, "-I", place.clone / PACKAGE.name / "installer"]
    try:
        refused = subprocess.run(arguments, cwd=place.folder, capture_output=True, encoding="utf-8", check=False)
        gone = subprocess.run(
            [*arguments, "--uninstall"], cwd=place.folder, capture_output=True, encoding="utf-8", check=False
        )
    finally:
        away.rename(place.environment)
    assert refused.returncode == 1
    assert "has no environment of its own" in refused.stdout
    assert gone.returncode == 0
    assert place.status() == ""
