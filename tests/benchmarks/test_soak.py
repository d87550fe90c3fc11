"""Does memory grow with the number of saves? A long run of the stand-in, with a dual save every ten steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host.dropin import enable

from .bench.checkout import package_folder
from .conftest import MIB, Show

STEPS = 5000
SOAK = """
import gc, json, shutil, sys
from pathlib import Path
sys.path[:0] = [str(Path.cwd()), sys.argv[1]]
from modules.util import create
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.TrainConfig import TrainConfig

resident = {}

def note(progress, *_):
    step = progress.global_step
    if step % 10 == 0:
        for path in Path(config.workspace_dir, "save").glob("*"):  # the disk is not what is measured
            path.unlink() if path.is_file() else shutil.rmtree(path)
    if step % 500 == 0 and step not in resident:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        resident[step] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

config = TrainConfig.default_values().from_dict(json.loads(Path(sys.argv[2]).read_text()))
trainer = create.create_trainer(config, TrainCallbacks(on_update_train_progress=note), TrainCommands())
trainer.start()
trainer.train()
trainer.end()
Path(sys.argv[3]).write_text(json.dumps(resident))
"""


def test_memory_does_not_grow_with_the_saves(tmp_path: Path, benchmark: Any, show: Show) -> None:
    folder = copy_standin(tmp_path / "OneTrainer")
    enable(folder)
    config = {
        "training_method": "FINE_TUNE",
        "output_model_format": "LEGACY_SAFETENSORS",
        "concepts": [],
        "samples": [],
        "workspace_dir": str(tmp_path / "run"),
        "output_model_destination": str(tmp_path / "models" / "model.safetensors"),
        "epochs": STEPS // 8,
        "ema": "CPU",
        "backup_after_unit": "NEVER",
        "save_every": 10,
        "save_every_unit": "STEP",
        "ema_select": {"enabled": True},
    }
    (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        SOAK,
        str(package_folder()),
        str(tmp_path / "run.json"),
        str(tmp_path / "rss.json"),
    ]

    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True), rounds=1, iterations=1
    )

    resident = {int(step): size for step, size in json.loads((tmp_path / "rss.json").read_text()).items()}
    last = max(resident)
    growth = resident[last] / resident[500] - 1
    show(
        f"\n{last} steps, a dual save every 10: {resident[500] / MIB:.1f} MiB at step 500, "
        f"{resident[last] / MIB:.1f} MiB at the end ({growth:+.2%})"
    )
    assert growth < 0.02
