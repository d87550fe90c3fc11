"""Runs of the stand-in without the plugin and with it: the plugin's promises in small, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from onetrainer_ema_select.workspace import scan_workspace

UUID = "00000000-0000-4000-8000-000000000001"
EXTRA = {"uuid": "00000000-0000-4000-8000-000000000002", "placeholder": "<extra>", "token_count": 2}
# A new embedding begins as the embedding of a known word and learns fast.
METHODS: dict[str, dict[str, Any]] = {
    "fine-tune": {"training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS"},
    "folder": {"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS"},
    "bf16": {
        "training_method": "FINE_TUNE",
        "output_model_format": "LEGACY_SAFETENSORS",
        "unet": {"weight_dtype": "BFLOAT_16"},
        "text_encoder": {"weight_dtype": "BFLOAT_16"},
    },
    "lora": {
        "training_method": "LORA",
        "output_model_format": "KOHYA_LORA",
        "additional_embeddings": [EXTRA],
        "bundle_additional_embeddings": False,
    },
    "embedding": {
        "training_method": "EMBEDDING",
        "output_model_format": "SAFETENSORS",
        "embedding": {"uuid": UUID, "token_count": 2},
        "embedding_learning_rate": 0.1,
    },
}
BUSY = {
    "save_every": 5, "save_every_unit": "STEP", "backup_after": 9, "backup_after_unit": "STEP",
    "samples": [{"prompt": "a", "diffusion_steps": 2}], "sample_after": 6, "sample_after_unit": "STEP",
    "validation": True, "validate_after": 1, "validate_after_unit": "EPOCH",
}  # fmt: skip
EMA = {"ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 1}
ON = {"ema_select": {"enabled": True, "milestones": "2 epochs"}}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("standin-runs")


@pytest.fixture(scope="session")
def runs(run_jobs, place):
    """Every job once; each has a folder of its own in `place`."""
    jobs = []

    def add(name: str, method: str, *parts: dict[str, Any], plugin: bool, folder: str = "") -> None:
        config: dict[str, Any] = {"concepts": [], "samples": [], "epochs": 3, "backup_after_unit": "NEVER"}
        for part in (METHODS[method], *parts):
            config |= part
        ending = "" if method == "folder" else ".safetensors"
        config["workspace_dir"] = str(place / (folder or name) / "workspace")
        config["output_model_destination"] = str(place / (folder or name) / f"model{ending}")
        jobs.append({"name": name, "config": config, "plugin": plugin})

    for method in METHODS:
        add(f"{method}-quiet", method, plugin=False)
        add(f"{method}-host", method, EMA, BUSY, plugin=False)
        add(f"{method}-ours", method, EMA, BUSY, ON, plugin=True)
        add(f"{method}-off", method, EMA, BUSY, plugin=True)
        add(f"{method}-first", method, EMA, BUSY, ON, {"epochs": 1}, plugin=True, folder=f"{method}-two")
        again = {"continue_last_backup": True}
        add(f"{method}-second", method, EMA, BUSY, ON, again, plugin=True, folder=f"{method}-two")
    add("plain-resumed", "fine-tune", EMA, {"continue_last_backup": True, "epochs": 4}, plugin=False,
        folder="fine-tune-two")  # fmt: skip
    return run_jobs(jobs)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_states(first: Any, second: Any) -> bool:
    """Optimizer states, exactly."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_states(first[key], second[key]) for key in first)
    return bool(first == second)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """A saved model's tensors, from a file or a folder."""
    if path.is_file():
        return load_file(path)
    return {f"{file.parent.name}.{key}": value for file in path.rglob("*.safetensors") for key, value in
            load_file(file).items()}  # fmt: skip


def values(state: dict[str, torch.Tensor]) -> list[float]:
    """Sums of the tensors, in order: what remains of them when savers have renamed the keys."""
    return sorted(float(tensor.double().sum()) for tensor in state.values())


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    def test_host_alone_loses_the_live_weights_with_its_saves(self, runs, method):
        # otherwise the next test would prove nothing; embeddings are not moved, so they are spared
        if method == "embedding":
            pytest.skip("an embedding's vector is trained in place here too, but see the next test")
        assert not same(runs[f"{method}-quiet"]["live"], runs[f"{method}-host"]["live"])

    def test_live_weights_and_optimizer_are_those_of_a_run_without_ema(self, runs, method):
        quiet, ours = runs[f"{method}-quiet"], runs[f"{method}-ours"]
        assert same(quiet["live"], ours["live"])
        assert same_states(quiet["optimizer"], ours["optimizer"])

    def test_switched_off_nothing_changes(self, runs, method):
        host, off = runs[f"{method}-host"], runs[f"{method}-off"]
        assert same(host["live"], off["live"])
        assert same_states(host["optimizer"], off["optimizer"])
        assert all(torch.equal(a, b) for a, b in zip(host["ema"], off["ema"], strict=True))

    def test_nothing_is_drawn_from_the_global_random_state(self, runs, method):
        assert not runs[f"{method}-host"]["drawn"]
        assert not runs[f"{method}-ours"]["drawn"]

    def test_resumed_run_equals_the_uninterrupted_one(self, runs, method):
        whole, second = runs[f"{method}-ours"], runs[f"{method}-second"]
        assert same(whole["live"], second["live"])
        assert same_states(whole["optimizer"], second["optimizer"])
        assert whole["ema"]
        assert all(torch.equal(a, b) for a, b in zip(whole["ema"], second["ema"], strict=True))

    def test_both_sets_of_the_final_output_are_what_they_claim(self, runs, place, method):
        folder = place / f"{method}-ours"
        ending = "" if method == "folder" else ".safetensors"
        ema, live = tensors(folder / f"model{ending}"), tensors(folder / f"model-non-ema{ending}")
        assert ema.keys() == live.keys()
        quiet = tensors(place / f"{method}-quiet" / f"model{ending}")
        assert same(live, quiet), "the non-EMA file is the one that a run without EMA writes"
        ours = runs[f"{method}-ours"]
        exact = values({str(i): tensor for i, tensor in enumerate(ours["ema"])})
        assert all(any(abs(total - found) < 1e-9 for found in values(ema)) for total in exact if method != "lora")

    def test_every_save_and_the_milestone_have_both_sets(self, runs, place, method):
        view = scan_workspace(place / f"{method}-ours" / "workspace")
        steps = sorted(save.step for save in view.saves if save.set == "ema")
        assert steps == [4, 9, 14, 16, 19]
        assert steps == sorted(save.step for save in view.saves if save.set == "non-ema")
        assert {save.step: save.milestone for save in view.saves if save.milestone} == {16: "2 epochs"}
        assert all(save.partner is not None for save in view.saves)
        assert [(backup.step, backup.complete, backup.sets) for backup in view.backups] == [
            (24, True, ("non-ema", "ema")),
            (17, True, ("non-ema", "ema")),
            (8, True, ("non-ema", "ema")),
        ]


def test_embeddings_beside_a_lora_follow_their_set(runs, place):
    folder = place / "lora-ours"
    ema = load_file(folder / "model.safetensors_embeddings" / "extra.safetensors")
    live = load_file(folder / "model-non-ema.safetensors_embeddings" / "extra.safetensors")
    assert not same(ema, live)
    assert torch.equal(live["emp_params"], runs["lora-ours"]["live"]["embedding.<extra>"])


def test_titles_and_hashes_tell_the_files_apart(runs, place):
    def header(name: str) -> dict[str, str]:
        with safe_open(place / "fine-tune-ours" / name, "pt") as file:
            return dict(file.metadata())

    ema, live = header("model.safetensors"), header("model-non-ema.safetensors")
    assert (ema["ema_select.set"], live["ema_select.set"]) == ("EMA", "NON_EMA")
    assert ema["modelspec.title"] != live["modelspec.title"]
    assert ema["modelspec.hash_sha256"] != live["modelspec.hash_sha256"]


def test_plain_host_resumes_from_a_backup_of_ours(runs):
    assert runs["plain-resumed"]["ema"]
