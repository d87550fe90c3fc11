"""A dual save beside OneTrainer's single one, in the real OneTrainer: wall time, and memory at the peak."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from .bench import configs
from .bench.workers import Bench, Job
from .conftest import HERE, MIB, Show, ratio

LORA_RANK = 256


@pytest.mark.parametrize("family", [configs.SD15_FINE_TUNE, configs.SD15_LORA], ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", ["FLOAT_32", "BFLOAT_16"])
def test_dual_save(
    family: configs.Family, dtype: str, onetrainer_bench: Bench, big_models: Path, benchmark: Any, show: Show
) -> None:
    bench = onetrainer_bench
    run = bench.new_folder(f"dual-save-{family.name}")
    config = configs.make_config(
        family,
        models=big_models,
        run=run,
        config_version=bench.host.config_version,
        schedule=configs.Schedule(epochs=1, steps=1),
        ema="CPU",
        output_dtype=dtype,
        overrides={"ema_select": {"enabled": True}, "lora_rank": LORA_RANK},
    )
    formats = [name for name in family.formats if not name.startswith("LEGACY")][:2]
    configs.write_json(run / "formats.json", formats)
    job = Job(f"dual-save-{family.name}", config, hook=(HERE / "hooks.py", "dual_saves"))

    recording = benchmark.pedantic(lambda: bench.run([job], plugin=True)[0], rounds=1, iterations=1)

    recording.require()
    result = json.loads((recording.workspace / "dual-save.json").read_text(encoding="utf-8"))
    problems = [line for line in recording.output.splitlines() if "PROBLEM" in line]
    assert not problems
    show(f"\nDual save, {family.name}, file in {dtype}; the largest tensor has {result['largest'] / MIB:.1f} MiB:")
    for name, found in result["formats"].items():
        seconds = {way: [entry[0] for entry in entries] for way, entries in found.items()}
        rise = {way: max(entry[1] for entry in entries) for way, entries in found.items()}
        show(f"  {name}:")
        for way in found:
            show(
                f"    {way:16} {found[way][0][2] / MIB:5.0f} MiB in {statistics.median(seconds[way]):6.3f} s,"
                f" {ratio(seconds[way], seconds['single']):5.2f}"
                f" x single; memory rises by {rise[way] / MIB:7.1f} MiB,"
                f" {(rise[way] - rise['single']) / MIB:+6.1f} MiB to single"
            )
        flushed = ratio(seconds["dual, on disk"], seconds["single, flushed"])
        twice = ratio(seconds["dual"], seconds["two single ones"])
        show(f"    dual is {twice:.2f} x two single ones; on disk {flushed:.2f} x a single one that is flushed as well")
        benchmark.extra_info[name] = {"seconds": seconds, "rise": rise}
