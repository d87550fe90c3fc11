"""Exports out of backups of plain OneTrainer are what OneTrainer itself saves at that moment, of both sets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from onetrainer_ema_select.backups import open_backup
from onetrainer_ema_select.choices import WeightSet

from .bench import configs
from .bench.checkout import host_environment, run_python
from .bench.configs import Family, Schedule
from .bench.recording import Recording, difference, read_metadata
from .bench.workers import BENCH, Batch, Bench, Job
from .test_variants import CASES as VARIANTS

SCHEDULE = Schedule(epochs=2, steps=3, backup_at_end=True)
ORDERS = Path(__file__).parents[1] / "export_orders.py"

Case = tuple[Family, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {family.name: (family, {}, {}) for family in configs.FAMILIES}
FAMILIES = tuple(CASES)
CASES.update({name: (family, keys, options) for name, (family, keys, options, _) in VARIANTS.items()})
for each in ("ema in bf16", "ema GPU", "fused back pass", "text encoder stops"):
    del CASES[each]  # nothing of these is in a backup
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


class Exporter:
    """A process of OneTrainer's python that carries out orders; its imports are done while others train."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.checkout = bench.checkout(plugin=False)
        self.log = bench.new_folder("exporter") / "stderr.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(bench.host.python), str(ORDERS), str(self.checkout)],
                env=host_environment(package=bench.package(plugin=True)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )

    def order(self, backup: Path, output: Path, **more: Any) -> dict[str, Any]:
        """Both sets of a backup, the EMA with the plain name."""
        base = {"action": "export", "backup": str(backup), "output": str(output), "sets": "both"}
        return {**base, "onetrainer": str(self.checkout), **more}

    def carry_out(self, *orders: dict[str, Any]) -> list[dict[str, Any]]:
        """Do orders."""
        file = configs.write_json(self.bench.new_folder("orders") / "orders.json", list(orders))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n", self.log.read_text(encoding="utf-8")[-4000:]
        results: list[dict[str, Any]] = json.loads(file.with_name("results.json").read_text(encoding="utf-8"))
        return results


@pytest.fixture(scope="module")
def exporter(bench: Bench) -> Iterator[Exporter]:
    """One for all tests here."""
    made = Exporter(bench)
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def plugin_batch(bench: Bench) -> Batch:
    """The runs with the plugin; begun before those without, so that both are trained side by side."""
    jobs = []
    for name, (family, keys, options) in PLUGIN_CASES.items():
        section = {"enabled": True, "milestones": "2 steps"}
        overrides = {"ema": "CPU", "ema_select": section, **keys}
        jobs.append(Job(name, bench.config(family, schedule=SCHEDULE, ema_decay=0.9, **options, overrides=overrides)))
    return bench.start(jobs, plugin=True)


@pytest.fixture(scope="module")
def exports(bench: Bench, plugin_batch: Batch, exporter: Exporter) -> dict[str, Exports]:
    jobs = []
    for name, (family, keys, options) in CASES.items():
        config = bench.config(family, schedule=SCHEDULE, ema_decay=0.9, **options, overrides={"ema": "CPU", **keys})
        hook = "plain_formats_uncompiled" if config.get("compile") else "plain_formats"
        jobs.append(Job(name, config, hook=(BENCH / "hooks.py", hook)))
    found = {}
    for name, future in zip(CASES, bench.start(jobs, plugin=False).futures, strict=True):
        run = future.result().require()  # the next one is trained while this one is exported
        formats = sorted((run.workspace / "formats").iterdir())
        if name not in FAMILIES:  # what is special about them is the same in every format
            formats = [each for each in formats if each.name == run.config["output_model_format"]] + formats[:1]
        orders = {}
        for folder in formats:
            names = [path.name for path in (folder / "ema").iterdir()]
            [model] = {name for name in names if not name.endswith((".yaml", "_embeddings"))} - {"refused.txt"} or {
                folder.name
            }
            place = bench.new_folder("export") / model
            orders[folder.name] = exporter.order(backup_of(run), place, format=folder.name)
        results = exporter.carry_out(*orders.values())
        found[name] = Exports(run, dict(zip(orders, results, strict=True)))
    return found


def files_below(folder: Path) -> dict[str, Path]:
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


# -- backups of the plugin -----------------------------------------------------------------------------------

STOCHASTIC = {"enabled": True, "save_rounding": "STOCHASTIC"}
PLUGIN_CASES: dict[str, Case] = {
    "fine-tune in bf16": (configs.SD15_FINE_TUNE, {}, {"dtype": "BFLOAT_16"}),
    "rounded at random": (configs.SD15_FINE_TUNE, {"ema_select": STOCHASTIC}, {"output_dtype": "BFLOAT_16"}),
    "lora": (configs.SD15_LORA, {"include_train_config": "SETTINGS"}, {}),
    "lora rounded at random": (configs.SD15_LORA, {"ema_select": STOCHASTIC}, {"output_dtype": "BFLOAT_16"}),
    "embedding": (configs.SD15_EMBEDDING, {}, {}),
    "sdxl lora": (configs.SDXL_LORA, {}, {"output_format": "DIFFUSERS_LORA"}),
    "cascade lora": (configs.CASCADE_LORA, {}, {}),
    "cascade fine-tune": (configs.CASCADE_FINE_TUNE, {}, {"output_format": "LEGACY_SAFETENSORS"}),
}
#: These need no base model, where the backup names its weights.
ADAPTERS = ("lora", "lora rounded at random", "embedding", "sdxl lora", "cascade lora")


@dataclass
class PluginExport:
    """A run with the plugin, and the export of its last backup."""

    run: Recording
    done: dict[str, Any]


@pytest.fixture(scope="module")
def plugin_exports(bench: Bench, plugin_batch: Batch, exporter: Exporter) -> dict[str, PluginExport]:
    runs = [run.require() for run in plugin_batch.results()]
    orders = []
    for name, run in zip(PLUGIN_CASES, runs, strict=True):
        place = bench.new_folder("export") / Path(run.config["output_model_destination"]).name
        more: dict[str, Any] = {}
        if name in ADAPTERS:
            # As on a machine that has the workspace and nothing else.
            gone = str(place.parent / "gone")
            parts = [f"{part}.model_name={gone}" for part in ("decoder", "effnet_encoder")]
            more = {"base_model": gone, "config_values": parts}
        orders.append(exporter.order(backup_of(run), place, **more))
    done = exporter.carry_out(*orders)
    return {name: PluginExport(run, each) for name, run, each in zip(PLUGIN_CASES, runs, done, strict=True)}


@pytest.mark.parametrize("case", PLUGIN_CASES)
def test_an_export_is_what_the_plugin_saves(plugin_exports: dict[str, PluginExport], case: str) -> None:
    found = plugin_exports[case]
    assert found.done["error"] is None
    assert ("the base model is not needed" in found.done["result"]["how"]) == (case in ADAPTERS)
    saved = {"EMA": Path(found.run.config["output_model_destination"])}
    saved["NON_EMA"] = saved["EMA"].with_name(renamed(saved["EMA"].name))
    for each in found.done["result"]["sets"]:
        ours, theirs = Path(each["path"]), saved[each["set"]]
        assert ours.name == theirs.name
        for inside in [theirs] if theirs.is_file() else sorted(theirs.rglob("*.safetensors")):
            assert same_file(ours / inside.relative_to(theirs), inside), inside.name
        marks = read_metadata(ours) if ours.is_file() else json.loads((ours / "ema_select.json").read_text())
        assert marks["ema_select.set"] == each["set"]
        assert (marks.get("ema_select.rounding") == "STOCHASTIC") == ("at random" in case)


def test_a_pinned_backup_of_a_milestone(
    exporter: Exporter, plugin_exports: dict[str, PluginExport], tmp_path: Path
) -> None:
    run = plugin_exports["fine-tune in bf16"].run
    [pinned] = (run.workspace / "ema_select" / "milestones" / "backup").iterdir()
    [done] = exporter.carry_out(exporter.order(pinned, tmp_path / "milestone.safetensors"))
    assert done["error"] is None
    saves = sorted((run.workspace / "save").glob("*.safetensors"), key=lambda path: "-non-ema" in path.name)
    assert len(saves) == 2
    for each, saved in zip(done["result"]["sets"], saves, strict=True):
        assert difference(load_file(each["path"]), load_file(saved)) == 0.0
        assert read_metadata(Path(each["path"]))["ema_select.milestone"] == "2 steps"


def test_where_the_base_model_has_moved(
    bench: Bench, exporter: Exporter, exports: dict[str, Exports], tmp_path: Path
) -> None:
    run = exports["sd15-lora"].run
    moved = tmp_path / "moved"
    shutil.copytree(bench.models / "sd15", moved, ignore=shutil.ignore_patterns("*.safetensors"))
    backup = tmp_path / "backup" / backup_of(run).name
    shutil.copytree(backup_of(run), backup)
    config = backup / "onetrainer_config" / "args.json"
    gone = str(tmp_path / "gone")
    configs.write_json(config, {**json.loads(config.read_text(encoding="utf-8")), "base_model_name": gone})
    without, with_it = exporter.carry_out(
        exporter.order(backup, tmp_path / "a.safetensors"),
        # Of the base model only what shape it has: its weights are not there.
        exporter.order(backup, tmp_path / "b.safetensors", base_model=str(moved)),
    )
    assert f"looked for {gone} (base_model_name)" in without["error"]
    assert "--base-model PATH" in without["error"]
    assert with_it["error"] is None
    for each, kind in zip(with_it["result"]["sets"], ("ema", "non-ema"), strict=True):
        reference = exports["sd15-lora"].reference("KOHYA_LORA", kind) / "model.safetensors"
        assert same_file(Path(each["path"]), reference)


# -- read from Python ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PLUGIN_CASES)
def test_open_backup_reads_both_sets_by_name(plugin_exports: dict[str, PluginExport], case: str) -> None:
    run = plugin_exports[case].run
    backup = open_backup(backup_of(run))
    assert backup.named
    for kind, weight_set in (("ema", WeightSet.EMA), ("live", WeightSet.NON_EMA)):
        expected = run.weights(kind)
        found = backup.sets[weight_set]
        if weight_set is WeightSet.EMA:
            assert list(found) == list(expected)
        assert difference({name: found[name] for name in expected}, expected) == 0.0
    assert set(backup.places) == set(run.result["parameters"])


def test_names_of_backups_without_the_plugin(exporter: Exporter, exports: dict[str, Exports]) -> None:
    cases = ("sd15-fine-tune", "sdxl-lora", "cascade-lora", "lora, embeddings beside it", "compile and layer filter")
    orders = [{**exporter.order(backup_of(exports[case].run), Path()), "action": "names"} for case in cases]
    for case, done in zip(cases, exporter.carry_out(*orders), strict=True):
        assert done["error"] is None
        run = exports[case].run
        assert [name.replace(".checkpoint.", ".") for name in run.result["parameters"]] == done["names"]
        opened = open_backup(backup_of(run), names=done["names"])
        averages = {name.replace(".checkpoint.", "."): value for name, value in run.weights("ema").items()}
        assert difference(dict(opened.sets[WeightSet.EMA]), averages) == 0.0


# -- as a user has it ----------------------------------------------------------------------------------------


def test_the_command_line(bench: Bench, exports: dict[str, Exports], tmp_path: Path) -> None:
    found = exports["cascade-fine-tune"]
    command = [
        "-m",
        "onetrainer_ema_select",
        "export",
        backup_of(found.run),
        "--set",
        "both",
        "--output",
        tmp_path / "c",
    ]
    command += ["--format", "legacy_safetensors", "--onetrainer", bench.checkout(plugin=False)]
    done = run_python(bench.host, command, cwd=tmp_path, package=bench.package(plugin=True))
    assert done.returncode == 0, done.stderr
    assert "Wrote ema: " in done.stdout
    assert "were read back and are what was to be written." in done.stdout
    for name, kind in (("c.safetensors", "ema"), ("c-non-ema.safetensors", "non-ema")):
        for file in ("stage_c.safetensors", "text_encoder.safetensors"):
            reference = found.reference("LEGACY_SAFETENSORS", kind) / "model.safetensors" / file
            assert same_file(tmp_path / name / file, reference)
    again = run_python(bench.host, command, cwd=tmp_path, package=bench.package(plugin=True))
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert "Traceback" not in again.stderr


def test_diffusers_loads_what_was_exported(bench: Bench, exports: dict[str, Exports], tmp_path: Path) -> None:
    peft = os.environ.get("EMA_SELECT_PEFT")

    def written(case: str, model_format: str) -> list[str]:
        return [each["path"] for each in exports[case].results[model_format]["result"]["sets"]]

    models = [*written("sd15-fine-tune", "DIFFUSERS"), *written("sdxl-fine-tune", "DIFFUSERS")]
    tasks: list[dict[str, str]] = [{"model": path} for path in models]
    # Kohya's names for SDXL are those of its three blocks, which the tiny model does not have.
    for case, base, model_format in (
        ("sd15-lora", "sd15", "KOHYA_LORA"),
        ("sd15-lora", "sd15", "DIFFUSERS_LORA"),
        ("sdxl-lora", "sdxl", "DIFFUSERS_LORA"),
    ):
        tasks += [{"base": str(bench.models / base), "lora": path} for path in written(case, model_format)]
    file = configs.write_json(tmp_path / "tasks.json", tasks)
    command = [BENCH / "in_diffusers.py", file, tmp_path / "results.json", *([peft] if peft else [])]
    done = run_python(bench.host, command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for ema, non_ema in zip(results[::2], results[1::2], strict=True):
        assert ema["said"] == non_ema["said"] == []
        if "keys" in ema:
            assert ema["keys"] > 100
            assert ema["unknown"] == non_ema["unknown"] == []
        if "keys" not in ema or peft:
            assert ema["picture"] != non_ema["picture"]
