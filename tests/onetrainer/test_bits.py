"""Files of 16 bits, and the factors of a LoRA: real runs against their recorded weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.cli.inspection import inspect_path

from .bench import configs
from .bench.configs import Schedule
from .bench.recording import Recording, read_metadata, same_bits
from .bench.workers import BENCH, Bench, Job

STEPS = 40
HALF_LIFE = 10
STOCHASTIC = {"enabled": True, "save_rounding": "STOCHASTIC", "ema_half_life": f"{HALF_LIFE} steps"}
LORA = {"enabled": True, "ema_half_life": f"{HALF_LIFE} steps"}


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Recording]:
    jobs = []
    cases: tuple[tuple[str, configs.Family, dict[str, Any], dict[str, Any], dict[str, Any]], ...] = (
        (
            "bf16",
            configs.SD15_FINE_TUNE,
            STOCHASTIC,
            {"dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16", "learning_rate": 1e-5},
            {"hook": (BENCH / "hooks.py", "saved_twice")},
        ),
        ("lora", configs.SD15_LORA, LORA, {}, {"record": ("live",)}),
    )
    for name, family, section, options, job in cases:
        config = bench.config(
            family,
            schedule=Schedule(epochs=1, steps=STEPS, backup_at_end=True),
            ema="CPU",
            overrides={"ema_select": section},
            **options,
        )
        jobs.append(Job(name, config, **job))
    return {job.name: run.require() for job, run in zip(jobs, bench.run(jobs, plugin=True), strict=True)}


def backup_of(run: Recording) -> Path:
    """The backup of the end of a run."""
    return max((run.workspace / "backup").iterdir())


def step_of(weights: Tensor) -> Tensor:
    """How far the next number in bfloat16 is."""
    return torch.exp2(torch.floor(torch.log2(weights.double().abs().clamp(min=1e-30))) - 7)


def trained(exact: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of what differs in the two sets."""
    return [name for name in exact if not torch.equal(exact[name], other[name])]


# -- 16 bits -------------------------------------------------------------------------------------------------


def test_a_save_at_random_is_right_on_average(runs: dict[str, Recording]) -> None:
    formats = runs["bf16"].workspace / "formats"
    exact, live = (load_file(formats / "exact" / kind / "model.safetensors") for kind in ("ema", "non-ema"))
    written = load_file(formats / "first" / "model.safetensors")
    assert read_metadata(formats / "first" / "model.safetensors")["ema_select.rounding"] == "STOCHASTIC"
    assert written.keys() == exact.keys()
    names = trained(exact, live)
    assert len(names) > 100
    wanted = torch.cat([exact[name].reshape(-1) for name in names])
    found = torch.cat([written[name].reshape(-1) for name in names])
    assert found.dtype == torch.bfloat16
    error = found.double() - wanted.double()
    nearest = wanted.bfloat16().double() - wanted.double()
    # each is one of its two neighbours, and not always the nearest
    step = step_of(wanted)
    assert bool((error.abs() < step).all())
    assert 0.02 < float((error != nearest).double().mean()) < 0.5
    # the mean error is 0 within its deviation, as is the one along what the sets differ by
    variance = (nearest * (step * torch.sign(nearest) - nearest)).abs()
    assert abs(float(error.sum())) < 6 * float(variance.sum().sqrt())
    apart = wanted.double() - torch.cat([live[name].reshape(-1) for name in names]).double()
    share = float(error @ apart / apart.square().sum())
    spread = float((variance * apart.square()).sum().sqrt() / apart.square().sum())
    print(f"kept of the difference: {1 + share:.3f}, give or take {spread:.3f}")
    assert abs(share) < 6 * spread


def test_the_non_ema_set_of_a_bf16_model_is_exact(runs: dict[str, Recording]) -> None:
    formats = runs["bf16"].workspace / "formats"
    written = load_file(formats / "first" / "model-non-ema.safetensors")
    live = load_file(formats / "exact" / "non-ema" / "model.safetensors")
    assert written.keys() == live.keys()
    names = trained(load_file(formats / "exact" / "ema" / "model.safetensors"), live)
    assert [name for name in names if not torch.equal(written[name].float(), live[name])] == []
    # constants of the schedule, which are not trained and have 32 bits, are rounded by OneTrainer
    assert [name for name in live if not torch.equal(written[name], live[name].bfloat16())] == []


@pytest.mark.parametrize("name", ["model.safetensors", "model-non-ema.safetensors"])
def test_the_same_save_twice_is_the_same(runs: dict[str, Recording], name: str) -> None:
    run = runs["bf16"]
    first = load_file(run.workspace / "formats" / "first" / name)
    assert same_bits(first, load_file(run.workspace / "formats" / "second" / name))
    assert same_bits(first, load_file(run.output_folder / name))  # the final output is of the same step
    assert "Saves are rounded to bfloat16 at random, right on average" in run.output


def test_inspect_says_what_rounding_takes(runs: dict[str, Recording]) -> None:
    run = runs["bf16"]
    rounded = inspect_path(backup_of(run), onetrainer=None).rounded
    assert rounded is not None
    ema, live = (
        torch.cat([tensor.reshape(-1) for tensor in run.weights(kind).values()]).double() for kind in ("ema", "live")
    )
    nearest = ema.float().bfloat16().double()
    assert rounded.measured.elements == ema.numel()
    assert rounded.measured.lost == pytest.approx(float((nearest - ema).norm() / (ema - live).norm()), rel=1e-6)
    kept = float((nearest - live) @ (ema - live) / (ema - live).square().sum())
    assert rounded.measured.left == pytest.approx(kept, rel=1e-6)
    # what the random file of this run has lost is what was to be expected, within the deviation of its square
    formats = run.workspace / "formats"
    exact = load_file(formats / "exact" / "ema" / "model.safetensors")
    written = load_file(formats / "first" / "model.safetensors")
    names = trained(exact, load_file(formats / "exact" / "non-ema" / "model.safetensors"))
    wanted, found = (torch.cat([side[name].reshape(-1) for name in names]).double() for side in (exact, written))
    step = step_of(wanted)
    share = (wanted.bfloat16().double() - wanted).abs() / step
    spread = (step.pow(4) * share * (1 - share) * (1 - 2 * share).square()).sum().sqrt()
    expected = rounded.measured.squares_noise
    assert abs(float((found - wanted).square().sum()) - expected) < 6 * float(spread)
    assert rounded.measured.noise == pytest.approx(math.sqrt(expected) / float((ema - live).norm()), rel=1e-6)
    assert expected == pytest.approx(float((step.square() * share * (1 - share)).sum()), rel=0.01)


# -- the factors of a LoRA -----------------------------------------------------------------------------------


def products(weights: dict[str, Tensor]) -> Tensor:
    """B A of every layer, formed, as one long vector; alpha and rank are the same everywhere."""
    formed = []
    for name, down in weights.items():
        if name.endswith(".lora_down.weight"):
            up = weights[name.replace("lora_down", "lora_up")]
            formed.append((up.double().flatten(1) @ down.double().flatten(1)).reshape(-1))
    return torch.cat(formed)


def test_the_gap_that_inspect_shows_is_about_that_of_the_recorded_products(runs: dict[str, Recording]) -> None:
    run = runs["lora"]
    shares = {step: 2.0 ** ((step - STEPS) / HALF_LIFE) for step in range(1, STEPS + 1)}
    whole = sum(shares.values())
    product, average = torch.zeros(()), {name: torch.zeros(()) for name in run.weights()}
    for step, share in shares.items():
        live = run.step(step)
        product = product + share / whole * products(live)
        average = {name: average[name] + share / whole * live[name].double() for name in live}
    gap = float((product - products(average)).norm())
    apart = float((product - products(run.weights())).norm())
    found = inspect_path(backup_of(run), onetrainer=None).gap
    assert found is not None
    assert found.layers == sum(name.endswith(".lora_down.weight") for name in average)
    print(f"gap {gap / apart:.4f} of the distance, {gap / float(product.norm()):.4f} of the product; ", end="")
    print(f"shown {found.of_distance:.4f} and {found.of_ema:.4f}")
    assert found.of_distance is not None
    assert 0.8 < found.of_distance / (gap / apart) < 1.6
    assert found.of_ema is not None
    assert 0.8 < found.of_ema / (gap / float(product.norm())) < 1.7
