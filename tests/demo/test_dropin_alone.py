"""OneTrainer (the stand-in) with the enabled file, and the package gone: a run that asks for the plugin is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onetrainer_ema_select.demo.runner import BASE_CONFIG
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host import dropin

ASKS = {"enabled": True, "milestones": "2 steps"}

#: Configs go the way they do in the window: read, copied, put into the one that the window keeps, and trained.
WINDOW = """
import json, sys
from types import SimpleNamespace
sys.path.insert(0, ".")
from modules.util import create
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.TrainConfig import TrainConfig

window = TrainConfig.default_values()
for line in sys.stdin:
    given = json.loads(line)
    loaded = TrainConfig.default_values().from_dict(given)
    copied = TrainConfig.default_values().from_dict(loaded.to_dict())
    window.from_dict(copied.to_dict())
    statuses = []
    trainer = create.create_trainer(window, TrainCallbacks(on_update_status=statuses.append), TrainCommands())
    done = []
    trainer.cloud = SimpleNamespace(delete=lambda: done.append("delete"), stop=lambda: done.append("stop"))
    try:
        trainer.start()
        said = "started"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    trainer.cloud.delete(), trainer.cloud.stop()
    if said != "started":
        # a training that runs on a cloud machine is reattached to, and its machine stopped rather than deleted
        del trainer.cloud.delete, trainer.cloud.stop
        trainer.cloud.stop = lambda: kept.append("stop")
        kept, trainer.reattach, original = [], True, type(trainer).start
        type(trainer).start = lambda self: kept.append("start")
        trainer.start()
        trainer.cloud.delete()
        assert kept == ["start", "stop"], kept
        type(trainer).start = original
    assert done == ([] if said != "started" else ["delete", "stop"]), done
    print(json.dumps([said, statuses[-1:], window.to_settings_dict(secrets=False)["ema_select"]]))
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, enabled, and a folder `gone` for the path in which the package is not there."""
    folder = tmp_path_factory.mktemp("alone")
    gone = folder / "gone" / "onetrainer_ema_select.py"
    gone.parent.mkdir()
    gone.write_text("raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n", encoding="utf-8")
    host = copy_standin(folder / "One Trainer")
    dropin.enable(host)
    return host


def python(host: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(host.parent / "gone"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=host,
        env=environment,
        input=given,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def text_of(host: Path) -> str:
    return (
        "RuntimeError: This config asks for onetrainer-ema-select (ema_select.enabled), which is not active: it is not "
        f"installed in {sys.executable}. No model was loaded. To train with it, run the plugin's script install again; "
        f"to train without it, delete {dropin.dropin_path(host)}"
    )


def test_in_the_window(host: Path) -> None:
    base = {**BASE_CONFIG, "epochs": 1}
    sections = [{}, {"ema_select": ASKS}, {}, {"ema_select": {"enabled": False, "milestones": "1 epochs"}}]
    sections += [{"ema_select": {"__version": 0, **ASKS}}, {"ema_select": True}, {"ema_select": None}]
    lines = "".join(f"{json.dumps({**base, **section})}\n" for section in sections)
    ran = python(host, "-c", WINDOW, given=lines)
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    asked = text_of(host)
    said = [result[0] for result in results]
    assert said == ["started", asked, "started", "started", asked, asked, "started"]
    # the status line says the same, and what was written is kept for when the plugin is back
    assert results[1][1:] == [[asked.removeprefix("RuntimeError: ")], {"__version": 0, **ASKS}]
    assert results[2][2] == {"__version": 0, "enabled": False}
    assert results[3][2] == {"__version": 0, "enabled": False, "milestones": "1 epochs"}


def test_a_run_from_the_command_line(host: Path) -> None:
    config = {**BASE_CONFIG, "workspace_dir": "workspace/cli", "ema_select": {"enabled": False}}
    (host / "run.json").write_text(json.dumps(config), encoding="utf-8")
    override = ["--config-value", "ema_select.milestones=2 steps", "--config-value", "ema_select.enabled=true"]
    ran = python(host, "scripts/train.py", "--config-path", "run.json", *override)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == text_of(host)
    assert not (host / "workspace" / "cli").exists()
