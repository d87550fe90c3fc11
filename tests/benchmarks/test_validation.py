"""A validation of both sets beside OneTrainer's own of one, in the real OneTrainer: wall time."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from .bench import configs
from .bench.workers import BENCH, Bench, Job
from .conftest import Show

CASES: dict[str, tuple[configs.Family, dict[str, Any]]] = {
    "fine-tune float32": (configs.SD15_FINE_TUNE, {}),
    "fine-tune bf16, float32 EMA": (configs.SD15_FINE_TUNE, {"dtype": "BFLOAT_16"}),
    "LoRA": (configs.SD15_LORA, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_validation(name: str, onetrainer_bench: Bench, big_models: Any, benchmark: Any, show: Show) -> None:
    family, options = CASES[name]
    bench = onetrainer_bench
    run = bench.new_folder("validation")
    config = configs.make_config(
        family,
        models=big_models,
        run=run,
        config_version=bench.host.config_version,
        schedule=configs.Schedule(epochs=1, steps=4, validate_every=1),
        ema="CPU",
        overrides={"ema_select": {"enabled": True, "save_sets": "NON_EMA"}},
        **options,
    )
    # The pictures of the training as well, so that there is more than the two of the other concept.
    concepts = json.loads((run / "concepts.json").read_text(encoding="utf-8"))
    concepts += [{**concepts[1], "name": f"more {seed}", "path": concepts[0]["path"], "seed": seed} for seed in (3, 4)]
    configs.write_json(run / "concepts.json", concepts)
    job = Job("validation", config, hook=(BENCH / "hooks.py", "timed_validation"))

    recording = benchmark.pedantic(lambda: bench.run([job], plugin=True)[0], rounds=1, iterations=1)

    recording.require()
    assert "PROBLEM" not in recording.output
    seconds = json.loads((recording.workspace / "validation.json").read_text(encoding="utf-8"))
    own, both = seconds["own"][1:], seconds["all"][1:]  # the first one builds the cache
    ratio = statistics.median(two / one for one, two in zip(own, both, strict=True))
    show(
        f"\n{name}: OneTrainer's own pass {statistics.median(own):.3f} s, with the EMA's {statistics.median(both):.3f} "
        f"s: {ratio:.2f} x (median of {len(own)}, each of 10 images)"
    )
