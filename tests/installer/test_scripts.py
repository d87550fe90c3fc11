"""The scripts as files: what git makes of them, and what cmd.exe and bash need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host import dropin

from .conftest import PACKAGE, ROOT, SCRIPTS, copy_clone, git

BATCH = [ROOT / name for name in SCRIPTS if name.endswith(".bat")]


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_batch_files_are_what_cmd_can_read(script: Path) -> None:
    raw = script.read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == raw.count(b"\r\n") > 3
    text = raw.decode()
    assert "EnableDelayedExpansion" not in text
    commands = [line for line in text.splitlines() if line and not line.startswith(("rem ", "echo ", ":"))]
    # a path with a parenthesis would close a block; one with a space or & has to be quoted
    assert not [line for line in commands if line.endswith("(") or line.startswith(")")]
    for line in commands:
        for name in ("%~dp0", "%RUN%", "%TRY%", "%LINE%"):
            before, found, _ = line.partition(name)
            assert not found or before.count('"') % 2 == 1, line


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@pytest.mark.parametrize("autocrlf", ["true", "false", "input"])
def test_line_ends_and_modes_survive_git(tmp_path: Path, autocrlf: str) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    for name in (*SCRIPTS, ".gitattributes", "pyproject.toml"):
        shutil.copy2(ROOT / name, origin / name)
    git(origin, "init", "--quiet")
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "all")
    command = ["git", "clone", "--quiet", "-c", f"core.autocrlf={autocrlf}", str(origin), str(clone)]
    subprocess.run(command, capture_output=True, check=True)
    for name in (*SCRIPTS, "pyproject.toml"):
        assert (clone / name).read_bytes() == (ROOT / name).read_bytes(), name
    modes = {line.split("\t")[1]: line[:6] for line in git(origin, "ls-files", "--stage").splitlines()}
    if os.name != "nt":
        assert {modes["install.sh"], modes["uninstall.sh"]} == {"100755"}
        assert os.access(clone / "install.sh", os.X_OK)


@pytest.mark.skipif(os.name == "nt", reason="for bash")
def test_bash_finds_a_python_or_says_that_there_is_none(tmp_path: Path) -> None:
    clone = copy_clone(tmp_path / "a b")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    # too old, so it is passed over
    (tools / "python3").write_text("#!/bin/bash\nexit 1\n", encoding="utf-8")
    (tools / "python3").chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(tools), "HOME": str(tmp_path)}
        command = ["bash", clone / "uninstall.sh", *arguments]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    # OneTrainer's own, of the folder that is given; what it is called with ends in that folder
    own = tmp_path / "c d" / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.write_text('#!/bin/bash\nif [ "$1" = -I ]; then printf "%s|" "$@"; exit 7; fi\n', encoding="utf-8")
    own.chmod(0o755)
    called = run("--python", "x y", str(tmp_path / "c d"))
    program = clone / PACKAGE.name / "installer" / "__main__.py"
    assert called.stdout == f"-I|{program}|--uninstall|--python|x y|{tmp_path / 'c d'}|"
    assert called.returncode == 7
    ran = run()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "No Python of version 3.10 or newer was found, OneTrainer's own included. Give OneTrainer's folder after the "
        "script's name, in quotes. If it has no venv yet, run its own install.sh first.\n"
    )
    # where it is found without being named: above the folder that the page recommends, and beside it by another name
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "external").mkdir()
    inside = clone.rename(tmp_path / "up" / "external" / "clone")
    shutil.copytree(tmp_path / "c d" / "venv", tmp_path / "up" / "venv")
    clone = inside
    assert run().returncode == 7
    shutil.rmtree(tmp_path / "up" / "venv")
    assert run().returncode == 1
    sibling = tmp_path / "up" / "external" / "One (Trainer) master"
    shutil.copytree(tmp_path / "c d" / "venv", sibling / "venv")
    assert run().returncode == 1  # another program's
    (sibling / "scripts").mkdir()
    (sibling / "scripts" / "train.py").touch()
    assert run().returncode == 7


def test_the_program_needs_the_standard_library_alone(tmp_path: Path) -> None:
    clone = copy_clone(tmp_path / "clone")
    command = [sys.executable, "-I", "-S", clone / PACKAGE.name / "installer" / "__main__.py"]
    ran = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--uninstall" in ran.stdout
    wrong = subprocess.run([*command, "--nothing"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert not list(clone.rglob("__pycache__"))


def test_the_installed_package_refuses_to_be_the_installer(tmp_path: Path) -> None:
    libraries = tmp_path / "site-packages"
    shutil.copytree(PACKAGE, libraries / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    host = tmp_path / "OneTrainer"
    copy_standin(host)
    dropin.enable(host)
    command = [sys.executable, libraries / PACKAGE.name / "installer", "--uninstall", host]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"NOT DONE. This was started from {libraries}, which is not the project's folder" in ran.stdout
    assert "delete this folder" not in ran.stdout
    assert dropin.is_current(host)


def test_an_old_python_is_told(tmp_path: Path) -> None:
    # as text: there is no such Python here, and one would stop at the first line that it cannot read
    source = (PACKAGE / "installer" / "__main__.py").read_text(encoding="utf-8")
    compile(source, "__main__.py", "exec")
    code = "import sys; sys.version_info = (3, 9, 1)\n" + source
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == f"This needs Python 3.10 or newer, and this is not: {sys.executable}\n"
