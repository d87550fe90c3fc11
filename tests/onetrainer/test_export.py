"""Exports out of backups of plain OneTrainer are what OneTrainer itself saves at that moment, of both sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .bench import configs
from .bench.checkout import run_python
from .bench.configs import Family, Schedule
from .bench.recording import Recording, difference, read_metadata
from .bench.workers import BENCH, Bench, Job
from .test_variants import CASES as VARIANTS

SCHEDULE = Schedule(epochs=2, steps=3, backup_at_end=True)
ORDERS = Path(__file__).parents[1] / "export_orders.py"

Case = tuple[Family, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {family.name: (family, {}, {}) for family in configs.FAMILIES}
CASES.update({name: (family, keys, options) for name, (family, keys, options, _) in VARIANTS.items()})
del CASES["ema in bf16"]  # the plugin's own choice
CASES["bf16 to float32, layer filter, checkpointing"] = (
    configs.SD15_FINE_TUNE,
    {"layer_filter": "attn", "gradient_checkpointing": "ON", "include_train_config": "ALL"},
    {"dtype": "BFLOAT_16"},
)
# Compiled blocks are wrapped, which changes their names and so what the filter selects: OneTrainer trains only conv_in.
CASES["compile and layer filter"] = (
    configs.SD15_FINE_TUNE,
    {"compile": True, "layer_filter": "conv_in,transformer_blocks.0.attn1"},
    {},
)
CASES["dora comfy"] = (configs.SD15_LORA, {"lora_decompose": True}, {"output_format": "COMFY_LORA"})
CASES["cascade bf16"] = (configs.CASCADE_FINE_TUNE, {}, {"dtype": "BFLOAT_16", "output_dtype": "BFLOAT_16"})


@dataclass
class Exports:
    """What one run of plain OneTrainer has saved, and what was exported from its backup, by format."""

    run: Recording
    results: dict[str, dict[str, Any]]

    def reference(self, name: str, kind: str) -> Path:
        """The folder with OneTrainer's own file."""
        return self.run.workspace / "formats" / name / kind


def backup_of(run: Recording) -> Path:
    """The backup of the end of a run."""
    return max((run.workspace / "backup").iterdir())


@pytest.fixture(scope="module")
def exports(bench: Bench) -> dict[str, Exports]:
    jobs = []
    for name, (family, keys, options) in CASES.items():
        config = bench.config(family, schedule=SCHEDULE, ema_decay=0.9, **options, overrides={"ema": "CPU", **keys})
        hook = "plain_formats_uncompiled" if config.get("compile") else "plain_formats"
        jobs.append(Job(name, config, hook=(BENCH / "hooks.py", hook)))
    runs = [run.require() for run in bench.start(jobs, plugin=False).results()]
    orders, places = [], []
    for name, run in zip(CASES, runs, strict=True):
        for folder in sorted((run.workspace / "formats").iterdir()):
            place = bench.new_folder("export")
            reference = folder / "ema"
            [model] = [path for path in reference.iterdir() if not path.name.endswith((".yaml", "_embeddings"))]
            orders.append(order(bench, backup_of(run), place / model.name, format=folder.name))
            places.append((name, folder.name))
    done = carry_out(bench, orders)
    found = {name: Exports(run, {}) for name, run in zip(CASES, runs, strict=True)}
    for (name, model_format), result in zip(places, done, strict=True):
        found[name].results[model_format] = result
    return found


def order(bench: Bench, backup: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Both sets of a backup, the EMA with the plain name."""
    base = {"action": "export", "backup": str(backup), "output": str(output), "sets": "both"}
    return {**base, "onetrainer": str(bench.checkout(plugin=False)), **more}


def carry_out(bench: Bench, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Do orders in one process."""
    folder = bench.new_folder("orders")
    configs.write_json(folder / "orders.json", orders)
    checkout = bench.checkout(plugin=False)
    done = run_python(
        bench.host,
        [ORDERS, checkout, folder / "orders.json", folder / "results.json"],
        cwd=folder,
        package=bench.package(plugin=True),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def files_below(folder: Path, *, plain: bool = True) -> dict[str, Path]:
    """Every file by its place."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def renamed(name: str) -> str:
    """The non-EMA set's name, spelled out here once more."""
    first, slash, rest = name.partition("/")
    if first.endswith("_embeddings"):
        stem = first.removesuffix("_embeddings")
        return f"{renamed(stem)}_embeddings{slash}{rest}"
    stem, dot, ending = first.rpartition(".")
    return f"{stem}-non-ema.{ending}{slash}{rest}" if dot else f"{first}-non-ema{slash}{rest}"


@pytest.mark.parametrize("case", CASES)
def test_both_sets_in_every_format_are_what_onetrainer_saves(exports: dict[str, Exports], case: str) -> None:
    found = exports[case]
    compared = 0
    for model_format, done in found.results.items():
        for kind in ("ema", "non-ema"):
            reference = found.reference(model_format, kind)
            if (reference / "refused.txt").exists():
                assert done["result"] is None
                assert model_format in done["error"]
                continue
            assert done["error"] is None, f"{model_format}: {done['error']}"
            written = {each["set"]: each for each in done["result"]["sets"]}["EMA" if kind == "ema" else "NON_EMA"]
            place = Path(written["path"]).parent
            expected = files_below(reference)
            ours = {name if kind == "ema" else renamed(name): path for name, path in expected.items()}
            assert {str(place / name) for name in ours} == {
                path for path in written["files"] if not path.endswith("ema_select.json")
            }
            for name, path in ours.items():
                assert same_file(place / name, path), f"{model_format}, {kind}: {name}"
                compared += path.suffix == ".safetensors"
            assert not written["nonfinite"]
    assert compared >= 2


def same_file(ours: Path, theirs: Path) -> bool:
    """The same tensors and metadata, apart from what the design adds; other files byte for byte."""
    if theirs.suffix != ".safetensors":
        return ours.read_bytes() == theirs.read_bytes()
    added = ("ema_select.", "modelspec.title")
    metadata = [
        {key: value for key, value in read_metadata(path).items() if not key.startswith(added)}
        for path in (ours, theirs)
    ]
    return difference(load_file(ours), load_file(theirs)) == 0.0 and metadata[0] == metadata[1]
