"""The plugin on a cloud machine: looked for, brought there, or the run is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import onetrainer_ema_select
from onetrainer_ema_select import wheel
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.errors import CloudError
from onetrainer_ema_select.host.cloud import machine
from onetrainer_ema_select.host.cloud.remote import MARKER
from onetrainer_ema_select.host.dropin import dropin_path
from onetrainer_ema_select.host.report import Reporter

PACKAGE = Path(onetrainer_ema_select.__file__).parent
VERSION = onetrainer_ema_select.__version__


def ask(folder: Path, *arguments: str) -> dict[str, Any]:
    """What `remote` says in a folder, asked as on a cloud machine: in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "onetrainer_ema_select.host.cloud.remote", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARKER)]
    return json.loads(line.removeprefix(MARKER))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_standin(tmp_path_factory.mktemp("machine") / "One Trainer")


def test_the_machine_says_what_is_missing_and_what_it_has(folder: Path):
    report = ask(folder)
    assert report["problems"] == [f"it is not enabled in {folder}"]
    report = ask(folder, "enable", "probe")
    assert report["problems"] == []
    assert (report["version"], report["fingerprint"]) == (VERSION, wheel.fingerprint())
    assert dropin_path(folder).is_file()


def test_a_plugin_that_onetrainer_does_not_load_is_found_out(folder: Path):
    ask(folder, "enable")
    source = folder / "modules" / "util" / "create.py"
    text = source.read_text(encoding="utf-8")
    source.write_text("raise OSError('no such library')\n", encoding="utf-8")
    try:
        (problem,) = ask(folder, "probe")["problems"]
        # a seam is gone, which is read from the source; without that the import itself is what fails
        assert "create_ema" in problem
        source.write_text(f"{text}\nraise OSError('no such library')\n", encoding="utf-8")
        assert ask(folder, "probe")["problems"] == ["OneTrainer cannot be loaded there: OSError: no such library"]
    finally:
        source.write_text(text, encoding="utf-8")


class Machine:
    """Answers commands as told; notes them and what is uploaded."""

    def __init__(self, *answers: Any, running: bool = False) -> None:
        self.answers = list(answers)
        self.commands: list[str] = []
        self.uploaded: list[tuple[str, bytes]] = []
        self.can_reattach = lambda: running
        self.connection = self.file_sync = self
        self.config = SimpleNamespace(
            cloud=SimpleNamespace(onetrainer_dir="/workspace/OneTrainer", remote_dir="/workspace")
        )

    def run(self, command: str, **_: Any) -> Any:
        self.commands.append(command)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        code, stdout, stderr = answer if isinstance(answer, tuple) else (0, answer, "")
        return SimpleNamespace(exited=code, stdout=stdout, stderr=stderr)

    def sync_up_file(self, local: Path, remote: Path) -> None:
        self.uploaded.append((remote.as_posix(), local.read_bytes()))


def says(*problems: str, fingerprint: str | None = None, version: str = VERSION) -> str:
    report = {
        "version": version,
        "fingerprint": fingerprint or wheel.fingerprint(),
        "python": "/venv/bin/python",
        "problems": problems,
    }
    return f"[OneTrainer] + python -m ...\n\n{MARKER}{json.dumps(report)}\n"


ABSENT = (1, "", "No module named onetrainer_ema_select")


def prepare(cloud: Machine) -> Reporter:
    reporter = Reporter(lambda status: None)
    machine.prepare(cloud, reporter)
    return reporter


def test_a_machine_that_has_it_is_left_alone():
    cloud = Machine(says())
    prepare(cloud)
    (command,) = cloud.commands
    assert command.endswith("remote probe'")
    assert cloud.uploaded == []


@pytest.mark.parametrize(
    "found",
    [ABSENT, says(fingerprint="another"), says("it is not enabled in /workspace/OneTrainer"), "no report"],
    ids=["absent", "other content", "not enabled", "no answer"],
)
def test_any_other_gets_this_very_one(found: Any, tmp_path: Path):
    cloud = Machine(found, "", says())
    prepare(cloud)
    ((place, content),) = cloud.uploaded
    assert place == f"/workspace/ema_select/{wheel.fingerprint()[:12]}/onetrainer_ema_select-{VERSION}-py3-none-any.whl"
    assert content == wheel.build_wheel(tmp_path).read_bytes()
    _, install, check = cloud.commands
    assert "pip install --no-deps --no-index --force-reinstall" in install
    assert install.endswith(f" {place}'")
    assert check.endswith("remote enable probe'")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ((ABSENT, (1, "", "No module named pip")), "No module named pip"),
        ((ABSENT, "", ABSENT), "No module named onetrainer_ema_select"),
        ((ABSENT, "", says("the package pydantic is missing")), "the package pydantic is missing"),
        ((ABSENT, "", says(fingerprint="another")), f"found onetrainer-ema-select {VERSION} there, which is not"),
        ((ABSENT, EOFError()), "EOFError"),
    ],
)
def test_where_that_fails_nothing_is_trained(answers: tuple[Any, ...], reason: str):
    with pytest.raises(CloudError) as caught:
        prepare(Machine(*answers))
    text = str(caught.value)
    assert text.startswith("Nothing was trained on the cloud machine")
    assert reason in text
    assert f"onetrainer-ema-select {VERSION}, enabled, in the Python of /workspace/OneTrainer" in text
    assert text.endswith("To train without it: set ema_select.enabled=false.")


def test_a_refusal_does_not_say_the_password_of_the_command_that_failed():
    error = subprocess.CalledProcessError(255, ["sshpass", "-p", "hunter2", "scp", "-P", "22", "x", "root@host:/x"])
    with pytest.raises(CloudError, match="scp ended with 255") as caught:
        prepare(Machine(ABSENT, error))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_where_a_training_is_running_nothing_is_changed_and_what_is_wrong_is_said():
    cloud = Machine(says("it is not enabled in /workspace/OneTrainer"), running=True)
    (problem,) = prepare(cloud).problems
    assert "it is not enabled" in problem
    assert len(cloud.commands) == 1
    assert cloud.uploaded == []
    # another content of the same version may be what was installed when that training began
    assert prepare(Machine(says(fingerprint="another"), running=True)).problems == []
    (problem,) = prepare(Machine(says(version="0.0.1"), running=True)).problems
    assert "0.0.1" in problem
    (problem,) = prepare(Machine(OSError("connection lost"), running=True)).problems
    assert "connection lost" in problem


def test_only_the_end_of_a_long_output_is_shown():
    assert machine.tail(" x ") == "x"
    assert machine.tail("a" * 5000 + "the error") == "…" + "a" * 1491 + "the error"
