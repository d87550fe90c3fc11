"""Finding OneTrainer, its commit and its Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onetrainer_ema_select.errors import HostNotFoundError
from onetrainer_ema_select.host.locate import find_onetrainer, host_commit, host_python, python_without_package

HASH = "23df3832e8f213d64c337e39f9365ba46e99fed0"
OTHER = "4d239422aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No OneTrainer anywhere: an empty current folder and an empty home."""
    home = tmp_path / "home"
    here = tmp_path / "here" / "deeper"
    home.mkdir()
    here.mkdir(parents=True)
    monkeypatch.delenv("ONETRAINER_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir(here)
    return here


def test_explicit_folder_wins(onetrainer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONETRAINER_DIR", str(tmp_path / "elsewhere"))
    assert find_onetrainer(onetrainer) == onetrainer


def test_relative_folder_becomes_absolute(onetrainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(onetrainer.parent)
    assert find_onetrainer(Path("One Trainer")) == onetrainer


def test_environment_variable_comes_before_the_current_folder(
    onetrainer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    (other / "scripts" / "train.py").touch()
    (other / "modules" / "util" / "config").mkdir(parents=True)
    (other / "modules" / "util" / "config" / "TrainConfig.py").touch()
    monkeypatch.setenv("ONETRAINER_DIR", str(other))
    monkeypatch.chdir(onetrainer)
    assert find_onetrainer() == other


@pytest.mark.parametrize("inside", [".", "modules/trainer"])
def test_current_folder_and_its_parents(onetrainer: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    monkeypatch.chdir(onetrainer / inside)
    assert find_onetrainer() == onetrainer


def test_start_is_searched_instead_of_the_current_folder(onetrainer: Path) -> None:
    assert find_onetrainer(start=onetrainer / "scripts") == onetrainer


def test_home_comes_last(onetrainer: Path) -> None:
    onetrainer.rename(Path.home() / "OneTrainer")
    assert find_onetrainer() == Path.home() / "OneTrainer"


def test_a_named_folder_is_never_replaced_by_another(onetrainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(onetrainer)
    wrong = onetrainer / "modules"
    with pytest.raises(HostNotFoundError) as caught:
        find_onetrainer(wrong)
    assert str(caught.value) == (
        f"{wrong} (the folder given) is not OneTrainer: it has no scripts/train.py beside modules/. "
        "Give the folder that holds OneTrainer's scripts and modules."
    )
    assert caught.value.path == str(wrong)
    assert caught.value.expected == "scripts/train.py"


def test_wrong_environment_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    monkeypatch.setenv("ONETRAINER_DIR", str(gone))
    with pytest.raises(HostNotFoundError) as caught:
        find_onetrainer()
    assert str(caught.value) == (
        f"{gone} ($ONETRAINER_DIR) is not OneTrainer: it does not exist. "
        "Give the folder that holds OneTrainer's scripts and modules."
    )


def test_not_found_names_every_place(nowhere: Path) -> None:
    with pytest.raises(HostNotFoundError) as caught:
        find_onetrainer()
    places = [nowhere, *nowhere.parents, Path.home() / "OneTrainer"]
    assert str(caught.value) == (
        "OneTrainer was not found. Looked at:\n"
        + "".join(f"  {place}\n" for place in places)
        + "Give its folder, with --onetrainer DIR or in $ONETRAINER_DIR."
    )


def git_folder(root: Path, head: str) -> Path:
    git = root / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text(head + "\n", encoding="utf-8")
    return git


def test_commit_of_a_detached_head(tmp_path: Path) -> None:
    git_folder(tmp_path / "a", HASH)
    assert host_commit(tmp_path / "a") == HASH


def test_commit_of_a_branch_comes_before_a_packed_one(tmp_path: Path) -> None:
    git = git_folder(tmp_path / "a", "ref: refs/heads/master")
    (git / "packed-refs").write_text(
        f"# pack-refs with: peeled fully-peeled sorted\n{OTHER} refs/heads/main\n{HASH} refs/heads/master\n",
        encoding="utf-8",
    )
    assert host_commit(tmp_path / "a") == HASH
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "master").write_text(OTHER + "\n", encoding="utf-8")
    assert host_commit(tmp_path / "a") == OTHER


def test_commit_of_a_worktree(tmp_path: Path) -> None:
    git = git_folder(tmp_path / "a", "ref: refs/heads/main")
    own = git / "worktrees" / "b"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/b\n", encoding="utf-8")
    (own / "commondir").write_text("../..\n", encoding="utf-8")
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "b").write_text(HASH + "\n", encoding="utf-8")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".git").write_text(f"gitdir: {own}\n", encoding="utf-8")
    assert host_commit(tmp_path / "b") == HASH


@pytest.mark.parametrize("head", ["", "garbage", "ref: refs/heads/unborn", HASH[:-1]])
def test_unknown_commit(tmp_path: Path, head: str) -> None:
    git_folder(tmp_path / "a", head)
    assert host_commit(tmp_path / "a") is None


def test_no_git_at_all(tmp_path: Path) -> None:
    assert host_commit(tmp_path) is None


def test_commit_equals_what_git_says(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    said = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert host_commit(tmp_path) == said
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    assert host_commit(tmp_path) == said


@pytest.mark.parametrize(
    ("python", "packages"),
    [("venv/bin/python", "venv/lib/python3.11/site-packages"), ("venv/Scripts/python.exe", "venv/Lib/site-packages")],
)
def test_python_without_the_package(onetrainer: Path, python: str, packages: str) -> None:
    assert host_python(onetrainer) is None
    assert python_without_package(onetrainer) is None
    (onetrainer / python).parent.mkdir(parents=True)
    (onetrainer / python).touch()
    assert host_python(onetrainer) == onetrainer / python
    assert python_without_package(onetrainer) == onetrainer / python
    (onetrainer / packages / "onetrainer_ema_select-0.1.0.dist-info").mkdir(parents=True)
    assert python_without_package(onetrainer) is None


def test_the_running_python_is_not_reported(onetrainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (onetrainer / "venv" / "bin").mkdir(parents=True)
    (onetrainer / "venv" / "bin" / "python").touch()
    monkeypatch.setattr(sys, "prefix", str(onetrainer / "venv"))
    assert python_without_package(onetrainer) is None
