"""Post-hoc EMA of a real run against a float64 power-function EMA of the weights recorded at each step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.mixture import Mixture, mix
from onetrainer_ema_select.snapshots import choose_end, find_snapshots
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.workspace import scan_workspace

from .bench import configs
from .bench.checkout import run_python
from .bench.configs import Schedule
from .bench.recording import Recording, read_metadata
from .bench.workers import BENCH, Bench, Job

SIGMA_RELS = (0.05, 0.08, 0.10, 0.15)
STEPS = 48
SECTION = {"enabled": True, "post_hoc_sigma_rels": "0.05, 0.10", "post_hoc_every": "4 steps"}


@dataclass(frozen=True)
class Runs:
    """The recorded run, the same one without EMA, one in two parts, and one that loads a length never kept."""

    whole: Recording
    off: Recording
    rest: Recording
    loaded: Recording


@pytest.fixture(scope="module")
def runs(bench: Bench) -> Runs:
    def job(name: str, *, folder: Path, epochs: int, section: dict[str, str], **more: object) -> Job:
        schedule = Schedule(epochs=epochs, steps=STEPS // 2, backup_at_end=True)
        resume = {"continue_last_backup": True} if name in ("rest", "loaded") else {}
        overrides = {"ema_select": {**SECTION, **section}, **resume}
        config = bench.config(configs.SD15_LORA, run=folder, schedule=schedule, ema="CPU", overrides=overrides)
        return Job(name, config, **more)

    whole, two = bench.new_folder("post-hoc"), bench.new_folder("post-hoc-two")
    load = {"resume_weights": "POST_HOC", "resume_sigma_rel": "0.08"}
    jobs = [
        job("whole", folder=whole, epochs=2, section={}, record=("live",)),
        job("half", folder=two, epochs=1, section={}),
        job("rest", folder=two, epochs=2, section={}),
        job(
            "loaded",
            folder=whole,
            epochs=3,
            section=load,
            actions={STEPS + 1: ("stop",)},
            hook=(BENCH / "hooks.py", "initial_weights"),
        ),
    ]
    batch = bench.start(jobs, plugin=True)
    off = bench.config(configs.SD15_LORA, schedule=Schedule(epochs=2, steps=STEPS // 2), ema="OFF")
    [plain] = bench.run([Job("off", off)], plugin=False)
    recordings = [recording.require() for recording in batch.results()]
    return Runs(recordings[0], plain.require(), recordings[2], recordings[3])


def power(sigma_rel: float) -> float:
    """gamma + 1, as a root of the paper's formula: sigma_rel ** 2 * (gamma + 2) ** 2 * (gamma + 3) = gamma + 1."""
    square = sigma_rel**2
    roots = np.roots([square, 7 * square, 16 * square - 1, 12 * square - 1])
    return 1 + max(float(root.real) for root in roots if abs(root.imag) < 1e-9)


def power_function_average(recording: Recording, sigma_rel: float) -> list[Tensor]:
    """Every step's weights, each with the integral of the profile over its step."""
    sums: list[Tensor] = []
    for step in range(1, STEPS + 1):
        share = (step / STEPS) ** power(sigma_rel) - ((step - 1) / STEPS) ** power(sigma_rel)
        weighted = [share * tensor.double() for tensor in recording.step(step).values()]
        sums = weighted if not sums else [total + more for total, more in zip(sums, weighted, strict=True)]
    return sums


def mixture_of(recording: Recording, sigma_rel: float) -> Mixture:
    snapshots, problems = find_snapshots(recording.workspace)
    assert not problems
    return mix(choose_end(recording.workspace, str(STEPS), snapshots), snapshots, sigma_rel=sigma_rel)


def tensors_of(mixture: Mixture) -> list[Tensor]:
    """In the order of OneTrainer's list of trained weights."""
    names = [record.name for record in mixture.end.manifest.parameters]
    files = [source.file for source in mixture.sources]
    with Synthesis(files, [source.coefficient for source in mixture.sources]) as made:
        return [made[name] for name in names]


@pytest.mark.parametrize("sigma_rel", SIGMA_RELS)
def test_any_length_is_the_paper_s_average_of_the_recorded_weights(runs: Runs, sigma_rel: float) -> None:
    mixture = mixture_of(runs.whole, sigma_rel)
    assert [one.step for one in mixture.line] == list(range(4, STEPS + 1, 4))
    expected = torch.cat([tensor.flatten() for tensor in power_function_average(runs.whole, sigma_rel)])
    last = torch.cat([tensor.double().flatten() for tensor in runs.whole.step(STEPS).values()])
    made = torch.cat([tensor.double().flatten() for tensor in tensors_of(mixture)])
    error = float((made - expected).norm() / (last - expected).norm())
    print(f"sigma_rel {sigma_rel}: {error:.4f} of the distance from the last weights, profile {mixture.fit.error:.4f}")
    assert error <= 0.05


def test_the_live_weights_are_those_with_ema_off(runs: Runs) -> None:
    on, off = runs.whole.weights("live"), runs.off.weights("live")
    assert all(torch.equal(tensor, off[name]) for name, tensor in on.items())


def test_a_resumed_run_has_the_tracks_of_the_uninterrupted_one(runs: Runs) -> None:
    assert "0.05, 0.1 go on from the backup" in runs.rest.output
    for file in ("sigma_rel-0.05.safetensors", "sigma_rel-0.1.safetensors"):
        one, other = (load_file(mixture_of(run, 0.1).end.path / file) for run in (runs.whole, runs.rest))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_begins_with_the_length_that_it_asks_for(runs: Runs) -> None:
    begun = list(load_file(runs.loaded.workspace / "initial.safetensors").values())
    assert all(map(torch.equal, begun, tensors_of(mixture_of(runs.whole, 0.08))))
    assert "its post-hoc EMA (sigma_rel 0.08) weights were loaded" in runs.loaded.output


def test_what_synthesize_writes_is_the_mixture(runs: Runs, bench: Bench, tmp_path: Path) -> None:
    command = [
        "-m", "onetrainer_ema_select", "synthesize", runs.whole.workspace, "--sigma-rel", "0.08", "--at", str(STEPS),
        "--output", tmp_path / "made.safetensors", "--onetrainer", bench.checkout(plugin=False),
    ]  # fmt: skip
    done = run_python(bench.host, command, cwd=tmp_path, package=bench.package(plugin=True))
    assert done.returncode == 0, done.stderr
    assert "Post-hoc EMA of sigma_rel 0.08 at step 48, from " in done.stdout
    assert f"Wrote post-hoc EMA of sigma_rel 0.08: {tmp_path / 'made.safetensors'}" in done.stdout
    written = load_file(tmp_path / "made.safetensors")
    final = load_file(runs.whole.output_folder / "model.safetensors")
    assert written.keys() == final.keys()
    there = {tensor.contiguous().numpy().tobytes() for tensor in written.values()}
    assert all(tensor.contiguous().numpy().tobytes() in there for tensor in tensors_of(mixture_of(runs.whole, 0.08)))
    marks = read_metadata(tmp_path / "made.safetensors")
    assert (marks["ema_select.set"], marks["ema_select.sigma_rel"]) == ("POST_HOC", "0.08")
    assert len(scan_workspace(runs.whole.workspace).snapshots) == 13
