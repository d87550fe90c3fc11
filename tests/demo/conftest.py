"""A copy of the stand-in, and trainings in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import onetrainer_ema_select
from onetrainer_ema_select.demo.standin_copy import copy_standin

WORKER = Path(__file__).with_name("worker.py")
CARRY_OUT = Path(__file__).parents[1] / "export_orders.py"
PACKAGE_FOLDER = Path(onetrainer_ema_select.__file__).parents[1]

Jobs = list[dict[str, Any]]
RunJobs = Callable[[Jobs], dict[str, dict[str, Any]]]
CarryOut = Callable[[Jobs], list[dict[str, Any]]]


def environment() -> dict[str, str]:
    """Such that a started Python finds the package, installed or not, and does not compute in many threads."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PACKAGE_FOLDER)]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stand-in; there is a space in its path."""
    return copy_standin(tmp_path_factory.mktemp("standin") / "One Trainer")


@pytest.fixture(scope="session")
def run_jobs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> RunJobs:
    """Trains each job (see worker.py) and gives back what it left in the model, by the job's name."""

    def run(jobs: Jobs) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("results")
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = [sys.executable, str(WORKER), str(folder / "jobs.json"), str(folder)]
        done = subprocess.run(
            command, cwd=standin, env=environment(), capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return {job["name"]: torch.load(folder / f"{job['name']}.pt", weights_only=True) for job in jobs}

    return run


@pytest.fixture(scope="session")
def carry_out(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> CarryOut:
    def run(orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("orders")
        orders = [{"action": "export", "onetrainer": str(standin), **each} for each in orders]
        (folder / "orders.json").write_text(json.dumps(orders, default=str), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(CARRY_OUT), str(standin)],
            input=str(folder / "orders.json"),
            cwd=folder,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return results

    return run
