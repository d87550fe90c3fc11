"""An export beside OneTrainer's own conversion of a model of that size: wall time, and memory at the peak.

Both are whole processes, imports included. Memory is the resident sets of all processes of a command together.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .bench import configs
from .bench.checkout import host_environment, package_folder, run_python
from .bench.workers import BENCH, Bench, Job
from .conftest import HERE, MIB, Show, ratio

ROUNDS = 3
CHANNELS = 704  # about 523 million weights in the UNet, 2.1 GB of float32
FORMATS = ("ORIGINAL_SINGLE_FILE", "DIFFUSERS")


def resident(pid: int) -> int:
    """Bytes of a process and its children, in memory now."""
    total = 0
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        total = int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return total
    return total + sum(resident(int(child)) for child in children)


def measure(command: Sequence[object], *, cwd: Path, package: Path | None) -> tuple[float, int]:
    """Seconds and bytes at the peak."""
    begin = time.perf_counter()
    samples: list[int] = []
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=host_environment(package=package),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while process.poll() is None:
        samples.append(resident(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    assert process.stdout is not None
    assert process.returncode == 0, process.stdout.read().decode()
    # A process that is about to start another one shows its own memory twice for a moment.
    return seconds, max(map(min, zip(samples, samples[1:], samples[2:], strict=False)))


@pytest.mark.parametrize("model_format", FORMATS)
def test_export(
    onetrainer_bench: Bench, backup: Path, benchmark: Any, show: Show, tmp_path: Path, model_format: str
) -> None:
    bench = onetrainer_bench
    checkout = bench.checkout(plugin=False)
    output = tmp_path / ("model" if model_format == "DIFFUSERS" else "model.safetensors")
    base = backup.parents[2] / "base"
    convert = [
        bench.host.python, Path("scripts") / "convert_model.py", "--model-type", "STABLE_DIFFUSION_15",
        "--training-method", "FINE_TUNE", "--input-name", base, "--output-dtype", "FLOAT_32",
        "--output-model-format", model_format, "--output-model-destination", output,
    ]  # fmt: skip
    export = [
        bench.host.python, "-m", "onetrainer_ema_select", "export", backup, "--output", output, "--onetrainer",
        checkout, "--overwrite", "--dtype", "FLOAT_32", "--format", model_format,
    ]  # fmt: skip
    ways = {
        "OneTrainer's conversion": (convert, None),
        "export, EMA": ([*export, "--set", "ema"], package_folder()),
        "export, non-EMA": ([*export, "--set", "non-ema"], package_folder()),
        "export, both": ([*export, "--set", "both"], package_folder()),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}

    def round_of_all() -> None:
        for name, (command, package) in ways.items():
            found[name].append(measure(command, cwd=checkout, package=package))

    round_of_all()  # files are in the cache then, and Python has compiled what it imports
    for entries in found.values():
        entries.clear()
    benchmark.pedantic(round_of_all, rounds=ROUNDS, iterations=1)

    own_seconds, own_peaks = zip(*found["OneTrainer's conversion"], strict=True)
    size = sum(file.stat().st_size for file in base.rglob("*.safetensors"))
    show(f"\n{model_format}, a model of {size / MIB:.0f} MiB:")
    for name, entries in found.items():
        seconds, peaks = zip(*entries, strict=True)
        show(
            f"  {name:24} {statistics.median(seconds):6.2f} s, {ratio(seconds, own_seconds):5.2f} x; "
            f"peak {statistics.median(peaks) / MIB:6.0f} MiB, {ratio(peaks, own_peaks):5.2f} x"
        )
    benchmark.extra_info.update(found)


@pytest.fixture(scope="module")
def backup(onetrainer_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of plain OneTrainer with EMA; the base model lies two folders above it as ``base``."""
    bench = onetrainer_bench
    models = tmp_path_factory.mktemp("export-models")
    done = run_python(bench.host, [HERE / "big_models.py", models, BENCH, CHANNELS], cwd=models)
    assert done.returncode == 0, done.stderr
    config = configs.make_config(
        configs.SD15_FINE_TUNE,
        models=models,
        run=models,
        config_version=bench.host.config_version,
        schedule=configs.Schedule(epochs=1, steps=1, backup_at_end=True),
        ema="CPU",
        overrides={"optimizer": {"optimizer": "SGD"}, "base_model_name": str(models / "sd15")},
    )
    bench.run([Job("export", config)], plugin=False)[0].require()
    (models / "sd15").rename(models / "base")
    return max((models / "workspace" / "backup").iterdir())
