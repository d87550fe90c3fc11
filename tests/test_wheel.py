"""The wheel made with the standard library alone, installed by pip itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import onetrainer_ema_select
from onetrainer_ema_select import wheel

PACKAGE = Path(onetrainer_ema_select.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_pip_installs_it_with_every_file_and_the_command(tmp_path: Path):
    made = wheel.build_wheel(tmp_path / "with spaces")
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, made]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {
        file.relative_to(PACKAGE): file.read_bytes()
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    folder = target / "onetrainer_ema_select"
    found = {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert found == expected
    (installed,) = metadata.distributions(path=[str(target)])
    assert installed.metadata["Name"] == "onetrainer-ema-select"
    assert installed.version == onetrainer_ema_select.__version__
    (script,) = installed.entry_points
    assert (script.name, script.group) == ("onetrainer-ema-select", "console_scripts")
    assert callable(script.load())


def test_the_same_files_give_the_same_bytes(tmp_path: Path):
    first, second = wheel.build_wheel(tmp_path / "a"), wheel.build_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert zipfile.ZipFile(first).testzip() is None


def test_the_fingerprint_is_that_of_the_files_their_names_and_nothing_else(tmp_path: Path):
    def fingerprint(**files: str) -> str:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, text in files.items():
            place = folder / name.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "a.cpython-311.pyc").write_text(str(files), encoding="utf-8")
        return wheel.fingerprint(folder)

    same = fingerprint(a="1", sub__b="2")
    assert same == fingerprint(sub__b="2", a="1")
    assert len({same, fingerprint(a="2", sub__b="1"), fingerprint(a="1", b="2"), fingerprint(a="1")}) == 4


def test_an_installed_package_takes_its_own_licence_not_the_one_beside_it(tmp_path: Path):
    package, info = tmp_path / "onetrainer_ema_select", tmp_path / "onetrainer_ema_select-1.2.dist-info"
    for file, text in (
        (package / "__init__.py", '__version__ = "1.2"\n'),
        (tmp_path / "LICENSE", "another package's"),
        (info / "licenses" / "LICENSE", "its own"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    with zipfile.ZipFile(wheel.build_wheel(tmp_path / "out", package=package)) as made:
        assert made.read(f"{info.name}/licenses/LICENSE") == b"its own"


def test_it_runs_as_a_file_without_site_packages(tmp_path: Path):
    command = [sys.executable, "-I", "-S", PACKAGE / "wheel.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == wheel.build_wheel(tmp_path / "other").read_bytes()


def test_it_requires_what_the_project_requires():
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert list(wheel.REQUIRES) == project["dependencies"]
    assert project["requires-python"] == wheel.REQUIRES_PYTHON
    assert project["scripts"] == {wheel.NAME: wheel.SCRIPT}


def test_a_folder_that_is_another_package_is_refused(tmp_path: Path):
    (tmp_path / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names no version"):
        wheel.build_wheel(tmp_path / "out", package=tmp_path)
