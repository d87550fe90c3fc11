"""`compare`: numbers beside an independent computation, every kind of side, and what cannot be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

from ..backup_files import NAME, park, tensors, write_backup

Command = Callable[..., "tuple[int, str, str]"]

UNET = "unet/diffusion_pytorch_model.safetensors"
RESTS = tuple(f"blocks.{number}.weight" for number in range(15))


def model(path: Path, seed: int = 0, prefix: str = "model.diffusion_model.", **changes: torch.Tensor) -> Path:
    named = {prefix + rest: tensor for rest, tensor in zip(RESTS, tensors(*[(6,)] * 15, seed=seed), strict=True)}
    save_file({**named, **changes}, path)
    return path


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    live, average = tensors(*[(6,)] * 15), tensors(*[(6,)] * 15, seed=1)
    files = {UNET: dict(zip(RESTS, live, strict=True))}
    return write_backup(
        tmp_path / "run" / "backup" / NAME, files, averages=average, names=[f"unet.{rest}" for rest in RESTS]
    )


def distance(first: int, second: int) -> float:
    one, other = (torch.cat(tensors(*[(6,)] * 15, seed=seed)).double() for seed in (first, second))
    return float((one - other).norm() / one.norm())


def test_two_files(command: Command, tmp_path: Path) -> None:
    a, b = model(tmp_path / "a.safetensors"), model(tmp_path / "b.safetensors", seed=1)
    code, out, err = command("compare", a, b)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("  model.diffusion_model.blocks.")]
    assert len(rows) == 12
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    total = next(line for line in out.splitlines() if line.startswith("  in total"))
    assert float(total.split()[2]) == pytest.approx(distance(0, 1), rel=1e-3)
    assert "  3 more blocks, less far apart: --all shows them.\n" in out
    assert command("compare", a, b, "--all")[1].count("diffusion_model.blocks.") == 15
    assert all(cell_len(line) <= 80 or str(tmp_path) in line for line in out.splitlines())


def test_json(command: Command, tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors")
    b = model(tmp_path / "b.safetensors", seed=1, more=torch.tensor([math.nan, math.inf]))
    report = json.loads(command("compare", a, b, "--json")[1])
    assert report["total"]["relative_distance"] == pytest.approx(distance(0, 1), rel=1e-12)
    assert report["a"] == {"path": str(a), "set": "", "kind": "transformer"}
    assert (report["tensors"], report["only_a"], report["only_b"]) == (15, [], ["more"])
    assert len(report["blocks"]) == 15
    for block in report["blocks"]:
        number = int(block["block"].rpartition(".")[2])
        one, other = (tensors(*[(6,)] * 15, seed=seed)[number].double() for seed in (0, 1))
        assert block["relative_distance"] == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-12)
        assert block["largest_difference"] == float((one - other).abs().max())


def test_nan_in_a_tensor_that_only_one_has_is_told(command: Command, tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors")
    b = model(tmp_path / "b.safetensors", more=torch.tensor([math.nan, math.inf]))
    out = command("compare", a, b)[1]
    assert "  1 tensors are only in B: more.\n" in out
    assert "  1 NaN and 1 Inf in B; left out of the numbers above.\n" in out
    assert "  The 15 tensors that both have are the same, bit for bit.\n" in out


def test_the_same_file(command: Command, tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors")
    assert "  The same, bit for bit.\n" in command("compare", a, a)[1]
    assert json.loads(command("compare", a, a, "--json")[1])["identical"]


def test_both_sets_of_a_backup(command: Command, backup: Path) -> None:
    report = json.loads(command("compare", backup, backup, "--json")[1])
    assert (report["a"]["set"], report["b"]["set"]) == ("ema", "non-ema")
    assert report["total"]["relative_distance"] == pytest.approx(distance(1, 0), rel=1e-12)
    turned = json.loads(command("compare", backup, backup, "--set-a", "non-ema", "--set-b", "ema", "--json")[1])
    assert turned["total"]["relative_distance"] == pytest.approx(distance(0, 1), rel=1e-12)


def test_two_sets_of_a_backup_belong_together_by_equal_names_only(command: Command, backup: Path) -> None:
    # names that nothing in the model has are not taken for others that end alike
    manifest = backup / "ema_select" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"unet.', '"elsewhere.x.'), encoding="utf-8")
    code, out, err = command("compare", backup, backup)
    assert (code, out) == (1, "")
    assert "has names such as elsewhere.x.blocks.0.weight" in err


@pytest.mark.parametrize(("options", "expected"), [([], 0.0), (["--set-a", "ema"], None)])
def test_a_backup_with_a_file(
    command: Command, backup: Path, tmp_path: Path, options: list[str], expected: float | None
) -> None:
    b = model(tmp_path / "b.safetensors")
    report = json.loads(command("compare", backup, b, *options, "--json")[1])
    assert report["total"]["relative_distance"] == pytest.approx(distance(1, 0) if expected is None else expected)
    assert report["prefixes"] == [{"a": "unet.", "b": "model.diffusion_model."}]
    out = command("compare", backup, b)[1]
    assert "  Names were matched without unet. in A and model.diffusion_model. in B.\n" in out


def test_a_parked_average_with_a_backup(command: Command, backup: Path, tmp_path: Path) -> None:
    parked = park(
        tmp_path / "x-ema", dict(zip([f"unet.{rest}" for rest in RESTS], tensors(*[(6,)] * 15, seed=2), strict=True))
    )
    report = json.loads(command("compare", parked, backup, "--set-b", "ema", "--json")[1])
    assert report["a"]["kind"] == "parked"
    assert report["total"]["relative_distance"] == pytest.approx(distance(2, 1), rel=1e-12)


def test_a_plain_backup_names_the_way(
    command: Command, backup: Path, onetrainer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (backup / "ema_select" / "manifest.json").unlink()
    assert command("compare", backup, backup) == (
        1,
        "",
        "This backup was made without the plugin, so its EMA names no weights and cannot be compared. To have "
        "OneTrainer name them, add --onetrainer DIR.\n",
    )
    names = tuple(f"unet.{rest}" for rest in RESTS)
    monkeypatch.setattr("onetrainer_ema_select.host.export.trained_names", lambda *_, **__: names)
    report = json.loads(command("compare", backup, backup, "--onetrainer", onetrainer, "--json")[1])
    assert report["total"]["relative_distance"] == pytest.approx(distance(1, 0), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--set-a", "ema"], "is a model with one set of weights, not a backup: leave --set-a out."),
        (["--set-b", "ema"], "holds non-ema only: leave --set-b out."),
    ],
)
def test_a_set_that_is_not_there(command: Command, tmp_path: Path, options: list[str], problem: str) -> None:
    a = model(tmp_path / "a.safetensors")
    b = write_backup(tmp_path / "b", {UNET: dict(zip(RESTS, tensors(*[(6,)] * 15), strict=True))})
    code, out, err = command("compare", a, b, *options)
    assert (code, out) == (2, "")
    assert problem in " ".join(err.replace("│", " ").split())


def test_a_model_that_is_the_other_set(command: Command, tmp_path: Path) -> None:
    save_file({"a.b": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"ema_select.set": "EMA"})
    a = tmp_path / "a.safetensors"
    code, _, err = command("compare", a, a, "--set-a", "non-ema")
    assert code == 2
    assert "is the ema set, not non-ema: leave --set-a out." in " ".join(err.replace("│", " ").split())
    assert "(ema)" in command("compare", a, a, "--set-a", "ema", "--set-b", "ema")[1]


def test_nothing_in_common(command: Command, tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, tmp_path / "b.safetensors")
    code, out, err = command("compare", a, tmp_path / "b.safetensors")
    assert (code, out) == (1, "")
    assert err == (
        f"No tensor of {a} is in {tmp_path / 'b.safetensors'}: the one has names such as "
        f"{', '.join(f'model.diffusion_model.blocks.{number}.weight' for number in (0, 1, 10))}; the other such as "
        "lora_unet_x.lora_down.weight. Compare two models in the same format: export both with `onetrainer-ema-select "
        "export` and the same --format.\n"
    )


def test_loras_of_different_ranks(command: Command, tmp_path: Path) -> None:
    for name, rank in (("a", 4), ("b", 8)):
        save_file({"lora_unet_x.lora_down.weight": torch.ones(rank, 2)}, tmp_path / f"{name}.safetensors")
    code, _, err = command("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert code == 1
    assert "is (4, 2) in the one and (8, 2) in the other. LoRAs must have the same rank" in err


def test_some_other_shapes(command: Command, tmp_path: Path) -> None:
    a, b = (model(tmp_path / f"{name}.safetensors", **{"x.y": torch.ones(size)}) for name, size in (("a", 1), ("b", 2)))
    assert "  1 tensors have other shapes: x.y.\n" in command("compare", a, b)[1]


def test_nothing_there(command: Command, tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors")
    assert command("compare", a, tmp_path / "gone") == (
        1,
        "",
        f"There is no {tmp_path / 'gone'}. Name a backup, or a model: a file or a folder.\n",
    )
    assert command("compare", a)[0] == 2
