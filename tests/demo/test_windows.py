"""Whole runs under Windows' rules for files, and the names that they write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onetrainer_ema_select.checksums import verify_backup
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host.dropin import enable
from onetrainer_ema_select.workspace import WorkspaceView, scan_workspace

from .conftest import environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the rules are made with Linux's /proc")

RULES = Path(__file__).with_name("windows_rules.py")
CONFIG: dict[str, Any] = {
    "training_method": "FINE_TUNE",
    "output_model_format": "LEGACY_SAFETENSORS",
    "output_model_destination": "models/model.safetensors",
    "concepts": [],
    "samples": [],
    "epochs": 3,
    "ema": "CPU",
    "ema_update_step_interval": 1,
    "backup_after": 12,
    "backup_after_unit": "STEP",
    "rolling_backup": True,
    "rolling_backup_count": 1,
    "save_every": 7,
    "save_every_unit": "STEP",
    "backup_before_save": True,
    "include_train_config": "SETTINGS",
}
SECTION = {"enabled": True, "milestones": "9 steps, 50%, every 1 epochs"}

#: What NTFS and the Windows API allow in a name.
LEGAL = re.compile(r'[^<>:"|?*\\\x00-\x1f]*[^<>:"|?*\\\x00-\x1f. ]')
RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])(\..*)?", re.IGNORECASE)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in after three runs: from nothing, from the EMA with EMA off, and back to EMA."""
    host = copy_standin(tmp_path_factory.mktemp("windows") / "One Trainer")
    enable(host)
    resumed = {"continue_last_backup": True}
    runs = [
        {"ema_select": SECTION},
        {**resumed, "epochs": 5, "ema": "OFF", "ema_select": {**SECTION, "resume_weights": "EMA"}},
        {**resumed, "epochs": 7, "ema_select": {**SECTION, "resume_leg": "back"}},
    ]
    for number, run in enumerate(runs):
        (host / f"{number}.json").write_text(json.dumps({**CONFIG, **run}), encoding="utf-8")
    names = [f"{number}.json" for number in range(len(runs))]
    done = subprocess.run(
        [sys.executable, RULES, *names], cwd=host, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    (host / "said.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    return host


@pytest.fixture(scope="module")
def view(host: Path) -> WorkspaceView:
    return scan_workspace(host / "workspace" / "run")


def test_nothing_that_is_open_is_moved_or_deleted(host: Path) -> None:
    assert json.loads((host / "broken.json").read_text(encoding="utf-8")) == []


def test_nothing_went_wrong(host: Path) -> None:
    said = (host / "said.txt").read_text(encoding="utf-8")
    assert [line for line in said.splitlines() if "PROBLEM" in line or "Could not" in line] == []
    assert "[ema_select] " in said


def test_everything_is_there(host: Path, view: WorkspaceView) -> None:
    assert all(backup.complete and backup.sets == ("non-ema", "ema") for backup in view.backups)
    # one rolling backup, and those of the milestones
    assert [bool(backup.milestone) for backup in view.backups].count(False) == 1
    verdict = verify_backup(view.backups[0].path)
    assert (verdict.problem, verdict.checksums) == ("", True)
    assert {save.set for save in view.saves} >= {"ema", "non-ema"}
    assert len(view.parked) == 1
    assert sorted(path.name for path in (host / "models").iterdir()) == [
        "model-non-ema.safetensors",
        "model-non-ema.yaml",
        "model.safetensors",
        "model.yaml",
    ]


def test_nothing_unfinished_is_left(host: Path) -> None:
    names = [path.name for path in host.rglob("*")]
    assert [name for name in names if "staging" in name or name.endswith((".tmp", ".shared")) or "-new" in name] == []


def test_every_name_is_one_for_ntfs(host: Path) -> None:
    workspace = host / "workspace"
    paths = [path.relative_to(workspace) for path in workspace.rglob("*")]
    assert len(paths) > 60
    assert [path for path in paths if not LEGAL.fullmatch(path.name) or RESERVED.fullmatch(path.name)] == []
    # there "A" and "a" are one file
    assert len({str(path).lower() for path in paths}) == len(paths)
