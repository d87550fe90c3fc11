"""Several GPUs: OneTrainer's own ``MultiTrainer`` on two processes, over gloo on the CPU.

One pair of processes trains without the plugin, another does all runs with it, and two runs go the whole way from
the command line to the exit code. Weights are compared per process, each with what another run or OneTrainer's own
file says. Where something of the plugin fails, both processes must say so in its own words: gloo notices a process
that is gone, NCCL does not, so an end that only gloo's "connection closed" has brought about would not count.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host import bootstrap
from onetrainer_ema_select.mixture import mix
from onetrainer_ema_select.snapshots import choose_end, find_snapshots
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.validation import read_history
from onetrainer_ema_select.workspace import pinned_backups

from .bench import configs
from .bench.checkout import package_folder, run_python
from .bench.configs import Schedule
from .bench.recording import difference, same_bits
from .bench.scenario import Scenario
from .bench.workers import BENCH, Bench

GLOO = BENCH / "gloo"
GPUS = {"multi_gpu": True, "device_indexes": "0,1"}
MILESTONES = {"milestones": "1 step, every epoch"}
# two steps an epoch on each process
SCHEDULE = Schedule(epochs=2, steps=4, save_every=4, backup_every=4, validate_every=2, backup_at_end=True)
# Seconds. gloo gives up after 200, see sitecustomize.py: nothing may have waited for that.
SOON = 60

# name: the section's keys, OneTrainer's keys, the run it goes on from
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "whole": ({**MILESTONES, "post_hoc_sigma_rels": "0.05, 0.10"}, {}, ""),
    "non-ema": ({**MILESTONES, "resume_backup": "1 step"}, {}, "whole"),
    "ema": ({**MILESTONES, "resume_backup": "1 step", "resume_weights": "EMA"}, {}, "whole"),
    "best": ({**MILESTONES, "resume_backup": "1 step", "resume_weights": "BEST"}, {}, "whole"),
    "off": ({**MILESTONES, "resume_backup": "1 step"}, {"ema": "OFF"}, "whole"),
    "on again": ({**MILESTONES, "resume_backup": "1 step"}, {"epochs": 3}, "off"),
    "post-hoc": ({"resume_weights": "POST_HOC", "resume_sigma_rel": "0.08"}, {"epochs": 3}, "whole"),
}
# name: the section's keys, OneTrainer's keys, what fails on which process
FAILING: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "choice": ({"resume_backup": "nothing of the kind"}, {}, {}),
    "names": ({}, {}, {"1": "names"}),
    "average": ({}, {}, {"0": "average"}),
    "parking": ({}, {"ema": "OFF"}, {}),
    "final": ({}, {}, {}),
    "lost": ({}, {}, {}),
}


class Ranks:
    """The folders of some runs on two processes."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.folder = bench, bench.new_folder(f"ranks-{name}")
        self.jobs: list[dict[str, Any]] = []

    def add(self, name: str, *, begin: Path | None = None, **job: Any) -> None:
        """Add a run; ``keys`` are OneTrainer's, ``fails``, ``lost`` and ``part`` as in ``ranks.py``."""
        run = self.folder / name
        keys: dict[str, Any] = {**GPUS, "cache_dir": str(self.folder / "cache"), **job.pop("keys")}
        config = self.bench.config(configs.SD15_LORA, run=run, schedule=SCHEDULE, overrides=keys)
        output = {"output": str(run / "out"), "begin": str(begin or "")}
        self.jobs.append({"config": config, "fails": {}, "lost": "", "part": "", **output, **job})

    def run(self, *, plugin: bool) -> str:
        """Do all of them in one pair of processes; returns what was printed."""
        more = {"PYTHONPATH": python_path(plugin=plugin)}
        command = [BENCH / "ranks.py", configs.write_json(self.folder / "jobs.json", self.jobs)]
        done = run_python(self.bench.host, command, cwd=self.bench.checkout(plugin=plugin), more=more)
        assert done.returncode == 0, done.stderr[-6000:]
        return done.stdout + done.stderr

    def workspace(self, name: str) -> Path:
        """The workspace of a run."""
        return self.folder / name / "workspace"

    def weights(self, name: str, when: str, rank: int) -> dict[str, Tensor]:
        """The live weights of a process at the ``begin`` or ``end`` of the training."""
        return load_file(self.folder / name / "out" / f"{when}-{rank}.safetensors")

    def ended(self, name: str) -> list[dict[str, Any]]:
        """How each process has ended."""
        return [json.loads((self.folder / name / "out" / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def python_path(*, plugin: bool) -> str:
    """What OneTrainer's python has on its path, and those that it spawns."""
    return str(GLOO) if not plugin else f"{GLOO}{':' if sys.platform != 'win32' else ';'}{package_folder()}"


def average(backup: Path) -> dict[str, Tensor]:
    """The average of a backup, as OneTrainer keeps it: by position."""
    tensors = torch.load(backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    return {f"{number:05d}": tensor for number, tensor in enumerate(tensors)}


def pinned(workspace: Path) -> Path:
    """The backup of the milestone after one step."""
    [folder] = [path for path, manifest in pinned_backups(workspace) if manifest.milestones == ("1 step",)]
    return folder


def last_backup(workspace: Path) -> Path:
    """The newest of OneTrainer's own."""
    return max((workspace / "backup").iterdir(), key=lambda path: int(path.name.split("-backup-")[1].split("-")[0]))


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Ranks:
    """EMA off, no plugin."""
    ranks = Ranks(bench, "plain")
    ranks.add("off", keys={"ema": "OFF"})
    ranks.run(plugin=False)
    return ranks


@pytest.fixture(scope="module")
def runs(bench: Bench) -> tuple[Ranks, str]:
    """All runs with the plugin, and what they printed."""
    ranks = Ranks(bench, "plugin")
    resume = {"continue_last_backup": True}
    for name, (section, keys, begin) in RUNS.items():
        more = {"ema": "CPU", **(resume if begin else {}), **keys, "ema_select": {"enabled": True, **section}}
        # of the whole run only the milestones: the backups that it wrote later must not be taken for another run's
        part = "ema_select" if begin == "whole" and name != "post-hoc" else ""
        ranks.add(name, keys=more, begin=ranks.workspace(begin) if begin else None, part=part)
    for name, (section, keys, fails) in FAILING.items():
        source = ranks.workspace("whole") if name in ("choice", "parking") else None
        more = {"ema": "CPU", **(resume if source else {}), **keys, "ema_select": {"enabled": True, **section}}
        ranks.add(name, keys=more, begin=source, fails=fails, lost="1" if name == "lost" else "")
    blocked = ranks.workspace("parking") / "ema_select" / "parked"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    block_output(ranks.folder / "final")
    return ranks, ranks.run(plugin=True)


def block_output(run: Path) -> None:
    """Leave no place for the final output, neither its own nor the one it is tried in then."""
    for place in (run / "output", run / "workspace" / "ema_select" / "output"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file where the folder should be", encoding="utf-8")


# -- what is trained and written -----------------------------------------------------------------------------


def test_both_processes_train_as_with_ema_off(plain: Ranks, runs: tuple[Ranks, str]) -> None:
    ranks, _ = runs
    expected = plain.weights("off", "end", 0)
    assert difference(plain.weights("off", "end", 1), expected) == 0.0
    assert difference(plain.weights("off", "begin", 0), expected) > 0
    for name in ("whole", "off"):
        for rank in (0, 1):
            assert difference(ranks.weights(name, "end", rank), expected) == 0.0, (name, rank)
    state = torch.load(last_backup(ranks.workspace("whole")) / "optimizer" / "optimizer.pt", weights_only=True)
    reference = torch.load(last_backup(plain.workspace("off")) / "optimizer" / "optimizer.pt", weights_only=True)
    assert same_bits(state["state"], reference["state"])


def test_every_file_is_written_once_and_is_its_set(runs: tuple[Ranks, str]) -> None:
    ranks, output = runs
    workspace = ranks.workspace("whole")
    saves = [re.sub(r"^.*-save-", "", path.name) for path in sorted((workspace / "save").iterdir())]
    assert len(saves) == len(set(saves))
    steps = {1: "1 step", 2: "every epoch @ 1 epoch", 3: "", 4: "every epoch @ 2 epochs"}
    found: dict[int, list[str]] = {}
    for path in sorted((workspace / "save").iterdir()):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata.get("ema_select.milestone", "") == steps[int(metadata["ema_select.step"])]
        found.setdefault(int(metadata["ema_select.step"]), []).append(metadata["ema_select.set"])
    assert {step: sorted(sets) for step, sets in found.items()} == {step: ["EMA", "NON_EMA"] for step in steps}
    assert [path.name.split("-backup-")[1] for path in sorted((workspace / "backup").iterdir())] == ["3-1-1", "4-2-0"]
    assert pinned(workspace).name.endswith("-backup-1-0-1-1-step")
    outputs = sorted(path.name for path in (ranks.folder / "whole" / "output").iterdir())
    assert outputs == ["model-non-ema.safetensors", "model.safetensors"]
    tensors = [load_file(ranks.folder / "whole" / "output" / name) for name in outputs]
    assert [sorted(t.double().norm().item() for t in tensor.values() if t.numel() > 1) for tensor in tensors] == [
        sorted(t.double().norm().item() for t in expected.values() if t.numel() > 1)
        for expected in (ranks.weights("whole", "end", 1), average(last_backup(workspace)))
    ]
    assert not list(workspace.rglob("staging"))
    # of the runs "whole", "final" and "lost", each by one process
    assert output.count("Training starts from the model as configured; the EMA begins at the model's weights.") == 3


# -- what is resumed from ------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one_on_both_processes(runs: tuple[Ranks, str]) -> None:
    ranks, output = runs
    for rank in (0, 1):
        assert difference(ranks.weights("non-ema", "end", rank), ranks.weights("whole", "end", rank)) == 0.0
    ends = [last_backup(ranks.workspace(name)) for name in ("non-ema", "whole")]
    assert [path.name.split("-backup-")[1] for path in ends] == ["4-2-0", "4-2-0"]
    assert difference(average(ends[0]), average(ends[1])) == 0.0
    states = [torch.load(end / "optimizer" / "optimizer.pt", weights_only=True)["state"] for end in ends]
    assert same_bits(*states)
    sentence = "its non-EMA weights were loaded, its EMA goes on, and the optimizer state was kept.\n"
    assert output.count(sentence) == 1  # where BEST comes to the same set, it says more


def test_both_processes_resume_from_the_set_that_was_chosen(runs: tuple[Ranks, str]) -> None:
    ranks, _ = runs
    backup = pinned(ranks.workspace("whole"))
    saved = average(backup)
    for rank in (0, 1):
        assert difference(ranks.weights("ema", "begin", rank), saved) == 0.0
        assert difference(ranks.weights("non-ema", "begin", rank), saved) > 0
        assert difference(ranks.weights("non-ema", "begin", rank), ranks.weights("non-ema", "begin", 0)) == 0.0
    assert difference(ranks.weights("ema", "end", 0), ranks.weights("ema", "end", 1)) == 0.0
    assert difference(ranks.weights("ema", "end", 0), ranks.weights("whole", "end", 0)) > 0


def test_both_sets_are_judged_by_one_process_and_both_resume_from_the_better_one(runs: tuple[Ranks, str]) -> None:
    ranks, output = runs
    [(_, manifest)] = [
        found for found in pinned_backups(ranks.workspace("whole")) if found[1].milestones == ("1 step",)
    ]
    assert manifest.validation is not None
    assert manifest.validation.step == 1
    better = {WeightSet.EMA: "ema", WeightSet.NON_EMA: "non-ema"}[manifest.validation.better]
    for rank in (0, 1):
        assert difference(ranks.weights("best", "begin", rank), ranks.weights(better, "begin", rank)) == 0.0
    assert output.count(" by validation loss: ") == 1
    history = read_history(ranks.workspace("whole") / "ema_select" / "validation.jsonl")
    assert [entry.step for entry in history] == [1, 3]


def test_both_processes_begin_with_a_length_that_was_never_kept(runs: tuple[Ranks, str]) -> None:
    ranks, output = runs
    workspace = ranks.workspace("whole")
    snapshots, _ = find_snapshots(workspace)
    mixture = mix(choose_end(workspace, "4", snapshots), snapshots, sigma_rel=0.08)
    files = [source.file for source in mixture.sources]
    with Synthesis(files, [source.coefficient for source in mixture.sources]) as made:
        named = [made[record.name] for record in mixture.end.manifest.parameters]
    expected = {f"{number:05d}": tensor for number, tensor in enumerate(named)}
    for rank in (0, 1):
        assert difference(ranks.weights("post-hoc", "begin", rank), expected) == 0.0
    assert difference(ranks.weights("post-hoc", "end", 0), ranks.weights("post-hoc", "end", 1)) == 0.0
    # two images a step, on two processes
    assert [(one.step, one.record.images) for one in mixture.line] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert output.count("its post-hoc EMA (sigma_rel 0.08) weights were loaded") == 1


def test_ema_off_parks_the_average_once_and_it_is_taken_up_again(runs: tuple[Ranks, str]) -> None:
    ranks, output = runs
    saved = average(pinned(ranks.workspace("whole")))
    for name in ("off", "on again"):
        [folder] = (ranks.workspace(name) / "ema_select" / "parked").iterdir()
        parked = load_file(folder / "ema.safetensors")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert len(parked) == len(saved)
        for position, parameter in enumerate(manifest["parameters"]):
            assert same_bits(parked[parameter["name"]], saved[f"{position:05d}"])
    assert not (last_backup(ranks.workspace("off")) / "ema").exists()
    assert output.count("its EMA was parked because EMA is off in OneTrainer (ema: OFF)") == 1
    assert output.count("the EMA parked at step 1 was taken up again") == 1
    assert difference(ranks.weights("on again", "end", 0), ranks.weights("on again", "end", 1)) == 0.0


def test_a_run_on_two_is_resumed_on_one(bench: Bench, runs: tuple[Ranks, str]) -> None:
    ranks, _ = runs
    one = Scenario(bench, "on-one", begin=ranks.folder / "whole")
    choice = {"resume_backup": "1 step", "resume_weights": "EMA"}
    one.resume(schedule=SCHEDULE, ema_select=choice).results()[0].require()
    assert same_bits(one.initial, list(average(pinned(ranks.workspace("whole"))).values()))


# -- what goes wrong -----------------------------------------------------------------------------------------

REASONS = {
    "choice": (
        'ResumeError: ema_select.resume_backup names "nothing of the kind", which is neither',
        'EmaSelectError: ema_select.resume_backup names "nothing of the kind", which is neither',
    ),
    "names": (
        "EmaSelectError: Process 1 of this run cannot go on, so none does: no room for the names",
        "MemoryError: no room for the names",
    ),
    "average": (
        "MemoryError: no room for the average",
        "EmaSelectError: Process 0 of this run cannot go on, so none does: no room for the average",
    ),
    "parking": (
        "ResumeError: The EMA of backup",
        "EmaSelectError: Process 0 of this run cannot go on, so none does: The EMA of backup",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_keeps_one_process_from_starting_stops_both(runs: tuple[Ranks, str], name: str) -> None:
    ranks, _ = runs
    for end, reason in zip(ranks.ended(name), REASONS[name], strict=True):
        assert end["problem"].startswith(reason)
        assert end["left the group"]
        assert end["seconds"] < SOON
    assert not list((ranks.folder / name / "out").glob("*.safetensors"))  # no step was trained


def test_runs_without_a_failure_end_without_one(runs: tuple[Ranks, str]) -> None:
    for name in RUNS:
        assert [end["problem"] for end in runs[0].ended(name)] == [None, None], name


def test_a_final_output_that_is_lost_leaves_no_process_waiting(runs: tuple[Ranks, str]) -> None:
    first, second = runs[0].ended("final")
    assert first["problem"].startswith("EmaSelectError: The run has ended, but not everything that was asked for is")
    assert first["left the group"]  # the other one waits for that, with NCCL
    assert second["problem"] is None


def test_a_lost_gpu_ends_both_and_the_first_saves_what_there_is(runs: tuple[Ranks, str]) -> None:
    ranks, _ = runs
    first, second = ranks.ended("lost")
    assert second["problem"] == "RuntimeError: a GPU was lost"
    assert first["problem"] is not None  # OneTrainer's own: gloo noticed
    assert max(first["seconds"], second["seconds"]) < SOON
    outputs = sorted(path.name for path in (ranks.folder / "lost" / "output").iterdir())
    assert outputs == ["model-non-ema.safetensors", "model.safetensors"]


# -- from the command line to the exit code ------------------------------------------------------------------


@pytest.fixture(scope="module")
def launched(bench: Bench) -> Mapping[str, CompletedProcess[str]]:
    """``train`` with a final output that is lost, and the drop-in with a GPU that is; side by side."""
    with tempfile.TemporaryDirectory() as stores, ThreadPoolExecutor() as threads:

        def launch(name: str, *command: object, plugin: bool, lost: str = "") -> CompletedProcess[str]:
            run = bench.new_folder(f"launched-{name}")
            keys = {**GPUS, "ema": "CPU", "ema_select": {"enabled": True}}
            config = bench.config(configs.SD15_LORA, run=run, schedule=Schedule(epochs=1, steps=4), overrides=keys)
            path = configs.write_json(run / "config.json", config)
            if not lost:
                block_output(run)
            programs = run / "bin"
            programs.mkdir()
            (programs / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
            (programs / "nvidia-smi").chmod(0o755)
            more = {
                "PATH": f"{programs}:/usr/bin:/bin",
                "PYTHONPATH": python_path(plugin=True),
                "BENCH_STORE": f"file://{stores}/{name}",
                "BENCH_LOST": lost,
            }
            checkout = bench.checkout(plugin=plugin)
            arguments = [*command, "scripts/train.py", "--config-path", path]
            return run_python(bench.host, arguments, cwd=checkout, more=more, timeout=150)

        # what the verb `train` starts, in a OneTrainer where nothing is enabled
        verb = package_folder() / "onetrainer_ema_select" / "host" / Path(bootstrap.__file__).name
        futures = {
            "train": threads.submit(launch, "train", verb, plugin=False),
            "drop-in": threads.submit(launch, "drop-in", plugin=True, lost="1"),
        }
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.skipif(sys.platform == "win32", reason="MultiTrainer asks nvidia-smi, which is a shell script here")
def test_the_exit_code_says_that_a_final_output_is_lost(launched: Mapping[str, CompletedProcess[str]]) -> None:
    done = launched["train"]
    assert done.returncode == 1
    assert (
        "The run has ended, but not everything that was asked for is on the disk: the final ema output" in done.stderr
    )
    assert "GPU #1  device: cpu:1" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="MultiTrainer asks nvidia-smi, which is a shell script here")
def test_the_exit_code_says_that_a_gpu_is_lost(launched: Mapping[str, CompletedProcess[str]]) -> None:
    done = launched["drop-in"]
    assert done.returncode == 1
    assert "RuntimeError: a GPU was lost" in done.stderr
    assert (
        "Training starts from the model as configured; the EMA begins at the model's weights."
        in done.stderr + done.stdout
    )
