"""`inspect`: the text, the numbers beside an independent computation, and what cannot be inspected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import save_file

from onetrainer_ema_select.cli import distances

from ..backup_files import NAME, park, tensors, write_backup

Command = Callable[..., "tuple[int, str, str]"]

UNET = "unet/diffusion_pytorch_model.safetensors"
NAMES = ("unet.conv_in.weight", "unet.blocks.0.weight", "unet.blocks.1.weight")
SHAPES = ((3, 2), (40,), (5, 5))


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    live, average = tensors(*SHAPES), tensors(*SHAPES, seed=1)
    files = {
        UNET: {name.removeprefix("unet."): tensor for name, tensor in zip(NAMES, live, strict=True)},
        "vae/diffusion_pytorch_model.safetensors": {"scale": torch.ones(2, dtype=torch.bfloat16)},
    }
    return write_backup(tmp_path / "run" / "backup" / NAME, files, averages=average, names=NAMES)


def plain(backup: Path) -> None:
    (backup / "ema_select" / "manifest.json").unlink()


def test_a_backup(command: Command, backup: Path) -> None:
    code, out, err = command("inspect", backup)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "Resumes training; not a model: export it:" in lines
    assert f"  onetrainer-ema-select export {backup} --set ema --output MODEL" in lines
    assert "non-ema: 4 tensors, 73 numbers, float32 (97.3 %), bfloat16 (2.74 %), 288 B; no" in lines
    assert "ema: 3 tensors, 71 numbers, float32, 284 B; no NaN, no Inf" in lines
    assert "EMA: decay 0.99, updated every 2 steps, 4 updates so far, half-life 138 steps" in " ".join(out.split())
    assert "which OneTrainer's warm-up has brought to" in " ".join(out.split())
    assert "  run: a-run" in lines
    assert "  leg: fresh start" in lines
    assert "  1 tensors are only in non-ema: vae.scale." in lines
    table = [line.split()[0] for line in lines if line.startswith("  unet.")]
    assert sorted(table) == ["unet.blocks.0", "unet.blocks.1", "unet.conv_in"]


def test_numbers_of_a_backup(command: Command, backup: Path) -> None:
    report = json.loads(command("inspect", backup, "--json")[1])
    live, average = tensors(*SHAPES), tensors(*SHAPES, seed=1)
    one, other = (torch.cat([tensor.double().reshape(-1) for tensor in side]) for side in (average, live))
    total = report["distance"]["total"]
    assert total["relative_distance"] == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-12)
    assert total["cosine"] == pytest.approx(float(one @ other / one.norm() / other.norm()), rel=1e-12)
    assert (total["norm_a"], total["norm_b"]) == pytest.approx((float(one.norm()), float(other.norm())), rel=1e-12)
    apart = [block["relative_distance"] for block in report["distance"]["blocks"]]
    assert apart == sorted(apart, reverse=True)
    assert report["ema"]["half_life_steps"] == pytest.approx(2 * math.log(0.5, 0.99))
    assert (report["kind"], report["schema"], report["distance"]["identical"]) == ("backup", 1, False)
    assert report["use"].endswith("--output MODEL")
    assert [(one["set"], one["tensors"], one["elements"]) for one in report["sets"]] == [
        ("non-ema", 4, 73),
        ("ema", 3, 71),
    ]


def test_the_same_in_both_sets(command: Command, tmp_path: Path) -> None:
    (weights,) = tensors((4,))
    backup = write_backup(tmp_path / NAME, {UNET: {"a.w": weights}}, averages=[weights], names=["unet.a.w"])
    assert "  The same, bit for bit.\n" in command("inspect", backup)[1]


def test_nan_and_inf(command: Command, tmp_path: Path) -> None:
    live, average = torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 2.0])
    files = {UNET: {"a.w": live}, "vae/x.safetensors": {"b": torch.tensor([math.nan, -math.inf])}}
    backup = write_backup(tmp_path / NAME, files, averages=[average], names=["unet.a.w"])
    out = " ".join(command("inspect", backup)[1].split())
    assert "16 B; 2 NaN and 1 Inf ema: 1 tensors, 2 numbers, float32, 8 B; 0 NaN and 1 Inf" in out
    assert "2 NaN and 1 Inf in non-ema; left out of the numbers above." in out


def test_a_plain_backup(command: Command, backup: Path) -> None:
    plain(backup)
    code, out, _ = command("inspect", backup)
    assert code == 0
    assert " ".join(out.split()).endswith(
        "This backup was made without the plugin, so its EMA names no weights and cannot be compared. To have "
        "OneTrainer name them, add --onetrainer DIR."
    )
    assert "EMA: decay 0.99\n" in out
    report = json.loads(command("inspect", backup, "--json")[1])
    assert report["distance"] is None
    assert report["distance_problem"].endswith("add --onetrainer DIR.")


def test_a_plain_backup_with_names_from_onetrainer(
    command: Command, backup: Path, onetrainer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def trained_names(path: Path, *, onetrainer: Path) -> tuple[str, ...]:
        asked.append((path, onetrainer))
        return NAMES

    monkeypatch.setattr("onetrainer_ema_select.host.export.trained_names", trained_names)
    code, out, _ = command("inspect", backup, "--onetrainer", onetrainer)
    assert (code, asked) == (0, [])  # it names them itself
    plain(backup)
    code, out, _ = command("inspect", backup, "--onetrainer", onetrainer)
    assert (code, asked) == (0, [(backup, onetrainer)])
    assert "How far ema and non-ema are apart:" in out


def test_averages_that_are_nowhere_among_the_models_weights(command: Command, backup: Path) -> None:
    manifest = backup / "ema_select" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"unet.', '"elsewhere.x.'), encoding="utf-8")
    out = " ".join(command("inspect", backup)[1].split())
    assert "None of its EMA's weights could be found among its model files with certainty" in out


def test_a_parked_average(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("inspect", park(tmp_path / "x-ema", {"unet.a": torch.ones(3)}))
    assert code == 0
    assert "An average that was set aside: a run with EMA on takes it up again when it\n  resumes" in out
    assert "ema: 1 tensors, 3 numbers, float32, 12 B; no NaN, no Inf" in out
    assert "  step: 8" in out


# -- rounding to 16 bits, and the factors of a LoRA ------------------------------------------------------------------


def bf16_backup(folder: Path, *, apart: float, config: dict[str, object] | None) -> Path:
    """Of a model in bf16, whose average in float32 lies ``apart`` steps of the format above it."""
    live = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    average = live.float() + apart * 2.0**-7
    return write_backup(
        folder / "run" / "backup" / NAME, {UNET: {"a.w": live}}, averages=[average], names=["unet.a.w"], config=config
    )


def flat(text: str) -> str:
    return " ".join(text.split())


def test_what_rounding_takes_from_a_backups_average(command: Command, tmp_path: Path) -> None:
    backup = bf16_backup(tmp_path, apart=0.25, config={"output_dtype": "NONE"})
    out = flat(command("inspect", backup)[1])
    assert (
        "What rounding the EMA to bfloat16 takes, beside the distance between the two sets: to the nearest, as saves "
        "of this run are: an error of 1 of that distance; 0 of the difference is left, and 100 % of the weights that "
        "differ become the same stochastic: an error of 1.732; all of the difference is left on average float32 "
        "(export --dtype FLOAT_32; output_dtype): none; where it has to be 16 bits, stochastic (save_rounding; export "
        "--rounding) keeps what the nearest loses"
    ) in out
    found = json.loads(command("inspect", backup, "--json")[1])["rounding"]
    assert found.pop("error_stochastic") == pytest.approx(math.sqrt(0.25 * 0.75) / 0.25)
    assert found == {
        "dtype": "bfloat16",
        "rounding": "NEAREST",
        "elements": 1000,
        "error_nearest": 1.0,
        "left_nearest": 0.0,
        "same_nearest": 1.0,
        "backup": None,
    }


def test_rounding_at_random_and_where_the_nearest_is_closer(command: Command, tmp_path: Path) -> None:
    config = {"output_dtype": "BFLOAT_16", "ema_select": {"save_rounding": "STOCHASTIC"}}
    out = flat(command("inspect", bf16_backup(tmp_path, apart=3.25, config=config))[1])
    assert "takes, beside the distance between the two sets: to the nearest: an error of 0.07692 of that" in out
    assert "and 0 % of the weights that differ become the same stochastic, as saves of this run are: an" in out
    assert "where it has to be 16 bits, the nearest is closer here" in out


@pytest.mark.parametrize(
    "config", [None, {"output_dtype": "FLOAT_32"}, {}, {"output_dtype": "FLOAT_8"}, {"output_dtype": ["x"]}]
)
def test_a_backup_whose_saves_take_nothing(command: Command, tmp_path: Path, config: dict[str, object] | None) -> None:
    backup = bf16_backup(tmp_path, apart=0.25, config=config)
    assert "rounding" not in command("inspect", backup)[1]
    assert json.loads(command("inspect", backup, "--json")[1])["rounding"] is None


def test_two_sets_that_are_the_same_have_nothing_to_lose(command: Command, tmp_path: Path) -> None:
    backup = bf16_backup(tmp_path, apart=0, config={"output_dtype": "NONE"})
    assert "What rounding" not in command("inspect", backup)[1]
    assert json.loads(command("inspect", backup, "--json")[1])["rounding"]["error_nearest"] is None


def test_what_rounding_has_taken_from_a_saved_model(command: Command, tmp_path: Path) -> None:
    backup = bf16_backup(tmp_path, apart=0.25, config={"output_dtype": "FLOAT_32"})
    path = tmp_path / "run" / "save" / "x.safetensors"
    path.parent.mkdir()
    marks = {"ema_select.set": "EMA", "ema_select.run": "a-run", "ema_select.step": "8"}
    weights = {"a.w": torch.ones(1000, dtype=torch.bfloat16)}
    save_file(weights, path, metadata=marks | {"ema_select.rounding": "STOCHASTIC"})
    out = flat(command("inspect", path)[1])
    assert "  rounding: STOCHASTIC\n" in command("inspect", path)[1]
    assert "stochastic, as its file is: an error of 1.732;" in out
    assert f"Measured in the backup of the same step: {NAME}" in out
    found = json.loads(command("inspect", path, "--json")[1])["rounding"]
    assert (found["rounding"], found["error_nearest"], found["backup"]) == ("STOCHASTIC", 1.0, str(backup))
    for other in ({"ema_select.step": "9"}, {"ema_select.run": "b"}, {"ema_select.set": "NON_EMA"}):
        save_file(weights, path, metadata=marks | other)
        assert json.loads(command("inspect", path, "--json")[1])["rounding"] is None
    save_file({"a.w": torch.ones(1000)}, path, metadata=marks)  # in 32 bits
    assert json.loads(command("inspect", path, "--json")[1])["rounding"] is None
    save_file(weights, path, metadata=marks)
    (backup / "ema" / "ema.pt").write_bytes(b"damaged")
    report = json.loads(command("inspect", path, "--json")[1])
    assert (report["rounding"], report["kind"]) == (None, "unknown")


def lora_backup(folder: Path, kinds: dict[str, tuple[int, ...]]) -> Path:
    names = [f"unet_lora.x.{name}" for name in kinds]
    live, average = tensors(*kinds.values()), tensors(*kinds.values(), seed=1)
    file = {f"unet.x.{name}": tensor for name, tensor in zip(kinds, live, strict=True)}
    files = {"lora/lora.safetensors": {**file, "unet.x.alpha": torch.tensor(2.0)}}
    return write_backup(folder / NAME, files, averages=average, names=names)


def test_what_averaging_the_factors_of_a_lora_leaves_out(command: Command, tmp_path: Path) -> None:
    shapes = {"lora_down.weight": (4, 6), "lora_up.weight": (5, 4)}
    backup = lora_backup(tmp_path, shapes)
    (live_a, live_b), (a, b) = ([each.double() for each in tensors(*shapes.values(), seed=seed)] for seed in (0, 1))
    gap = float(((live_b - b) @ (live_a - a)).norm())
    apart, added = float((b @ a - live_b @ live_a).norm()), float((b @ a).norm())
    found = json.loads(command("inspect", backup, "--json")[1])["lora_gap"]
    assert found["of_distance"] == pytest.approx(gap / apart, rel=1e-12)
    assert found["of_ema"] == pytest.approx(gap / added, rel=1e-12)
    assert (found["layers"], found["other_layers"]) == (1, 0)
    out = flat(command("inspect", backup)[1])
    assert (
        f"leaves out about {100 * gap / apart:.3g} % of the distance between the two sets, and "
        f"{100 * gap / added:.3g} % of what the EMA adds to the model."
    ) in out


def test_the_factors_of_a_loha_and_what_has_none(command: Command, tmp_path: Path, backup: Path) -> None:
    names = {f"hada_w{one}_{other}": (3, 3) for one in (1, 2) for other in "ab"}
    out = flat(command("inspect", lora_backup(tmp_path, names))[1])
    assert "How far the average of a LoHa's, LoKr's or OFT's factors is" in out
    assert "averages its two factors" not in out
    assert json.loads(command("inspect", backup, "--json")[1])["lora_gap"] is None


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    marks = {"ema_select.run": "r", "ema_select.step": "8", "ema_select.sets": "EMA, NON_EMA"}
    header = {
        "modelspec.title": "a title",
        "ot_branch": "master",
        "ss_base_model_version": "sdxl_",
        "ot_config": "x" * 999,
    }
    averaged = {"ema_select.decay": "0.999", "ema_select.update_step_interval": "1", "ema_select.updates": "8"}
    paths = []
    for end, weight_set, seed in (("", "EMA", 0), ("-non-ema", "NON_EMA", 1)):
        own = averaged if weight_set == "EMA" else {}
        path = tmp_path / f"x{end}.safetensors"
        (weights,) = tensors((50,), seed=seed)
        save_file(
            {"model.diffusion_model.a.w": weights, "first_stage_model.b": torch.ones(1)},
            path,
            metadata={**header, **marks, **own, "ema_select.set": weight_set},
        )
        paths.append(path)
    return paths[0], paths[1]


def test_a_save_with_its_partner(command: Command, pair: tuple[Path, Path]) -> None:
    code, out, err = command("inspect", pair[0])
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "A whole model in one file: usable in A1111, Forge and ComfyUI, in their folder" in lines
    assert "EMA: decay 0.999, updated every step, 8 updates so far, half-life 693 steps" in " ".join(out.split())
    for line in ("  run: r", "  step: 8", "  modelspec.title: a title", "  ss_base_model_version: sdxl_"):
        assert line in lines
    assert "x" * 201 not in out
    report = json.loads(command("inspect", pair[0], "--json")[1])
    one, other = (tensors((50,), seed=seed)[0].double() for seed in (0, 1))
    apart = float((one - other).square().sum() / (one.square().sum() + 1))
    assert report["distance"]["total"]["relative_distance"] == pytest.approx(math.sqrt(apart), rel=1e-12)
    assert report["partner"] == str(pair[1])
    assert report["metadata"]["ot_config"] == "x" * 999
    assert report["sets"][0]["set"] == "ema"
    assert json.loads(command("inspect", pair[1], "--json")[1])["ema"] is None


def test_a_partner_that_is_damaged(command: Command, pair: tuple[Path, Path]) -> None:
    pair[1].write_bytes(pair[1].read_bytes()[:-8])
    code, out, _ = command("inspect", pair[0])
    assert code == 0
    assert f"{pair[1]} is cut short" in " ".join(out.split())


@pytest.mark.parametrize(
    ("decay", "interval"),
    [("none", "1"), ("nan", "1"), ("1", "1"), ("0", "1"), ("-1", "1"), ("2", "1"), ("0.9", "inf"), ("0.9", "")],
)
def test_a_decay_that_says_nothing(command: Command, tmp_path: Path, decay: str, interval: str) -> None:
    marks = {"ema_select.decay": decay, "ema_select.update_step_interval": interval}
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata=marks)
    code, out, _ = command("inspect", tmp_path / "x.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["ema"]["half_life_steps"] is None


def test_an_unknown_file_shows_its_names(command: Command, tmp_path: Path) -> None:
    save_file({"foo.bar": torch.ones(1)}, tmp_path / "x.safetensors")
    out = command("inspect", tmp_path / "x.safetensors")[1]
    assert "Not a format that is known here" in out
    assert "  foo.bar\n" in out
    assert "weights: 1 tensors, 1 numbers, float32, 4 B" in out


def test_a_folder_of_diffusers(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "ema_select.json").write_text('{"ema_select.set": "NON_EMA", "ema_select.step": 3}', encoding="utf-8")
    save_file({"a.w": torch.ones(2)}, folder / UNET)
    report = json.loads(command("inspect", folder, "--json")[1])
    assert (report["kind"], report["examples"], report["sets"][0]["set"]) == ("diffusers", ["unet.a.w"], "non-ema")
    assert report["provenance"] == {"step": "3"}


def test_stable_cascade(command: Command, tmp_path: Path) -> None:
    # in-training saves are folders whose names end like a file's
    folder = tmp_path / "x.safetensors"
    folder.mkdir()
    for part in ("stage_c", "text_encoder"):
        save_file({"a.w": torch.ones(2)}, folder / f"{part}.safetensors")
    report = json.loads(command("inspect", folder, "--json")[1])
    assert report["kind"] == "stable-cascade"
    assert report["examples"] == ["stage_c.a.w", "text_encoder.a.w"]


def test_every_line_fits_80_columns(command: Command, tmp_path: Path) -> None:
    names = [f"unet.{'很长的' * 5}.{'x' * 40}.{number}.weight" for number in range(20)]
    live, average = tensors(*[(2,)] * 20), tensors(*[(2,)] * 20, seed=1)
    files = {UNET: {name.removeprefix("unet."): tensor for name, tensor in zip(names, live, strict=True)}}
    backup = write_backup(tmp_path / "我的 run" / "backup" / NAME, files, averages=average, names=names)
    for every in ([], ["--all"]):
        out = command("inspect", backup, *every)[1]
        wide = [line.strip() for line in out.splitlines() if cell_len(line) > 80]
        # one name or path on a line of its own, and the command, which is to be copied
        allowed = (str(backup), "onetrainer-ema-select export", "unet.")
        assert [line for line in wide if not line.startswith(allowed)] == []
        assert out.count("很长的") == (20 if every else distances.SHOWN_BLOCKS) * 5
        assert ("8 more blocks, less far apart: --all shows them." in out) == (not every)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is cut short (0 bytes)"),
        (b"\xff" * 20, "is not a safetensors file"),
        (b"\x40" + b"\0" * 7 + b"{}", "is cut short inside its header (10 of at least 72 bytes)"),
        (b"\x02" + b"\0" * 7 + b"[]", "has an unreadable header"),
        (b"\x02" + b"\0" * 7 + b"{}abc", "is longer than its header says (13 of 10 bytes)"),
    ],
)
def test_damaged_files(command: Command, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert command("inspect", path) == (
        1,
        "",
        f"{path} {problem}. Copy or download it once more, or name another one.\n",
    )


def test_other_formats_and_nothing(command: Command, tmp_path: Path, backup: Path) -> None:
    torch.save({}, tmp_path / "x.ckpt")
    code, out, err = command("inspect", tmp_path / "x.ckpt")
    assert (code, out) == (1, "")
    assert err == (
        f"{tmp_path / 'x.ckpt'} is not a safetensors file, and other formats are not read here: they can hold "
        "programs. Save the model as safetensors, or name its backup.\n"
    )
    assert command("inspect", tmp_path / "gone")[2] == (
        f"There is no {tmp_path / 'gone'}. Name a backup, or a model: a file or a folder.\n"
    )
    (tmp_path / "empty").mkdir()
    assert command("inspect", tmp_path / "empty")[2].startswith(f"{tmp_path / 'empty'} is not a backup: ")
    workspace = tmp_path / "run"
    assert command("inspect", workspace)[2] == (
        f"{workspace} is a workspace, not a backup. Give one of its backups; the newest whole one is {backup}\n"
    )
