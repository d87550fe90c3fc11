"""Measurements, made only when asked for: ``pytest tests/benchmarks --benchmark-only``.

Nothing here passes or fails by a time: each measurement prints medians and ratios, to be read beside the machine
that they were taken on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from .bench.checkout import copy_checkout, find_host, package_folder, run_python
from .bench.workers import BENCH, Bench

HERE = Path(__file__).parent
MIB = 1 << 20
Show = Callable[[str], None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip everything here unless measurements are asked for."""
    if config.getoption("--benchmark-only", default=False):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a measurement: run with --benchmark-only"))


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Prints a line in spite of the capturing."""

    def print_through(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return print_through


class Rounds:
    """Times contestants in turn, again and again: a busy moment of the machine hits all of them alike.

    Attributes:
        seconds: By contestant, one number a round.
    """

    def __init__(self, contestants: Mapping[str, Callable[[], object]]) -> None:
        self.contestants = dict(contestants)
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}

    def warm_up(self) -> None:
        """Run every contestant once, untimed."""
        for run in self.contestants.values():
            run()

    def once(self) -> None:
        """One round, beginning with another contestant each time."""
        names = list(self.contestants)
        turn = len(self.seconds[names[0]]) % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            self.contestants[name]()
            self.seconds[name].append(time.perf_counter() - begin)


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The median over the rounds of ``first / second`` of the same round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="session")
def onetrainer_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """OneTrainer in private copies, one without and one with the plugin enabled in it; no model."""
    host = find_host()
    if isinstance(host, str):
        pytest.skip(host)
    copies: dict[bool, Path] = {}

    def checkout(*, plugin: bool) -> Path:
        if plugin not in copies:
            folder = tmp_path_factory.mktemp("onetrainer")
            copies[plugin] = copy_checkout(host, folder / "One Trainer")
            if plugin:
                command = ["-m", "onetrainer_ema_select", "enable", copies[plugin]]
                done = run_python(host, command, cwd=folder, package=package_folder())
                assert done.returncode == 0, done.stderr
        return copies[plugin]

    folder = tmp_path_factory.mktemp("runs")
    bench = Bench(host, checkout=checkout, models=tmp_path_factory.mktemp("models"), folder=folder)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def big_models(onetrainer_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a random SD 1.5 of about 108 million weights in its UNet."""
    folder = tmp_path_factory.mktemp("big-models")
    done = run_python(onetrainer_bench.host, [HERE / "big_models.py", folder, BENCH], cwd=folder)
    assert done.returncode == 0, f"big_models.py failed:\n{done.stderr}"
    return folder
