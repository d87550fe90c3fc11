"""The JSON that is printed is the JSON that is documented: every key, and its type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onetrainer_ema_select.validation import judge

from ..backup_files import NAME, park, tensors, write_backup, write_snapshot

Command = Callable[..., "tuple[int, str, str]"]

DOCS = Path(__file__).parents[2] / "docs"
UNET = "unet/diffusion_pytorch_model.safetensors"
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
# Whatever a file's header says.
FREE = {"metadata"}

JUDGED = judge(step=7, epoch=3, labels=["a", "b"], ema=[0.5, 0.25], non_ema=[0.75, 0.375])
NOT_FINITE = judge(step=7, epoch=3, labels=["a"], ema=[float("nan")], non_ema=[float("inf")])


def documented(verb: str, page: Path = DOCS / "json.md") -> dict[str, str]:
    section = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (body,) = (part for part in section if part.startswith(f"{verb}\n"))
    return dict(re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \|", body, re.MULTILINE))


def walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its value; entries of arrays are `[]`, and paths that are keys are `PATH`."""
    if path:
        yield path, value
    if isinstance(value, dict) and path not in FREE:
        for key, inner in value.items():
            name = "PATH" if path == "verified" else key
            yield from walk(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from walk(inner, f"{path}[]")


def printed(report: object) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path, value in walk(report):
        kind = "null" if value is None else TYPES[type(value)]
        if kind == "array" and value and all(isinstance(inner, str) for inner in value):
            kind = "array of strings"
        found.setdefault(path, set()).add(kind)
    return found


def check(reports: list[object], expected: dict[str, str]) -> None:
    found: dict[str, set[str]] = {}
    for report in reports:
        for path, kinds in printed(report).items():
            # entries themselves have no row, and what is said to have the keys of something else has none either
            if not path.endswith("[]") and not path.endswith("PATH"):
                found.setdefault(path, set()).update(kinds)
    assert set(found) == set(expected)
    for path, kinds in found.items():
        allowed = set(expected[path].split(" or "))
        allowed |= {"integer"} if "number" in allowed else set()
        allowed |= {"array"} if "array of strings" in allowed else set()
        assert kinds <= allowed, path
        # what may be null has been seen as both
        assert ("null" in kinds) == ("null" in allowed), path
        assert kinds != {"null"}, path


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Something of everything."""
    root = tmp_path / "run"
    live, average = tensors((3, 2), (4,)), tensors((3, 2), (4,), seed=1)
    files = {
        UNET: {"blocks.0.weight": live[0], "blocks.1.weight": live[1]},
        "vae/x.safetensors": {"scale": torch.ones(2)},
    }
    names = ["unet.blocks.0.weight", "unet.blocks.1.weight"]
    write_backup(root / "backup" / NAME, files, averages=average, names=names)
    manifest = root / "backup" / NAME / "ema_select" / "manifest.json"
    raw = json.loads(manifest.read_text(encoding="utf-8"))
    raw["ema"] |= {"half_life": "1 steps", "age": 3.5, "images_per_step": 4, "steps_per_epoch": 2, "decay": 0.1}
    raw["post_hoc"] = {
        "tracks": [{"sigma_rel": 0.05, "file": "x"}], "dtype": "FLOAT_32", "images": 8, "time": 8, "updates": 8,
        "interval": 1, "update_step_interval": 1, "stretch": "s",
    }  # fmt: skip
    raw |= {"parked": [{"name": "x-ema", "step": 2}], "milestones": ["2 epochs"], "onetrainer_commit": "abc"}
    raw["validation"] = json.loads(JUDGED.model_dump_json())
    manifest.write_text(json.dumps(raw), encoding="utf-8")
    write_backup(root / "ema_select" / "milestones" / "backup" / NAME, files)
    (root / "backup" / "stray").mkdir()
    parked = park(root / "ema_select" / "parked" / "x-ema", dict(zip(names, average, strict=True)))
    (root / "ema_select" / "parked" / "y-ema").mkdir()
    (root / "save").mkdir()
    for end, weight_set, tensor in (("", "EMA", live[0]), ("-non-ema", "NON_EMA", average[0])):
        marks = {"set": weight_set, "run": "r", "step": "8", "epoch": "4", "epoch_step": "0", "milestone": "2 epochs"}
        marks |= {"leg": "x", "version": "1"} | ({"decay": "0.9", "updates": "3"} if weight_set == "EMA" else {})
        header = {f"ema_select.{key}": value for key, value in marks.items()}
        save_file({"a.w": tensor}, root / "save" / f"a{end}.safetensors", metadata=header | {"ss_v2": "True"})
    save_file({"a.w": live[0], "b.w": torch.zeros(1)}, root / "save" / "b.safetensors")
    assert parked.is_dir()
    snapshots = root / "ema_select" / "post_hoc" / "backup"
    average = {"unet.blocks.0.weight": live[0]}
    write_snapshot(snapshots / "2026-08-19_11-00-00-snapshot-8-4-0", {0.05: average, 0.1: average}, step=8)
    (snapshots / "2026-08-19_12-00-00-snapshot-9-4-1").mkdir()
    return root


def test_list(command: Command, workspace: Path) -> None:
    # how many GPUs there were, or how long an epoch is, not every backup says
    said = {"ema_decay": 0.1, "ema_update_step_interval": 5, "batch_size": 2}
    for place in (workspace / "backup", workspace / "ema_select" / "milestones" / "backup"):
        for second, config in enumerate((said, said | {"multi_gpu": True})):
            folder = place / f"2026-08-19_12-00-0{second}-backup-8-0-8"
            write_backup(folder, {UNET: {"w": torch.ones(1)}}, averages=[torch.ones(1)], config=config)
            progress = {"epoch": 0, "epoch_step": 8, "epoch_sample": 16, "global_step": 8}
            if second:
                continue
            (folder / "meta.json").write_text(json.dumps({"train_progress": progress}), encoding="utf-8")
    report = json.loads(command("list", workspace, "--verify", "--json")[1])
    nothing = json.loads(command("list", workspace.parent / "home", "--json")[1])
    expected = documented("list")
    for key, kind in list(expected.items()):
        if key.startswith("backups[]."):
            expected[key.replace("backups[]", "milestones[]")] = kind
    # the milestone's backup is whole: what may be missing is tried on the others
    for one in report["milestones"]:
        one |= {"step": None, "epoch": None} if one is report["milestones"][-1] else {}
    report["milestones"].append(report["backups"][-1])
    [judged] = [one for one in report["backups"] if one["validation"] is not None]
    assert judged["validation"] == JUDGED.as_json()
    for one in ("backups", "milestones"):
        report[one] += [judged, judged | {"validation": NOT_FINITE.as_json()}]
    check([report, nothing], expected)


def of_16_bits(folder: Path) -> list[Path]:
    """Backups in 16 bits whose sets differ and do not, a model of the first, and adapters of two kinds."""
    live, config = torch.ones(3, dtype=torch.bfloat16), {"output_dtype": "NONE"}
    paths = []
    for number, average in enumerate((torch.full((3,), 1.001), torch.ones(3))):
        backup = folder / str(number) / "backup" / NAME
        paths.append(write_backup(backup, {UNET: {"a": live}}, averages=[average], names=["unet.a"], config=config))
    marks = {"set": "EMA", "run": "a-run", "step": "8", "rounding": "STOCHASTIC"}
    save_file({"a": live}, folder / "0" / "x.safetensors", metadata={f"ema_select.{key}": marks[key] for key in marks})
    paths.append(folder / "0" / "x.safetensors")
    for names in (("lora_down.weight", "lora_up.weight"), ("hada_w1_a", "hada_w1_b")):
        lora = {f"unet.x.{name}": tensor for name, tensor in zip(names, tensors((2, 2), (2, 2)), strict=True)}
        called = [f"unet_lora.x.{name}" for name in names]
        average = tensors((2, 2), (2, 2), seed=1)
        backup = folder / names[0] / NAME
        paths.append(write_backup(backup, {"lora/lora.safetensors": lora}, averages=average, names=called))
    return paths


def test_inspect(command: Command, workspace: Path) -> None:
    backup = workspace / "backup" / NAME
    paths = [
        backup,
        workspace / "ema_select" / "milestones" / "backup" / NAME,
        workspace / "save" / "a.safetensors",
        workspace / "save" / "b.safetensors",
    ]
    reports = [json.loads(command("inspect", path, "--json")[1]) for path in paths]
    distances = {path for report in reports for path in printed(report) if path.startswith("distance.")}
    compare = json.loads(command("compare", backup, backup, "--json")[1])
    assert {path.removeprefix("distance.") for path in distances} == {
        path for path in printed(compare) if not re.match(r"(a|b|schema)(\.|$)", path)
    }
    for report in reports:
        report["distance"] = None if report["distance"] is None else {}
    assert reports[0]["validation"] == JUDGED.as_json()
    reports.append(reports[0] | {"validation": NOT_FINITE.as_json()})
    # a decay that is no number, in the header of a model
    header = {"ema_select.set": "EMA", "ema_select.decay": "x", "ema_select.update_step_interval": "2"}
    save_file({"a": torch.ones(1)}, workspace / "c.safetensors", metadata=header)
    reports.append(json.loads(command("inspect", workspace / "c.safetensors", "--json")[1]))
    header["ema_select.decay"] = "0.9"
    save_file({"a": torch.ones(1)}, workspace / "d.safetensors", metadata=header)
    reports.append(json.loads(command("inspect", workspace / "d.safetensors", "--json")[1]))
    reports += [
        {**json.loads(command("inspect", path, "--json")[1]), "distance": None} for path in of_16_bits(workspace / "16")
    ]
    snapshot = workspace / "ema_select" / "post_hoc" / "backup" / "2026-08-19_11-00-00-snapshot-8-4-0"
    reports.append(json.loads(command("inspect", snapshot, "--json")[1]))
    marks = {"set": "POST_HOC", "sigma_rel": "0.08", "fit_error": "0.001", "step": "8"}
    header = {f"ema_select.{key}": value for key, value in marks.items()}
    save_file({"a": torch.ones(1)}, workspace / "e.safetensors", metadata=header)
    reports.append(json.loads(command("inspect", workspace / "e.safetensors", "--json")[1]))
    assert [reports[-2]["kind"], reports[-1]["sets"][0]["set"]] == ["snapshot", "post-hoc"]
    check(reports, documented("inspect"))


def test_compare(command: Command, workspace: Path) -> None:
    one = [
        {"model.x.a.w": torch.ones(2), "model.x.b.w": torch.zeros(2), "model.x.r.w": torch.ones(2), "p": torch.ones(1)},
        {"unet.a.w": torch.ones(2), "unet.b.w": torch.ones(2), "unet.r.w": torch.ones(3), "q": torch.ones(1)},
    ]
    paths = [workspace / "1.safetensors", workspace / "2.safetensors"]
    for path, named in zip(paths, one, strict=True):
        save_file(named, path)
    expected = documented("compare")
    for key, kind in list(expected.items()):
        if key.startswith("total."):
            expected[key.replace("total.", "blocks[].")] = kind
        if key.startswith("a."):
            expected[f"b.{key[2:]}"] = kind
    zero = workspace / "3.safetensors"
    save_file({"model.x.a.w": torch.zeros(2)}, zero)
    huge = [workspace / "4.safetensors", workspace / "5.safetensors"]
    for path, sign in zip(huge, (1, -1), strict=True):
        save_file({"a.w": torch.tensor([sign * 1e308], dtype=torch.float64)}, path)
    reports = [json.loads(command("compare", *sides, "--json")[1]) for sides in (paths, (zero, paths[1]), huge)]
    check(reports, expected)


def test_report(command: Command, workspace: Path) -> None:
    check([json.loads(command("report", workspace, "--json")[1])], documented("report"))
    assert documented("report", DOCS / "zh" / "json.md") == documented("report")


@pytest.mark.parametrize("verb", ["list", "inspect", "compare"])
def test_both_languages_have_the_same_keys(verb: str) -> None:
    assert documented(verb, DOCS / "zh" / "json.md") == documented(verb)
    assert len(documented(verb)) > 20
