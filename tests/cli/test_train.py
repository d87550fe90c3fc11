"""`train`: what OneTrainer's script is started with, and how signals and exit codes pass through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]

NOTE = (
    "{config} does not turn the plugin on, so this run is plain OneTrainer. "
    "To turn it on, add: --config-value ema_select.enabled=true\n"
)

posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def start(onetrainer: Path, tmp_path: Path) -> Start:
    """Starts `train` in a folder of its own with the given text as OneTrainer's script."""
    here = tmp_path / "here"
    here.mkdir()

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        (onetrainer / "scripts" / "train.py").write_text(textwrap.dedent(script), encoding="utf-8")
        return subprocess.Popen(
            [sys.executable, "-m", "onetrainer_ema_select", "train", "--onetrainer", onetrainer, *map(str, arguments)],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "300"},
        )

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run 1.json"
    path.write_text(json.dumps({"ema_select": {"enabled": True}}), encoding="utf-8")
    return path


SHOW = """
    import json, os, sys
    print(json.dumps([os.getcwd(), sys.executable, sys.argv]))
    sys.exit(7)
"""


def test_arguments_folder_python_and_exit_code(start: Start, onetrainer: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "secrets.json").touch()
    (onetrainer / "training_presets").mkdir()
    (onetrainer / "training_presets" / "#.json").touch()
    child = start(
        SHOW,
        "--config-path",
        f"../{config.name}",
        "--config-value",
        "epochs=3",
        "--preset-path",
        "training_presets/#.json",
        "--secrets-path=secrets.json",
        "--config-value=ema_select.save_sets=EMA",
        "--callback-path",
        "x",
    )
    out, err = child.communicate(timeout=120)
    assert err == ""
    assert child.returncode == 7
    cwd, python, arguments = json.loads(out)
    assert (cwd, python) == (str(onetrainer), sys.executable)
    assert arguments == [
        str(onetrainer / "scripts" / "train.py"),
        "--config-path",
        str(tmp_path / "here" / ".." / config.name),
        "--preset-path",
        str(onetrainer / "training_presets" / "#.json"),
        "--secrets-path",
        str(tmp_path / "here" / "secrets.json"),
        "--config-value",
        "epochs=3",
        "--config-value=ema_select.save_sets=EMA",
        "--callback-path",
        "x",
    ]


def test_a_missing_config_is_wrong_usage(start: Start, onetrainer: Path, tmp_path: Path) -> None:
    child = start(SHOW, "--config-path", "gone.json")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (2, "")
    said = " ".join(err.replace("│", " ").split())
    assert (
        f"Invalid value for --config-path: There is no file gone.json (looked in {tmp_path / 'here'} and {onetrainer})."
    ) in said


@pytest.mark.parametrize(
    ("content", "arguments", "noted"),
    [
        ("{}", [], True),
        ('{"ema_select": {"save_sets": "EMA"}}', [], True),
        ("{}", ["--config-value", "ema_select.save_sets=EMA"], True),
        ("{}", ["--config-value", "ema_select.enabled=true"], False),
        ("{}", ["--config-value=ema_select.enabled=false"], False),
        ('{"ema_select": {"enabled": false}}', [], False),
        ('{"ema_select": true}', [], False),
        ("not json", [], False),
    ],
)
def test_a_run_that_does_not_ask_for_the_plugin(
    start: Start, config: Path, content: str, arguments: list[str], noted: bool
) -> None:
    config.write_text(content, encoding="utf-8")
    child = start(SHOW, "--config-path", config, *arguments)
    _, err = child.communicate(timeout=120)
    assert err == (NOTE.format(config=config) if noted else "")
    assert child.returncode == 7


@posix
def test_ctrl_c_is_left_to_the_run(start: Start, config: Path) -> None:
    script = """
        import sys, time
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.5)  # a backup being written
            print("backup written", flush=True)
            sys.exit(5)
    """
    child = start(script, "--config-path", config)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does it: to all processes of the group
    out, err = child.communicate(timeout=60)
    assert (out, err, child.returncode) == ("backup written\n", "", 5)


@posix
def test_termination_is_passed_on(start: Start, config: Path) -> None:
    child = start("import time\nprint('ready', flush=True)\ntime.sleep(60)\n", "--config-path", config)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert (out, err, child.returncode) == ("", "", 128 + signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # nobody of the group is left


@posix
def test_a_killed_run_is_told(start: Start, config: Path) -> None:
    child = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "--config-path", config)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGKILL
