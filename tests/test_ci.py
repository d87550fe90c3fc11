"""The definition of CI for Windows and every Python: it can be read, and covers what the project promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_every_python_of_the_classifiers_on_both_systems() -> None:
    job = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["test"]
    promised = re.findall(r'Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert job["strategy"]["matrix"] == {"os": ["windows-latest", "ubuntu-latest"], "python": promised}
    steps = " ".join(str(step.get("run", "")) for step in job["steps"])
    for part in ("ruff format --check .", "ruff check .", "mypy", "pytest", "torch", "demo"):
        assert part in steps
    # on Windows the default is not bash
    assert all(step.get("shell") in (None, "python") for step in job["steps"])
    for step in job["steps"]:
        if step.get("shell") == "python":
            compile(step["run"], step["name"], "exec")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("script", [".ci/run", "install.sh", "uninstall.sh"])
def test_bash_can_read_the_scripts(script: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
