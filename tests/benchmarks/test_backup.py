"""A backup with the plugin beside OneTrainer's own, in the real OneTrainer: wall time, and memory at the peak."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from .bench import configs
from .bench.workers import Bench, Job
from .conftest import HERE, MIB, Show, ratio


def test_backup(onetrainer_bench: Bench, big_models: Path, benchmark: Any, show: Show) -> None:
    bench = onetrainer_bench
    run = bench.new_folder("backup")
    config = configs.make_config(
        configs.SD15_FINE_TUNE,
        models=big_models,
        run=run,
        config_version=bench.host.config_version,
        schedule=configs.Schedule(epochs=1, steps=1),
        ema="CPU",
        overrides={"ema_select": {"enabled": True}},
    )
    job = Job("backup", config, hook=(HERE / "hooks.py", "backups"))

    recording = benchmark.pedantic(lambda: bench.run([job], plugin=True)[0], rounds=1, iterations=1)

    recording.require()
    assert "PROBLEM" not in recording.output
    found = json.loads((recording.workspace / "backups.json").read_text(encoding="utf-8"))
    seconds = {way: [entry[0] for entry in entries] for way, entries in found.items()}
    rise = {way: max(entry[1] for entry in entries) for way, entries in found.items()}
    own = seconds["OneTrainer's"]
    show("\nA backup of a fine-tune with AdamW and EMA:")
    for way, entries in found.items():
        show(
            f"  {way:18} {entries[0][2] / MIB:5.0f} MiB in {statistics.median(seconds[way]):6.3f} s, "
            f"{ratio(seconds[way], own):5.2f} x OneTrainer's; memory rises by "
            f"{rise[way] / MIB:7.1f} MiB"
        )
    flushed = ratio(seconds["the plugin's"], seconds["the same, flushed"])
    show(f"  the plugin's is {flushed:.2f} x OneTrainer's with the flush")
    benchmark.extra_info.update({"seconds": seconds, "rise": rise})
