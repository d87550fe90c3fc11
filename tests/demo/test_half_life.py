"""Half-lives in runs of the stand-in: the same length at another interval, and over a resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

BASE: dict[str, Any] = {
    "training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS", "concepts": [], "samples": [],
    "epochs": 60, "backup_after_unit": "NEVER", "ema": "CPU", "ema_decay": 0.5, "ema_update_step_interval": 1,
    "learning_rate": 1e-4, "ema_select": {"enabled": True, "ema_half_life": "20 epochs"},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    place = tmp_path_factory.mktemp("half-lives")
    jobs = []

    def add(name: str, *, folder: str = "", **keys: Any) -> None:
        home = place / (folder or name)
        paths = {"workspace_dir": str(home / "workspace"), "output_model_destination": str(home / "model.safetensors")}
        jobs.append({"name": name, "config": {**BASE, **paths, **keys}, "plugin": True})

    add("plain")
    add("interval", ema_update_step_interval=5)
    images = {"enabled": True, "ema_half_life": "640 images"}  # of 32 an epoch
    add("images", ema_select=images)
    # 21 epochs of 8 steps are 168: the last update was at 165
    add("first", folder="two", ema_update_step_interval=5, epochs=21)
    add("second", folder="two", ema_update_step_interval=5, continue_last_backup=True)
    return run_jobs(jobs)


def flat(tensors: dict[str, torch.Tensor], names: Any) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])


def test_the_interval_does_not_matter(runs):
    names = list(runs["plain"]["ema"])
    plain, other = (flat(runs[run]["ema"], names) for run in ("plain", "interval"))
    live = flat(runs["plain"]["live"], names)
    apart = float((plain - other).norm() / (plain - live).norm())
    print(f"interval 5 against 1: {apart:.4f} of the distance from the last weights")
    assert 0 < apart <= 0.02


def test_epochs_are_images(runs):
    assert all(torch.equal(tensor, runs["images"]["ema"][name]) for name, tensor in runs["plain"]["ema"].items())


def test_a_resumed_run_equals_the_uninterrupted_one(runs):
    assert all(torch.equal(tensor, runs["second"]["ema"][name]) for name, tensor in runs["interval"]["ema"].items())
