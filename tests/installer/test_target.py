"""Finding OneTrainer and its environment, and refusing other ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onetrainer_ema_select.errors import HostNotFoundError, InstallError
from onetrainer_ema_select.installer.target import find_environment, find_host, probe, refuse_global, run

from .conftest import Stub


def marked(folder: Path) -> Path:
    """Make a folder one that is recognised as OneTrainer."""
    for name in ("modules/trainer/GenericTrainer.py", "scripts/train.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def clone_in(folder: Path) -> Path:
    clone = folder / "onetrainer-ema-select"
    clone.mkdir(parents=True)
    return clone


def test_the_named_folder_counts_and_nothing_else(quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = clone_in(marked(tmp_path / "OneTrainer"))
    other = marked(tmp_path / "other")
    assert find_host(clone, other) == other
    monkeypatch.setenv("ONETRAINER_DIR", str(other))
    assert find_host(clone, None) == other
    with pytest.raises(HostNotFoundError, match="is not OneTrainer"):
        find_host(clone, clone)


def test_above_then_beside_then_around_then_at_home(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = clone_in(tmp_path / "a" / "external")
    with pytest.raises(HostNotFoundError) as caught:
        find_host(clone, None)
    assert str(quiet / "OneTrainer") in str(caught.value)
    at_home = marked(quiet / "OneTrainer")
    assert find_host(clone, None) == at_home
    here = marked(tmp_path / "here")
    (here / "deep").mkdir()
    monkeypatch.chdir(here / "deep")
    assert find_host(clone, None) == here
    beside = marked(clone.parent / "OneTrainer-master")
    assert find_host(clone, None) == beside
    above = marked(clone.parents[1])
    assert find_host(clone, None) == above


def test_of_several_beside_it_the_one_of_the_name_is_taken(quiet: Path, tmp_path: Path) -> None:
    clone = clone_in(tmp_path)
    first, second = marked(tmp_path / "OneTrainer-a"), marked(tmp_path / "OneTrainer-b")
    with pytest.raises(HostNotFoundError) as caught:
        find_host(clone, None)
    assert f"\n  {first}\n  {second}\n" in str(caught.value)
    named = marked(tmp_path / "onetrainer")
    assert find_host(clone, None) == named


def test_a_folder_that_may_not_be_entered_hides_no_other(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = clone_in(tmp_path)
    closed, host = tmp_path / "A", marked(tmp_path / "OneTrainer")
    closed.mkdir()
    stat = Path.stat

    # by hand: nothing is closed to an administrator
    def denied(path: Path, **how: bool) -> object:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", denied)
    assert find_host(clone, None) == host
    with pytest.raises(HostNotFoundError, match=r"it cannot be looked at \(Permission denied\)"):
        find_host(clone, closed / "OneTrainer")


def test_the_environment_of_the_folder_or_the_named_one(quiet: Path, onetrainer: Path, stub: Stub) -> None:
    with pytest.raises(InstallError, match="no folder venv or conda_env"):
        find_environment(onetrainer, None)
    python = stub(onetrainer, "venv")
    assert find_environment(onetrainer, None).python == python
    mine = stub(quiet, "mine")
    for named in (quiet / "mine", mine):
        assert find_environment(onetrainer, named).python == mine
    with pytest.raises(InstallError, match="holds no Python"):
        find_environment(onetrainer, quiet)


def test_a_python_that_does_not_start(tmp_path: Path, stub: Stub) -> None:
    python = stub(tmp_path, "venv")
    with pytest.raises(InstallError) as caught:
        probe(python)
    assert str(caught.value).startswith(f"{python} does not start (")
    assert "OneTrainer's own install script" in str(caught.value)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the tests run in no environment")
def test_a_global_python_is_refused_and_an_environment_is_not(tmp_path: Path) -> None:
    own = probe(Path(sys.executable))
    assert (own.kind, own.prefix, own.version) == ("venv", Path(sys.prefix), sys.version_info[:3])
    assert "pytest" in own.packages
    refuse_global(own)
    shared = probe(Path(sys._base_executable))
    assert shared.prefix == Path(sys.base_prefix)
    with pytest.raises(InstallError, match="is a Python for all programs"):
        refuse_global(shared)
    # one that OneTrainer has in its folder is its own
    refuse_global(probe(Path(sys._base_executable), host=Path(sys.base_prefix).parent))


def test_nothing_diverts_the_programs_that_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_TARGET", "PYTHONPATH", "PYTHONHOME", "pip_user"):
        monkeypatch.setenv(name, "/somewhere")
    code = "import os; print(sorted(name for name in os.environ if name.upper().startswith(('PIP', 'PYTHON'))))"
    assert run([sys.executable, "-c", code]).stdout == "['PIP_CONFIG_FILE']\n"
