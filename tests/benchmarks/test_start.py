"""What the plugin adds to the start of OneTrainer, in the real one."""

from __future__ import annotations

import json
import statistics
from typing import Any

from .bench import configs
from .bench.checkout import run_python
from .bench.workers import Bench
from .conftest import HERE, Rounds, Show

IN_PROCESS_ROUNDS = 5
WHOLE_ROUNDS = 5


def test_parts(onetrainer_bench: Bench, benchmark: Any, show: Show) -> None:
    """Each part, timed inside processes that have OneTrainer's modules imported already."""
    bench, found = onetrainer_bench, []

    def once() -> None:
        arguments, folder = [HERE / "hooks.py"], bench.checkout(plugin=False)
        done = run_python(bench.host, arguments, cwd=folder, package=bench.package(plugin=True))
        line = next((line for line in done.stdout.splitlines() if line.startswith("measured ")), None)
        assert line is not None, done.stderr
        found.append(json.loads(line.removeprefix("measured ")))

    benchmark.pedantic(once, rounds=IN_PROCESS_ROUNDS, iterations=1, warmup_rounds=1)

    show("\nAdded to OneTrainer's start, by part (median):")
    for part in found[0]:
        show(f"  {part:20} {statistics.median(seconds[part] for seconds in found[1:]) * 1e3:7.1f} ms")
    total = statistics.median(sum(seconds.values()) for seconds in found[1:])
    show(f"  {'together':20} {total * 1e3:7.1f} ms")
    benchmark.extra_info["together_ms"] = total * 1e3


def test_whole_process(onetrainer_bench: Bench, benchmark: Any, show: Show) -> None:
    """`scripts/train.py` until the model would be loaded: there is none, and the process ends with that error."""
    bench = onetrainer_bench

    def start(*, plugin: bool) -> None:
        section = {"ema_select": {"enabled": True}} if plugin else {}
        overrides = {"base_model_name": str(bench.folder / "no model"), **section}
        done = bench.train(bench.config(configs.SD15_LORA, ema="CPU", overrides=overrides), plugin=plugin)
        assert done.returncode != 0
        assert "no model" in done.stderr, done.stderr[-3000:]
        assert "WITHOUT" not in done.stderr, done.stderr[-3000:]

    rounds = Rounds({"without": lambda: start(plugin=False), "with": lambda: start(plugin=True)})
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=WHOLE_ROUNDS, iterations=1)

    pairs = zip(rounds.seconds["with"], rounds.seconds["without"], strict=True)
    added = statistics.median(first - second for first, second in pairs)
    show("\nStart of scripts/train.py, the whole process:")
    for name, seconds in rounds.seconds.items():
        show(f"  {name:8} {statistics.median(seconds):6.2f} s  ({', '.join(f'{value:.2f}' for value in seconds)})")
    show(f"  added {added * 1e3:.0f} ms (median of the rounds' differences)")
    benchmark.extra_info["added_ms"] = added * 1e3
