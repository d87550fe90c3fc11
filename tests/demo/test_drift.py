"""The curves of the stand-in's runs, over a resume, and what they are warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BASE: dict[str, Any] = {
    "training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS", "concepts": [], "samples": [],
    "epochs": 8, "backup_after_unit": "NEVER", "backup_before_save": True, "ema": "CPU", "ema_decay": 0.999,
    "ema_update_step_interval": 5, "ema_select": {"enabled": True},
}  # fmt: skip
EPOCH = 8


@pytest.fixture(scope="module")
def places(run_jobs, tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("drift")
    jobs, folders = [], {}

    def add(name: str, *, folder: str = "", **keys: Any) -> None:
        home = folders[name] = place / (folder or name)
        paths = {"workspace_dir": str(home / "workspace"), "output_model_destination": str(home / "model.safetensors")}
        jobs.append({"name": name, "config": {**BASE, **paths, **keys}, "plugin": True})

    add("whole")
    add("first", folder="two", epochs=4)
    add("second", folder="two", continue_last_backup=True)
    add("rests", epochs=3, learning_rate=1e-12, output_dtype="BFLOAT_16")
    run_jobs(jobs)
    return folders


def noted(place: Path) -> list[dict[str, Any]]:
    path = place / "workspace" / "ema_select" / "drift.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def drawn(place: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for path in sorted((place / "workspace" / "tensorboard").glob("*/scalars.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found.setdefault(entry["tag"], {})[entry["step"]] = entry.get("value", entry.get("text"))
    return found


def test_there_is_a_point_at_every_update_of_a_short_run(places):
    points = [entry for entry in noted(places["whole"]) if "warning" not in entry]
    assert [entry["step"] for entry in points] == [*range(5, 65, 5), 64]  # and what is saved at the end
    board = drawn(places["whole"])
    for key in ("distance", "distance/unet", "distance/text_encoder", "half_life_steps/EMA", "start_share"):
        assert board[f"ema_select/{key}"] == {entry["step"] - 1: entry[key] for entry in points}
    # the decay of an update, as the host draws it, and of a step
    for entry in points[:-1]:
        assert entry["decay_per_step"] ** 5 == pytest.approx(board["ema_decay"][entry["step"] - 1])


def test_a_resumed_run_goes_on_with_the_curves(places):
    whole, two = ([entry for entry in noted(places[name]) if "warning" not in entry] for name in ("whole", "second"))
    # step 32 is the end of the first, whose backup and output are looked at
    assert [entry["step"] for entry in two] == [*range(5, 31, 5), 32, *range(35, 65, 5), 64]
    for name in ("distance", "distance/unet", "half_life_steps/EMA", "start_share"):
        ours = {entry["step"]: entry[name] for entry in two}
        assert [ours[entry["step"]] for entry in whole] == pytest.approx([entry[name] for entry in whole], rel=1e-9)


def test_steady_training_is_not_warned_of(places):
    assert [entry for entry in noted(places["whole"]) if "warning" in entry] == []


def test_a_learning_rate_that_is_far_too_low_is_warned_of(places):
    assert [entry["warning"] for entry in noted(places["rests"]) if "warning" in entry] == ["same"]
