"""Exports from backups of the stand-in: both sets as the run itself has saved them, and everything that can be wrong.

Orders that reach OneTrainer's process are carried out together in one process; a few go the whole way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onetrainer_ema_select.backups import open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import EmaSelectError, ExportError
from onetrainer_ema_select.host.export import export, launch, trained_names
from onetrainer_ema_select.rounding import StochasticRounding

from .conftest import CarryOut, RunJobs

UUID = "00000000-0000-4000-8000-000000000001"
EXTRA = {"uuid": "00000000-0000-4000-8000-000000000002", "placeholder": "<extra>", "token_count": 2}
BASE: dict[str, Any] = {
    "concepts": [], "samples": [], "epochs": 2, "backup_after_unit": "NEVER", "backup_before_save": True,
    "ema": "CPU", "ema_decay": 0.9, "ema_update_step_interval": 1,
}  # fmt: skip
BF16 = {"weight_dtype": "BFLOAT_16"}
STOCHASTIC = {"save_rounding": "STOCHASTIC"}
RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "fine-tune": ({"training_method": "FINE_TUNE"}, False),
    "fine-tune, plugin": ({"training_method": "FINE_TUNE", "include_train_config": "SETTINGS"}, True),
    "folder": ({"training_method": "FINE_TUNE", "output_model_format": "DIFFUSERS"}, True),
    "bf16": ({"training_method": "FINE_TUNE", "unet": BF16, "text_encoder": BF16}, True),
    "lora": ({"training_method": "LORA", "output_model_format": "KOHYA_LORA"}, False),
    "lora, plugin": ({"training_method": "LORA", "output_model_format": "DIFFUSERS_LORA"}, True),
    "lora, embeddings": (
        {
            "training_method": "LORA", "output_model_format": "KOHYA_LORA", "additional_embeddings": [EXTRA],
            "bundle_additional_embeddings": False,
        },
        True,
    ),
    "embedding": (
        {"training_method": "EMBEDDING", "output_model_format": "SAFETENSORS",
         "embedding": {"uuid": UUID, "token_count": 2}, "embedding_learning_rate": 0.1},
        True,
    ),
    "stochastic": (
        {"training_method": "FINE_TUNE", "unet": BF16, "text_encoder": BF16, "output_dtype": "NONE",
         "ema_select": STOCHASTIC}, True
    ),
    "stochastic, lora": (
        {"training_method": "LORA", "output_model_format": "DIFFUSERS_LORA", "output_dtype": "BFLOAT_16",
         "ema_select": STOCHASTIC},
        True,
    ),
    "ema off": ({"training_method": "FINE_TUNE", "ema": "OFF"}, True),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: its folder holds ``workspace`` and the final output."""

    folder: Path

    @property
    def backup(self) -> Path:
        return max((self.folder / "workspace" / "backup").iterdir())

    def saved(self, kind: str = "") -> Path:
        """The final output, with the set's suffix where it has one."""
        places = (self.folder / f"model{kind}", self.folder / f"model{kind}.safetensors")
        [found] = [path for path in places if path.exists()]
        return found


@pytest.fixture(scope="session")
def made(run_jobs: RunJobs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    place = tmp_path_factory.mktemp("export-runs")
    jobs = []
    for name, (keys, plugin) in RUNS.items():
        ending = "" if keys.get("output_model_format") == "DIFFUSERS" else ".safetensors"
        config = {
            **BASE,
            "workspace_dir": str(place / name / "workspace"),
            "output_model_destination": str(place / name / f"model{ending}"),
            **keys,
            **({"ema_select": {"enabled": True, **keys.get("ema_select", {})}} if plugin else {}),
        }
        jobs.append({"name": name, "config": config, "plugin": plugin})
    run_jobs(jobs)
    return {name: Run(place / name) for name in RUNS}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """A model's tensors, from a file or a folder."""
    if path.is_file():
        return load_file(path)
    return {f"{file.parent.name}.{key}": value for file in path.rglob("*.safetensors")
            for key, value in load_file(file).items()}  # fmt: skip


def same(first: Path, second: Path) -> bool:
    one, other = tensors(first), tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- what comes out ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exported(made: dict[str, Run], carry_out: CarryOut, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("exported")
    orders = [
        {"backup": run.backup, "output": place / name / run.saved().name,
         "sets": "non-ema" if name == "ema off" else "both"}
        for name, run in made.items()
    ]  # fmt: skip
    return dict(zip(made, carry_out(orders), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_each_set_is_what_the_run_has_saved(made: dict[str, Run], exported: dict[str, Any], name: str) -> None:
    done, run = exported[name], made[name]
    assert done["error"] is None
    for each in done["result"]["sets"]:
        path = Path(each["path"])
        suffix = "" if each["set"] == "EMA" or name == "ema off" else "-non-ema"
        assert path.stem == f"model{suffix}"
        if suffix and not RUNS[name][1]:
            continue  # plain OneTrainer has not saved that set
        assert same(path, run.saved(suffix))
        assert not each["left_out"]
        assert not each["nonfinite"]
        assert all(Path(file).is_file() for file in each["files"])
    if name == "lora, embeddings":
        for suffix in ("", "-non-ema"):
            [ours] = Path(done["result"]["sets"][0]["path"]).parent.glob(f"model{suffix}.safetensors_embeddings/*")
            [theirs] = run.folder.glob(f"model{suffix}.safetensors_embeddings/*")
            assert same(ours, theirs)
    if name != "ema off":
        first, second = (Path(each["path"]) for each in done["result"]["sets"])
        assert not same(first, second)


def test_the_live_weights_of_a_plain_backup(made: dict[str, Run], exported: dict[str, Any]) -> None:
    # Independent of everything that is exported: the backup's own files hold them.
    [written] = [each for each in exported["fine-tune"]["result"]["sets"] if each["set"] == "NON_EMA"]
    ours = load_file(written["path"])
    unet = load_file(made["fine-tune"].backup / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet
    assert all(torch.equal(ours[f"model.diffusion_model.{key}"], value) for key, value in unet.items())


def test_marks(made: dict[str, Run], exported: dict[str, Any]) -> None:
    for each in exported["fine-tune, plugin"]["result"]["sets"]:
        with safe_open(each["path"], framework="pt") as file:
            marks = file.metadata()
        manifest = json.loads((made["fine-tune, plugin"].backup / "ema_select" / "manifest.json").read_text())
        assert marks["ema_select.set"] == each["set"]
        assert marks["ema_select.run"] == manifest["run"]
        assert int(marks["ema_select.step"]) == manifest["step"]
        assert marks["ema_select.exported_from"] == made["fine-tune, plugin"].backup.name
        assert marks["modelspec.title"].startswith(Path(each["path"]).stem)
        assert json.loads(marks["ot_config"])["ema_select"]["enabled"] is True
        assert json.loads(marks["ot_config"])["ema"] == "CPU"  # as it was, not as it was loaded with
        assert ("ema_select.decay" in marks) == (each["set"] == "EMA")
    folder = Path(exported["folder"]["result"]["sets"][0]["path"])
    assert json.loads((folder / "ema_select.json").read_text())["ema_select.set"] == "EMA"


def test_an_average_of_more_bits_goes_into_a_wider_file_in_full(
    made: dict[str, Run], carry_out: CarryOut, tmp_path: Path
) -> None:
    run = made["bf16"]
    orders = [
        {"backup": run.backup, "output": tmp_path / f"{dtype}.safetensors", "sets": "ema", "dtype": dtype}
        for dtype in ("FLOAT_32", "bf16", "NONE")
    ]
    results = carry_out(orders)
    assert [each["error"] for each in results] == [None] * 3
    wide, narrow, own = (load_file(order["output"]) for order in orders)
    names = [
        record["name"] for record in json.loads((run.backup / "ema_select/manifest.json").read_text())["parameters"]
    ]
    averages = torch.load(run.backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    prefixes = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model."}
    assert any(not torch.equal(average, average.bfloat16().float()) for average in averages)
    for name, average in zip(names, averages, strict=True):
        part, rest = name.split(".", 1)
        key = prefixes[part] + rest
        assert torch.equal(wide[key], average)
        assert torch.equal(narrow[key], average.bfloat16())
        assert torch.equal(own[key], average.bfloat16())


def averages_in(path: Path, backup: Path) -> dict[str, torch.Tensor]:
    """Of a fine-tune in one file, the tensors of the trained weights by their stable names."""
    found = load_file(path)
    prefixes = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model."}
    names = [record["name"] for record in json.loads((backup / "ema_select/manifest.json").read_text())["parameters"]]
    return {name: found[prefixes[name.partition(".")[0]] + name.partition(".")[2]] for name in names}


def test_rounding_at_random(
    made: dict[str, Run], exported: dict[str, Any], carry_out: CarryOut, tmp_path: Path
) -> None:
    run = made["stochastic"]
    manifest = json.loads((run.backup / "ema_select" / "manifest.json").read_text())
    averages = torch.load(run.backup / "ema" / "ema.pt", weights_only=True)["ema_parameters"]
    written = averages_in(run.saved(), run.backup)
    rule = StochasticRounding(manifest["run"], manifest["step"])
    assert [name for name, average in zip(written, averages, strict=True)
            if not torch.equal(written[name], rule(name, average, torch.bfloat16))] == []  # fmt: skip
    assert any(not torch.equal(written[name], average.bfloat16())
               for name, average in zip(written, averages, strict=True))  # fmt: skip
    # the live weights have 16 bits and stay what they are
    unet = load_file(run.backup / "unet" / "diffusion_pytorch_model.safetensors")
    plain = load_file(run.saved("-non-ema"))
    assert all(torch.equal(plain[f"model.diffusion_model.{key}"], value) for key, value in unet.items())
    lora = made["stochastic, lora"]
    for path in (run.saved(), run.saved("-non-ema"), lora.saved(), lora.saved("-non-ema")):
        with safe_open(path, framework="pt") as file:
            marked = file.metadata().get("ema_select.rounding")
        assert marked == (None if path == run.saved("-non-ema") else "STOCHASTIC")
    assert [exported[name]["result"]["rounding"] for name in ("bf16", "stochastic", "stochastic, lora")] == [
        "NEAREST", "STOCHASTIC", "STOCHASTIC",
    ]  # fmt: skip
    orders = [
        {"backup": made[name].backup, "output": tmp_path / f"{index}.safetensors", "sets": "ema", **more}
        for index, (name, more) in enumerate(
            [("stochastic", {"rounding": "nearest"}), ("bf16", {"rounding": "stochastic", "dtype": "NONE"}),
             ("bf16", {"rounding": "stochastic", "dtype": "FLOAT_32"}), ("stochastic", {"rounding": "up"})]
        )
    ]  # fmt: skip
    results = carry_out(orders)
    assert [each["result"]["rounding"] for each in results[:3]] == ["NEAREST", "STOCHASTIC", "NEAREST"]
    nearest = averages_in(tmp_path / "0.safetensors", run.backup)
    assert all(torch.equal(nearest[name], each.bfloat16()) for name, each in zip(nearest, averages, strict=True))
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        assert "ema_select.rounding" not in file.metadata()
    assert all(value.dtype == torch.bfloat16 for value in averages_in(tmp_path / "1.safetensors", run.backup).values())
    assert results[3]["error"] == "UsageError: --rounding up is none. Choose nearest or stochastic."


def test_a_lora_in_32_bits_is_rounded_at_random_in_both_sets(made: dict[str, Run]) -> None:
    run = made["stochastic, lora"]
    manifest = json.loads((run.backup / "ema_select" / "manifest.json").read_text())
    rule = StochasticRounding(manifest["run"], manifest["step"])
    with open_backup(run.backup) as backup:
        for kind, weight_set in (("", WeightSet.EMA), ("-non-ema", WeightSet.NON_EMA)):
            written = load_file(run.saved(kind))
            expected = {name: rule(name, backup.sets[weight_set][name], torch.bfloat16) for name in backup.places}
            # whatever the format calls them
            for value in expected.values():
                assert any(value.shape == other.shape and torch.equal(value, other) for other in written.values())


def test_names_of_a_plain_backup(made: dict[str, Run], standin: Path) -> None:
    plain = trained_names(made["fine-tune"].backup, onetrainer=standin)
    manifest = json.loads((made["fine-tune, plugin"].backup / "ema_select" / "manifest.json").read_text())
    assert list(plain) == [record["name"] for record in manifest["parameters"]]


def test_no_base_model_where_the_names_are_known(made: dict[str, Run], carry_out: CarryOut, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "base.safetensors")
    orders = [
        {"backup": made[name].backup, "output": tmp_path / f"{index}.safetensors", "sets": sets, "base_model": gone}
        for index, (name, sets) in enumerate(
            [("lora, plugin", "both"), ("embedding", "both"), ("lora", "non-ema"),
             ("lora", "ema"), ("lora, embeddings", "ema")]
        )
    ]  # fmt: skip
    results = carry_out(orders)
    for result in results[:3]:
        assert result["error"] is None
        assert result["result"]["base_model"] == ""
        assert "base model is not needed" in result["result"]["how"]
    assert same(tmp_path / "0.safetensors", made["lora, plugin"].saved())
    assert same(tmp_path / "0-non-ema.safetensors", made["lora, plugin"].saved("-non-ema"))
    assert same(tmp_path / "1.safetensors", made["embedding"].saved())
    assert same(tmp_path / "1-non-ema.safetensors", made["embedding"].saved("-non-ema"))
    for result in results[3:]:
        assert f"looked for {gone} (base_model_name)" in result["error"]
        assert "--base-model PATH" in result["error"]


# -- the whole way -------------------------------------------------------------------------------------------


def test_from_python(made: dict[str, Run], standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    run = made["fine-tune, plugin"]
    planned = export(run.backup, "out/model", sets="both", onetrainer=standin, dry_run=True)
    assert planned.dry_run
    assert not (tmp_path / "out").exists()
    result = export(
        run.backup, "out/model", sets="both", onetrainer=standin, progress=lambda what, done, total: said.append(what)
    )
    assert [each.path for each in result.sets] == [each.path for each in planned.sets]
    assert [each.path.name for each in result.sets] == ["model.safetensors", "model-non-ema.safetensors"]
    assert same(result.sets[0].path, run.saved())
    assert same(result.sets[1].path, run.saved("-non-ema"))
    for each in planned.sets:
        assert each.size_bytes == pytest.approx(each.path.stat().st_size, rel=0.2, abs=20_000)
    assert said[0] == "starting OneTrainer"
    assert "flushing to the disk" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model-non-ema.safetensors", "model-non-ema.yaml", "model.safetensors", "model.yaml",
    ]  # fmt: skip
    # In a folder that is there: under the backup's name, each set with its own.
    (tmp_path / "models").mkdir()
    inside = export(run.backup, "models", sets="non-ema", onetrainer=standin)
    assert inside.sets[0].path == tmp_path / "models" / f"{run.backup.name}-non-ema.safetensors"


def test_a_killed_export_leaves_nothing(
    made: dict[str, Run], standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []
    listen = launch._listen

    def kill_while_writing(process: Any, kind: str, progress: Any, staged: Any) -> Any:
        def kill(folder: Path) -> None:
            staged(folder)
            killed.append(folder)
            process.kill()

        return listen(process, kind, progress, kill)

    monkeypatch.setattr(launch, "_listen", kill_while_writing)
    with pytest.raises(ExportError, match="was ended by the system, most likely because the memory was full"):
        export(made["fine-tune"].backup, tmp_path / "model.safetensors", onetrainer=standin)
    assert killed
    assert list(tmp_path.iterdir()) == []


# -- what can be wrong ---------------------------------------------------------------------------------------


def edit_config(backup: Path, **keys: Any) -> None:
    file = backup / "onetrainer_config" / "args.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}), encoding="utf-8")


def no_config(backup: Path) -> None:
    shutil.rmtree(backup / "onetrainer_config")


def config_not_json(backup: Path) -> None:
    (backup / "onetrainer_config" / "args.json").write_text("{", encoding="utf-8")


def config_of_something_else(backup: Path) -> None:
    (backup / "onetrainer_config" / "args.json").write_text('{"a": 1}', encoding="utf-8")


def fewer_averages(backup: Path) -> None:
    state = torch.load(backup / "ema" / "ema.pt", weights_only=True)
    torch.save({**state, "ema_parameters": state["ema_parameters"][:-1]}, backup / "ema" / "ema.pt")


def other_shape(backup: Path) -> None:
    state = torch.load(backup / "ema" / "ema.pt", weights_only=True)
    state["ema_parameters"][3] = torch.zeros(1, 2, 3)
    torch.save(state, backup / "ema" / "ema.pt")


def lost_key(backup: Path) -> None:
    file = backup / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)


Break = Callable[[Path], None]
# name: run, what is done to a copy of its backup, keys of the order, what the error says
WRONG: dict[str, tuple[str, Break | None, dict[str, Any], tuple[str, ...]]] = {
    "no configuration": ("fine-tune", no_config, {}, ("There is no configuration: looked for", "--config FILE")),
    "configuration cut short": ("fine-tune", config_not_json, {}, ("cannot be read", "--config FILE")),
    "configuration of something else": (
        "fine-tune", config_of_something_else, {}, ("is not a configuration of OneTrainer", "--config FILE"),
    ),
    "a model type of the future": (
        "fine-tune", lambda b: edit_config(b, model_type="STABLE_DIFFUSION_9"), {},
        ("does not know the model_type 'STABLE_DIFFUSION_9'", "Update OneTrainer"),
    ),
    "a method of the future": (
        "fine-tune", lambda b: edit_config(b, training_method="DREAM"), {},
        ("does not know the training_method 'DREAM'", "--onetrainer DIR"),
    ),
    "the wrong method": (
        "fine-tune", lambda b: edit_config(b, training_method="LORA"), {"format": "KOHYA_LORA"},
        ("could not load", "--config FILE"),
    ),
    "no such format": (
        "fine-tune", None, {"format": "GGUF"}, ("--format GGUF is none", "DIFFUSERS, ORIGINAL_SINGLE_FILE"),
    ),
    "a format of another method": (
        "fine-tune", None, {"format": "KOHYA_LORA"}, ("--format KOHYA_LORA is none", "DIFFUSERS"),
    ),
    "the run's format is gone": (
        "fine-tune", lambda b: edit_config(b, output_model_format="KOHYA_LORA"), {},
        ("The run's own format, KOHYA_LORA", "--format: DIFFUSERS"),
    ),
    "no such dtype": ("fine-tune", None, {"dtype": "FLOAT_4"}, ("--dtype FLOAT_4 is none", "BFLOAT_16")),
    "a key that is none": (
        "fine-tune", None, {"config_values": ["unet.colour=red"]}, ("there is no such key", "decoder.model_name="),
    ),
    "a key without a value": ("fine-tune", None, {"config_values": ["unet"]}, ("there is no such key",)),
    "a value that is none": (
        "fine-tune", None, {"config_values": ["unet.weight_dtype=red"]}, ("OneTrainer cannot set", "'red'"),
    ),
    "fewer averages than weights": (
        "fine-tune", fewer_averages, {}, ("tensors, OneTrainer would train", "--set non-ema"),
    ),
    "an average of another shape": (
        "fine-tune", other_shape, {}, ("has the shape (1, 2, 3), the weight has", "--config FILE"),
    ),
    "other weights than in the run": (
        "fine-tune", lambda b: edit_config(b, text_encoder={"train": False}), {},
        ("OneTrainer would train", "--config FILE"),
    ),
    "averages that would not be trained": (
        "fine-tune, plugin", None, {"config_values": ["text_encoder.train=false"]},
        ("weights that OneTrainer would not train with this configuration", "--set non-ema"),
    ),
    "a weight is missing": ("fine-tune", lost_key, {}, ("OneTrainer could not load", "Try an older backup")),
    "the base model has moved": (
        "lora", None, {"base_model": "/nowhere/base.safetensors"},
        ("looked for /nowhere/base.safetensors (base_model_name)", "--base-model PATH"),
    ),
    "a part has moved": (
        "lora", lambda b: edit_config(b, vae={"model_name": "/nowhere/vae"}), {},
        ("looked for /nowhere/vae (vae.model_name)", "--config-value vae.model_name=PATH"),
    ),
    "a base model that is none": (
        "lora", None, {"base_model": "nobody/nothing"},
        ("with the base model nobody/nothing", "--base-model PATH"),
    ),
    "a file of that name": ("fine-tune", None, {"output": "there.safetensors"}, ("is there already", "--overwrite")),
    "its yaml is there": ("fine-tune", None, {"output": "beside.safetensors"}, ("beside.yaml is there", "--overwrite")),
    "a folder named like a file": (
        "fine-tune", None, {"output": "folder.safetensors"}, ("is a single file, but", "is a folder"),
    ),
    "a folder where a file is": (
        "fine-tune", None, {"output": "plain", "format": "DIFFUSERS", "overwrite": True},
        ("DIFFUSERS is a folder, but", "is a file"),
    ),
    "a folder that would look like a file": (
        "fine-tune", None, {"output": "new.safetensors", "format": "DIFFUSERS"},
        ("would look like a file", "a name without .safetensors"),
    ),
    "below a file": (
        "fine-tune", None, {"output": "plain/model.safetensors"}, ("cannot be written", "is a file", "--output"),
    ),
    "among the backups": (
        "fine-tune", None, {"output": "BACKUP/../model.safetensors"}, ("lies among the backups", "elsewhere"),
    ),
    "in the backup": ("fine-tune", None, {"output": "BACKUP/model.safetensors"}, ("lies among the backups",)),
    "a place that cannot be written": (
        "fine-tune", None, {"output": "/proc/nothing/model.safetensors"}, ("be written", "--output"),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def refused(
    made: dict[str, Run], carry_out: CarryOut, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, list[str]]]:
    """Each error, and what lies at the output's place after it that was not there before."""
    orders, places = [], []
    for name, (run, change, keys, _) in WRONG.items():
        place = tmp_path_factory.mktemp("wrong")
        backup = place / "backup" / made[run].backup.name
        shutil.copytree(made[run].backup, backup)
        if change is not None:
            change(backup)
        out = place / "out"
        (out / "folder.safetensors" / "x").mkdir(parents=True)
        for file in ("there.safetensors", "beside.yaml", "plain"):
            (out / file).write_bytes(b"mine")
        output = str(keys.get("output", "model.safetensors")).replace("BACKUP", str(backup))
        orders.append({"backup": backup, "sets": "ema", **keys, "output": out / output})
        places.append((name, out, sorted(out.rglob("*"))))
    results = carry_out(orders)
    found = {}
    for (name, out, before), result in zip(places, results, strict=True):
        assert result["error"], f"{name}: no error"
        assert (out / "there.safetensors").read_bytes() == b"mine"
        found[name] = result["error"], [str(path) for path in sorted(out.rglob("*")) if path not in before]
    return found


@pytest.mark.parametrize("case", WRONG)
def test_each_error_says_what_to_do_and_leaves_nothing(refused: dict[str, tuple[str, list[str]]], case: str) -> None:
    error, left = refused[case]
    kind, _, message = error.partition(": ")
    usage = {"no such format", "a format of another method", "no such dtype", "a key that is none"}
    usage |= {"a key without a value", "a value that is none"}
    assert kind == ("UsageError" if case in usage else "ExportError")
    assert "\n" not in message
    assert message.rstrip()[-1] in ".)" or message.endswith("PATH")
    for part in WRONG[case][3]:
        assert part in message
    assert left == []


def test_a_onetrainer_that_is_not_known(made: dict[str, Run], standin: Path, tmp_path: Path) -> None:
    other = shutil.copytree(standin, tmp_path / "other")
    file = other / "modules" / "modelLoader" / "mixin" / "InternalModelLoaderMixin.py"
    file.write_text(file.read_text().replace("_load_internal_data", "_load_more"), encoding="utf-8")
    with pytest.raises(EmaSelectError) as caught:
        export(made["fine-tune"].backup, tmp_path / "model.safetensors", onetrainer=other)
    assert "_load_internal_data: expected (self, model, model_name), found nothing of that name" in str(caught.value)
    assert "doctor" in str(caught.value)


def test_nan_is_told(made: dict[str, Run], carry_out: CarryOut, tmp_path: Path) -> None:
    backup = shutil.copytree(made["fine-tune"].backup, tmp_path / "backup" / made["fine-tune"].backup.name)
    state = torch.load(backup / "ema" / "ema.pt", weights_only=True)
    state["ema_parameters"][0].view(-1)[0] = float("nan")
    torch.save(state, backup / "ema" / "ema.pt")
    [done] = carry_out([{"backup": backup, "output": tmp_path / "m.safetensors", "sets": "both"}])
    ema, non_ema = done["result"]["sets"]
    assert len(ema["nonfinite"]) == 1
    assert not non_ema["nonfinite"]
    assert any("m.safetensors holds NaN or Inf in 1 tensors" in note for note in done["result"]["notes"])


def test_a_folder_of_another_division_is_not_mixed_with(
    made: dict[str, Run], carry_out: CarryOut, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    order = {"backup": made["folder"].backup, "output": place, "sets": "ema", "overwrite": True}
    [first] = carry_out([order])
    assert first["error"] is None
    stray = place / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    stray.write_text("{}", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))}
    [second] = carry_out([order])
    assert "holds unet/diffusion_pytorch_model.safetensors.index.json, which is none of the files" in second["error"]
    assert "Delete the folder, or give another name with --output" in second["error"]
    assert {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))} == before
    stray.unlink()
    [third] = carry_out([order])
    assert third["error"] is None
    assert same(place, made["folder"].saved())


def test_a_lora_with_names_of_another_time_is_not_converted_blindly(
    made: dict[str, Run], carry_out: CarryOut, tmp_path: Path
) -> None:
    backup = shutil.copytree(made["lora, plugin"].backup, tmp_path / "backup" / made["lora, plugin"].backup.name)
    file = backup / "lora" / "lora.safetensors"
    save_file({f"lora_{key.replace('.', '_', 1)}": value for key, value in load_file(file).items()}, file)
    [done] = carry_out([{"backup": backup, "output": tmp_path / "m.safetensors", "sets": "non-ema"}])
    assert "could not set the model up as in the run" in done["error"]
    assert not (tmp_path / "m.safetensors").exists()
