"""With the section off, OneTrainer behaves bit for bit as without the plugin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import Recording, difference, read_metadata, same_bits
from .bench.workers import Bench, Job

BUSY = Schedule(epochs=2, steps=4, save_every=3, backup_every=4, sample_every=4, validate_every=4, backup_at_end=True)
FAMILIES = (configs.SD15_FINE_TUNE, configs.SD15_LORA, configs.CASCADE_LORA)


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, tuple[Recording, Recording]]:
    """EMA on, no plugin; and the same with the plugin enabled in OneTrainer and its section off."""
    batches = {}
    for family in FAMILIES:
        options: dict[str, Any] = {"schedule": BUSY, "ema": "CPU", "ema_decay": 0.9}
        config = bench.config(family, **options, overrides={"include_train_config": "SETTINGS"})
        off = {"enabled": False, "milestones": "2 steps", "save_sets": "BOTH"}
        with_section = bench.config(
            family, **options, overrides={"include_train_config": "SETTINGS", "ema_select": off}
        )
        batches[family.name] = (
            bench.start([Job(family.name, config, record=("live", "ema"))], plugin=False),
            bench.start([Job(family.name, with_section, record=("live", "ema"))], plugin=True),
        )
    return {name: (plain.results()[0].require(), off.results()[0].require()) for name, (plain, off) in batches.items()}


each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each_family
def test_weights_average_optimizer_and_random_states(
    runs: dict[str, tuple[Recording, Recording]], family: configs.Family
) -> None:
    plain, off = runs[family.name]
    for step in plain.step_numbers():
        assert difference(plain.step(step), off.step(step)) == 0.0
        assert difference(plain.step(step, "ema"), off.step(step, "ema")) == 0.0
    assert same_bits(plain.optimizer(), off.optimizer())
    assert plain.result["random"] == off.result["random"]
    assert plain.result["statuses"] == off.result["statuses"]


@each_family
def test_files_are_the_same_in_name_tensors_keys_and_metadata(
    runs: dict[str, tuple[Recording, Recording]], family: configs.Family
) -> None:
    plain, off = runs[family.name]
    found = [files_of(recording) for recording in (plain, off)]
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) >= 15
    assert found[0] == found[1]


def files_of(recording: Recording) -> dict[str, Any]:
    """Everything a run wrote, by name without its time: contents, for models metadata and a digest of the tensors."""
    from safetensors.torch import load_file

    contents: dict[str, Any] = {}
    run = recording.workspace.parent
    for root in (recording.workspace, recording.output_folder):
        for path in sorted(root.rglob("*")):
            if not path.is_file() or "tensorboard" in path.parts:
                continue
            name = configless(path.relative_to(run).as_posix())
            if path.suffix == ".safetensors":
                tensors = {key: tensor.view(-1).tolist() for key, tensor in load_file(path).items()}
                metadata = read_metadata(path)
                if "ot_config" in metadata:
                    metadata["ot_config"] = without_section(json.loads(metadata["ot_config"]), run)
                contents[name] = tensors, metadata
            elif path.suffix == ".json":
                contents[name] = without_section(json.loads(path.read_text(encoding="utf-8")), run)
            elif path.suffix != ".pt":  # an archive that carries its own folder's name; compared as loaded tensors
                contents[name] = path.read_bytes()
    return contents


def configless(name: str) -> str:
    """A name without the time in it."""
    import re

    return re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "TIME", name)


def without_section(config: Any, run: Any) -> Any:
    """A configuration without the section, which alone may differ, and with neutral paths."""
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key != "ema_select"}
    return json.loads(json.dumps(config).replace(run.as_posix(), "RUN"))
