"""Fixtures for the tests against the real OneTrainer; without one, every test here is skipped and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .bench.checkout import Host, copy_checkout, find_host, package_folder, run_python
from .bench.workers import BENCH, Bench, MakeCheckout

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder; skip them all where there is no OneTrainer."""
    found = find_host()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.onetrainer)
            if isinstance(found, str):
                item.add_marker(pytest.mark.skip(reason=found))


@pytest.fixture(scope="session")
def host() -> Host:
    """The OneTrainer found; its folder is never written to."""
    found = find_host()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def checkout(host: Host, tmp_path_factory: pytest.TempPathFactory) -> MakeCheckout:
    """Gives the session's private copy of OneTrainer, one without and one with the plugin enabled in it."""
    copies: dict[bool, Path] = {}

    def get(*, plugin: bool) -> Path:
        if plugin not in copies:
            folder = tmp_path_factory.mktemp("onetrainer-plugin" if plugin else "onetrainer-plain")
            copies[plugin] = copy_checkout(host, folder / "One Trainer")
            if plugin:
                command = ["-m", "onetrainer_ema_select", "enable", copies[plugin]]
                done = run_python(host, command, cwd=folder, package=package_folder())
                assert done.returncode == 0, f"enable failed:\n{done.stdout}\n{done.stderr}"
        return copies[plugin]

    return get


@pytest.fixture(scope="session")
def bench(host: Host, checkout: MakeCheckout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Runs jobs in OneTrainer, with the tiny models in ``bench.models``; see ``bench/workers.py``."""
    models = tmp_path_factory.mktemp("models")
    made = Bench(host, checkout=checkout, models=models, folder=tmp_path_factory.mktemp("runs"))
    made.worker(plugin=False).warm_up()  # its imports take as long as the making of the models
    done = run_python(host, [BENCH / "models.py", models], cwd=models)
    try:
        assert done.returncode == 0, f"models.py failed:\n{done.stderr}"
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def models(bench: Bench) -> Path:
    """The folder with the tiny models and the pictures."""
    return bench.models
