"""Two processes over gloo, with the stand-in's modules: what one of them finds out, both act upon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onetrainer_ema_select
from onetrainer_ema_select.demo import standin

SCRIPT = """
import datetime, json, sys
import torch.distributed as dist

rank, store, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if size > 1:
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=size, timeout=timeout)

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.host.processes import decided_by_first, leave_group, raise_together


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def refuse():
    raise ResumeError("there is no such backup")


print(json.dumps({
    "decided": outcome(decided_by_first, lambda: f"by {rank}"),
    "refused": outcome(decided_by_first, refuse),
    "none failed": outcome(raise_together, None),
    "first failed": outcome(raise_together, MemoryError() if rank == 0 else None),
    "last failed": outcome(raise_together, OSError("disk") if rank == size - 1 else None),
    "left": (leave_group(), dist.is_initialized())[1],
}))
"""


def run(folder: Path, size: int) -> list[dict[str, Any]]:
    """What each of ``size`` processes has found."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    places = [Path(standin.__path__[0]), Path(onetrainer_ema_select.__file__).parents[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), (folder / "store").as_posix(), str(size)],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    return [json.loads(output) for output in outputs]


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store wants another address there")
def test_two_processes_decide_and_end_alike(tmp_path: Path) -> None:
    first, second = run(tmp_path, 2)
    assert [found["decided"] for found in (first, second)] == ["by 0", "by 0"]
    assert first["refused"] == "ResumeError: there is no such backup"
    assert second["refused"] == "EmaSelectError: there is no such backup"
    assert [found["none failed"] for found in (first, second)] == [None, None]
    none_does = "EmaSelectError: Process {} of this run cannot go on, so none does: {}"
    assert first["first failed"] == "MemoryError: "
    assert second["first failed"] == none_does.format(0, "MemoryError")
    assert first["last failed"] == none_does.format(1, "disk")
    assert second["last failed"] == "OSError: disk"
    assert [found["left"] for found in (first, second)] == [False, False]


def test_a_single_process_needs_no_group(tmp_path: Path) -> None:
    [found] = run(tmp_path, 1)
    assert found == {
        "decided": "by 0",
        "refused": "ResumeError: there is no such backup",
        "none failed": None,
        "first failed": "MemoryError: ",
        "last failed": "OSError: disk",
        "left": False,
    }
