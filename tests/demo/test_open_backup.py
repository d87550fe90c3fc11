"""`open_backup` on backups of real runs of the stand-in: each set is what was in the model, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onetrainer_ema_select.backups import open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.demo.runner import BASE_CONFIG
from onetrainer_ema_select.workspace import newest_complete_backup

METHODS = ("FINE_TUNE", "LORA", "EMBEDDING")


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """Each method with the plugin and without: what was in the model at the end, and the last backup."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [
        {
            "name": f"{method}-{'plugin' if plugin else 'plain'}",
            "plugin": plugin,
            "config": {
                **BASE_CONFIG,
                "training_method": method,
                "workspace_dir": str(folder / f"{method}-{'plugin' if plugin else 'plain'}"),
                "output_model_destination": str(folder / f"{method}-{plugin}.safetensors"),
                "output_model_format": {"LORA": "KOHYA_LORA", "EMBEDDING": "SAFETENSORS"}.get(
                    method, "LEGACY_SAFETENSORS"
                ),
                "epochs": 2,
                "ema": "CPU",
                "backup_before_save": True,
                **({"ema_select": {"enabled": True}} if plugin else {}),
            },
        }
        for method in METHODS
        for plugin in (True, False)
    ]
    results = run_jobs(jobs)
    found = {}
    for job in jobs:
        backup, _ = newest_complete_backup(Path(job["config"]["workspace_dir"]))
        assert backup is not None
        found[job["name"]] = (results[job["name"]], backup)
    return found


def model_name(stable: str, live: dict[str, torch.Tensor]) -> str:
    """The name by which worker.py knows a stable name."""
    if stable.startswith("embedding."):
        return next(name for name in live if name.startswith("embedding."))
    return stable.replace("_lora.", ".")


@pytest.mark.parametrize("method", METHODS)
def test_sets_by_name(runs, method):
    result, path = runs[f"{method}-plugin"]
    backup = open_backup(path)
    assert backup.named
    assert (backup.training_method, backup.model_type) == (method, "STABLE_DIFFUSION_15")
    assert backup.step == backup.manifest.step > 0
    live, ema = backup.sets[WeightSet.NON_EMA], backup.sets[WeightSet.EMA]
    assert set(backup.places) == set(ema.names)
    assert [model_name(name, result["live"]) for name in ema] == list(result["ema"])
    for name in ema:
        assert torch.equal(ema[name], result["ema"][model_name(name, result["live"])])
        assert torch.equal(live[name], result["live"][model_name(name, result["live"])])
    assert any(not torch.equal(ema[name].to(live.dtype(name)), live[name]) for name in ema)


@pytest.mark.parametrize("method", METHODS)
def test_a_backup_of_plain_onetrainer(runs, method):
    result, path = runs[f"{method}-plain"]
    backup = open_backup(path)
    assert (backup.manifest, backup.named, backup.places) == (None, False, {})
    ema = backup.sets[WeightSet.EMA]
    assert ema.names == tuple(f"position.{number}" for number in range(len(result["ema"])))
    for name, expected in zip(ema, result["ema"].values(), strict=True):
        assert torch.equal(ema[name], expected)

    with_plugin = open_backup(runs[f"{method}-plugin"][1])
    names = with_plugin.sets[WeightSet.EMA].names
    if method == "EMBEDDING":  # its name is new in every run
        (file,) = (path / "embeddings").glob("*.safetensors")
        names = tuple(f"embedding.{file.stem}.{name.split('.', 2)[2]}" for name in names)
    named = open_backup(path, names=names)
    assert named.named
    assert set(named.places) == set(names)
    for name in names:
        assert torch.equal(named.sets[WeightSet.NON_EMA][name], result["live"][model_name(name, result["live"])])
