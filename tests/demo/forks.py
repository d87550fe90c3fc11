"""Trainings of the stand-in that are ended from outside: `python forks.py`, in its folder.

Reads one line of JSON after the other from standard input, each
`{"config": PATH, "signal": N or 0, "after": S, "live": PATH or ""}`:
forks itself (torch is imported only once), trains, sends the signal after so many seconds, and answers with a line
`{"status": exit code, negative for a signal, "seconds": how long it took, "output": what was printed}`.
Where `live` is given, the weights that are in the model when OneTrainer's own `end` begins are written there.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

import torch
from modules.trainer.GenericTrainer import GenericTrainer
from modules.util import create  # noqa: F401 - as scripts/train.py does first; the drop-in is imported with it


def note_live_weights(path: str) -> None:
    """Have the weights at the end of the training written down."""
    end = GenericTrainer.end

    def noting(trainer: GenericTrainer) -> None:
        torch.save([parameter.detach().clone() for parameter in trainer.model.parameters.parameters()], path)
        end(trainer)

    GenericTrainer.end = noting


def train(config: str, output: Path, live: str) -> None:
    """What `python scripts/train.py --config-path CONFIG` does. Does not return."""
    if live:
        note_live_weights(live)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["scripts/train.py", "--config-path", config]
    status = 0
    try:
        runpy.run_path("scripts/train.py", run_name="__main__")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    import threading

    threading._shutdown()  # as the interpreter does at its end: it waits for threads
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        output = Path(job["config"]).with_suffix(".log")
        output.write_bytes(b"")  # the child may be gone before it has written a word
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            train(job["config"], output, job["live"])
        if job["signal"]:
            time.sleep(job["after"])
            os.kill(child, job["signal"])
        _, status = os.waitpid(child, 0)
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - begin,
            "output": output.read_text(encoding="utf-8", errors="replace"),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
