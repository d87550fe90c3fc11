"""Runs of the stand-in without the plugin and with it: the plugin's promises in small, on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.host.dropin import disable, enable
from onetrainer_ema_select.workspace import scan_workspace

from .conftest import environment

UUID = "00000000-0000-4000-8000-000000000001"
EXTRA = {"uuid": "00000000-0000-4000-8000-000000000002", "placeholder": "<extra>", "token_count": 2}
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


def file_key(method: str, name: str) -> str:
    """The key in a saved model for a weight's name in the model."""
    if method == "embedding":
        return "emp_params"
    if method == "lora":
        layer, leaf = name.split(".lora_")
        return f"lora_{layer.replace('text_encoder', 'te', 1).replace('.', '_')}.lora_{leaf}"
    if method == "folder":
        return name
    part, rest = name.split(".", 1)
    return {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model."}[part] + rest


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    def test_host_alone_loses_the_live_weights_with_its_saves(self, runs, method):
        # otherwise the next test would prove nothing
        assert not same(runs[f"{method}-quiet"]["live"], runs[f"{method}-host"]["live"])

    def test_live_weights_and_optimizer_are_those_of_a_run_without_ema(self, runs, method):
        quiet, ours = runs[f"{method}-quiet"], runs[f"{method}-ours"]
        assert same(quiet["live"], ours["live"])
        assert same_states(quiet["optimizer"], ours["optimizer"])

    def test_switched_off_nothing_changes(self, runs, method):
        host, off = runs[f"{method}-host"], runs[f"{method}-off"]
        assert same(host["live"], off["live"])
        assert same_states(host["optimizer"], off["optimizer"])
        assert same(host["ema"], off["ema"])

    def test_nothing_is_drawn_from_the_global_random_state(self, runs, method):
        assert not runs[f"{method}-host"]["drawn"]
        assert not runs[f"{method}-ours"]["drawn"]

    def test_resumed_run_equals_the_uninterrupted_one(self, runs, method):
        whole, second = runs[f"{method}-ours"], runs[f"{method}-second"]
        assert same(whole["live"], second["live"])
        assert same_states(whole["optimizer"], second["optimizer"])
        assert whole["ema"]
        assert same(whole["ema"], second["ema"])

    def test_both_sets_of_the_final_output_are_what_they_claim(self, runs, place, method):
        folder = place / f"{method}-ours"
        ending = "" if method == "folder" else ".safetensors"
        ema, live = tensors(folder / f"model{ending}"), tensors(folder / f"model-non-ema{ending}")
        assert ema.keys() == live.keys()
        quiet = tensors(place / f"{method}-quiet" / f"model{ending}")
        assert same(live, quiet), "the non-EMA file is the one that a run without EMA writes"
        track = runs[f"{method}-ours"]["ema"]
        for name, average in track.items():
            if method != "lora" or not name.startswith("embedding."):  # that one lies beside it
                assert torch.equal(ema[file_key(method, name)], average), name

    def test_every_save_and_the_milestone_have_both_sets(self, runs, place, method):
        view = scan_workspace(place / f"{method}-ours" / "workspace")
        steps = sorted(save.step for save in view.saves if save.set == "ema")
        assert steps == [4, 9, 14, 16, 19]
        assert steps == sorted(save.step for save in view.saves if save.set == "non-ema")
        assert {save.step: save.milestone for save in view.saves if save.milestone} == {16: "2 epochs"}
        assert all(save.partner is not None for save in view.saves)
        both = ("non-ema", "ema")
        # their names have whole seconds, in which this model may take all of its steps
        found = sorted((backup.step, backup.complete, backup.sets) for backup in view.backups)
        assert found == [(8, True, both), (17, True, both), (24, True, both)]


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


class TestScript:
    """scripts/train.py, started as OneTrainer's users start it."""

    @pytest.fixture
    def train(self, tmp_path):
        folder = copy_standin(tmp_path / "One Trainer")
        config = {"concepts": [], "samples": [], "epochs": 2, "workspace_dir": str(tmp_path / "workspace")} | EMA
        (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")

        def run(*values: str, check: bool = True) -> str:
            command = [sys.executable, "scripts/train.py", "--config-path", str(tmp_path / "run.json")]
            for value in values:
                command += ["--config-value", value]
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                check=False,
            )
            assert (done.returncode == 0) == check, done.stdout
            return done.stdout

        run.folder = folder
        return run

    def test_the_dropin_of_enable_starts_the_plugin_and_disable_ends_it(self, train):
        path = enable(train.folder)
        assert path.parent == train.folder / "modules" / "modelSetup"
        asked = train("ema_select.enabled=true")
        assert "[ema_select] Training starts" in asked
        assert (train.folder / "models" / "model-non-ema.safetensors").is_file()
        assert "[ema_select]" not in train()
        disable(train.folder)
        assert "AttributeError" in train("ema_select.enabled=true", check=False)

    def test_a_wrong_section_stops_before_the_model_is_loaded(self, train):
        enable(train.folder)
        printed = train("ema_select.enabled=true", "ema_select.save_sets=BOHT", "base_model_name=none", check=False)
        assert "BOHT" in printed
        assert "could not load model" not in printed

    def test_a_model_that_is_not_there(self, train):
        assert "could not load model: none" in train("base_model_name=none", check=False)

    def test_a_saved_model_can_be_the_base_of_the_next_run(self, train):
        for model_format, name in (("LEGACY_SAFETENSORS", "a.safetensors"), ("DIFFUSERS", "b")):
            train(f"output_model_format={model_format}", f"output_model_destination=models/{name}")
            train(f"base_model_name=models/{name}", "epochs=1")
