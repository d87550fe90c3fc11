"""What can be trained beside the plain cases: embeddings, other adapters, parts, precisions.

The same comparison as in ``test_exactness``: live weights against a run with EMA off and no plugin, every file in
every format against what OneTrainer itself writes of weights that are the set.
"""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file

from .bench import configs
from .bench.configs import Family, Schedule
from .bench.recording import Recording, difference, same_bits
from .bench.workers import BENCH, Bench, Job

SCHEDULE = Schedule(epochs=2, steps=3, save_every=3, backup_at_end=True)
LORA, FINE_TUNE = configs.SD15_LORA, configs.SD15_FINE_TUNE
VAE = Family("sd15-vae", "STABLE_DIFFUSION_15", "FINE_TUNE_VAE", 64, "DIFFUSERS", ("DIFFUSERS",), 1e-3)


def extra(number: int, **more: Any) -> dict[str, Any]:
    """An additional embedding."""
    return {
        "uuid": f"00000000-0000-4000-8000-00000000001{number}",
        "placeholder": f"<extra{number}>",
        "token_count": 2,
        "train": True,
        "initial_embedding_text": "a thing",
        "is_output_embedding": False,
        **more,
    }


STOPS = {"text_encoder": {"train": True, "stop_training_after": 1, "stop_training_after_unit": "EPOCH"}}
FUSED = {
    "optimizer": {
        "optimizer": "ADAFACTOR",
        "fused_back_pass": True,
        "scale_parameter": False,
        "relative_step": False,
        "stochastic_rounding": False,
    },
    "clip_grad_norm": None,
}
# name: family, OneTrainer's keys, options of the bench, keys of the section
Case = tuple[Family, dict[str, Any], dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "lora, embeddings bundled": (
        LORA,
        {"additional_embeddings": [extra(1), extra(2, train=False)], "bundle_additional_embeddings": True},
        {},
        {},
    ),
    "lora, embeddings beside it": (
        LORA,
        {
            "additional_embeddings": [extra(1, is_output_embedding=True), extra(2)],
            "bundle_additional_embeddings": False,
        },
        {},
        {},
    ),
    "output embedding": (configs.SD15_EMBEDDING, {"embedding": {"is_output_embedding": True}}, {}, {}),
    "embedding and more": (configs.SD15_EMBEDDING, {"additional_embeddings": [extra(1)]}, {}, {}),
    "fine-tune and embeddings": (
        FINE_TUNE,
        {"additional_embeddings": [extra(1, is_output_embedding=True), extra(2)]},
        {},
        {},
    ),
    "vae": (VAE, {}, {}, {}),
    "dora": (LORA, {"lora_decompose": True}, {}, {}),
    "loha": (LORA, {"peft_type": "LOHA"}, {}, {}),
    "lokr": (LORA, {"peft_type": "LOKR"}, {}, {}),
    "oft": (LORA, {"peft_type": "OFT_2", "oft_block_size": 4}, {}, {}),
    "unet only": (LORA, {"text_encoder": {"train": False}}, {}, {}),
    "text encoder stops": (FINE_TUNE, STOPS, {}, {}),
    "ema GPU": (FINE_TUNE, {"ema": "GPU"}, {}, {}),
    "fused back pass": (FINE_TUNE, FUSED, {}, {}),
    "ema in bf16": (FINE_TUNE, {}, {"dtype": "BFLOAT_16"}, {"ema_dtype": "PARAMETER"}),
    "bf16, embeddings bundled": (
        LORA,
        {"additional_embeddings": [extra(1)], "bundle_additional_embeddings": True},
        {"dtype": "BFLOAT_16"},
        {},
    ),
}


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, tuple[Recording, Recording]]:
    batches = {}
    for name, (family, keys, options, section) in CASES.items():
        off = bench.config(family, schedule=SCHEDULE, **options, overrides={**keys, "ema": "OFF"})
        on = bench.config(
            family,
            schedule=SCHEDULE,
            **options,
            ema_decay=0.9,
            overrides={"ema": "CPU", **keys, "ema_select": {"enabled": True, **section}},
        )
        hook = (BENCH / "hooks.py", "every_format")
        batches[name] = (
            bench.start([Job(name, off, record=("live",))], plugin=False),
            bench.start([Job(name, on, record=("live", "ema"), hook=hook)], plugin=True),
        )
    return {name: (off.results()[0].require(), on.results()[0].require()) for name, (off, on) in batches.items()}


@pytest.mark.parametrize("case", CASES)
def test_live_weights_and_optimizer(runs: dict[str, tuple[Recording, Recording]], case: str) -> None:
    off, on = runs[case]
    for step in off.step_numbers():
        assert difference(on.step(step), off.step(step)) == 0.0, step
    assert difference(on.weights(when="ended"), off.weights(when="ended")) == 0.0
    assert same_bits(on.optimizer(), off.optimizer())
    assert not same_bits(on.weights("ema"), on.weights("live"))


def with_suffix(name: str) -> str:
    """The other set's name for a file and what belongs to it, spelled out here once more."""
    first, slash, rest = name.partition("/")
    if ".safetensors" in first:
        first = first.replace(".safetensors", "-non-ema.safetensors", 1)
    elif first.endswith("_embeddings"):
        first = first.removesuffix("_embeddings") + "-non-ema_embeddings"
    else:
        first += "-non-ema"
    return first + slash + rest


@pytest.mark.parametrize("case", CASES)
def test_every_file_in_every_format(runs: dict[str, tuple[Recording, Recording]], case: str) -> None:
    _, on = runs[case]
    compared = 0
    for folder in sorted((on.workspace / "formats").iterdir()):
        refused = [(folder / part / "refused.txt").exists() for part in ("plugin", "reference")]
        assert refused[0] == refused[1], folder.name
        for kind in () if refused[0] else ("ema", "non-ema"):
            base = folder / "reference" / kind
            for reference in sorted(base.rglob("*.safetensors")):
                if reference.is_file():
                    inside = reference.relative_to(base).as_posix()
                    ours = folder / "plugin" / (inside if kind == "ema" else with_suffix(inside))
                    assert difference(load_file(ours), load_file(reference)) == 0.0, f"{folder.name}: {inside}"
                    compared += 1
    assert compared >= 6
