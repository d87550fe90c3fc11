"""What a file is good for, by the names that each format has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onetrainer_ema_select.model_kinds import backup_kind, kind_of

from .backup_files import park

FILE = Path("model.safetensors")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_0.lora_down.weight", "lora_unet_down_0.alpha", "lora_te1_x.lora_up.weight"], "kohya-lora"),
        (["lora_transformer_a.lora_down.weight", "bundle_emb.x.clip_l"], "kohya-lora"),
        (["lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_b", "lora_unet_a.alpha"], "kohya-lora"),
        (["lora_unet_a.oft_R.weight", "lora_unet_a.alpha"], "kohya-lora"),
        (["unet.a.lora_A.weight", "unet.a.lora_B.weight", "text_encoder.b.lora_A.weight"], "diffusers-lora"),
        (["transformer.a.lora_A.default.weight"], "diffusers-lora"),
        (["diffusion_model.a.lora_A.weight", "text_encoders.b.lora_B.weight"], "comfy-lora"),
        (["diffusion_model.a.lora_down.weight", "diffusion_model.a.alpha"], "comfy-lora"),
        (["double_blocks.0.lora_A.weight", "double_blocks.0.lora_B.weight"], "original-lora"),
        (["unet.a.lora_down.weight", "unet.a.lora_up.weight", "unet.a.alpha"], "internal-lora"),
        (["prior.a.lora_down.weight", "text_encoder.b.dora_scale"], "internal-lora"),
        (["transformer.a.lokr_w1", "transformer.a.lokr_w2_a", "transformer.a.alpha"], "internal-lora"),
        (["something.a.lora_down.weight", "something.a.lora_up.weight"], "lora"),
        (["emp_params"], "embedding"),
        (["clip_l", "clip_g", "clip_g_out"], "embedding"),
        (["t5", "t5_out"], "embedding"),
        (["model.diffusion_model.in.w", "first_stage_model.a", "cond_stage_model.b"], "checkpoint"),
        (["model.diffusion_model.in.w"], "transformer"),
        (["double_blocks.0.img_attn.w"], "transformer"),
        (["transformer_blocks.3.w"], "transformer"),
        (["diffusion_model.joint_blocks.0.w"], "transformer"),
        (["conv_in.weight", "down_blocks.0.a", "time_embedding.b"], "component"),
        (["text_model.encoder.layers.0.a"], "text-encoder"),
        (["foo", "bar.baz"], "unknown"),
        ([], "unknown"),
    ],
)
def test_kinds(names: list[str], kind: str) -> None:
    found = kind_of(FILE, names)
    assert found.name == kind
    assert found.use.endswith((".", ":"))
    assert found.use.endswith(":") == bool(found.command)


def test_an_internal_lora_says_to_export_its_backup(tmp_path: Path) -> None:
    (tmp_path / "a backup" / "lora").mkdir(parents=True)
    (tmp_path / "a backup" / "meta.json").touch()
    found = kind_of(tmp_path / "a backup" / "lora" / "lora.safetensors", ["unet.a.lora_down.weight"])
    assert found.use == "A backup's internal LoRA, not a model: export the backup:"
    assert found.command == f'onetrainer-ema-select export "{tmp_path / "a backup"}" --set ema --output MODEL'
    assert kind_of(Path("lora.safetensors"), ["unet.a.lora_down.weight"]).command == (
        "onetrainer-ema-select export BACKUP --set ema --output MODEL"
    )
    assert kind_of(tmp_path / "a backup" / "unet" / "x.safetensors", ["a"]).name == "backup-part"


def test_the_file_of_a_parked_average(tmp_path: Path) -> None:
    folder = park(tmp_path / "x-ema", {"unet.a": torch.ones(1)})
    assert kind_of(folder / "ema.safetensors", ["unet.a"]).name == "parked"
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    assert kind_of(folder / "ema.safetensors", ["unet.a"]).name == "unknown"


def test_a_backup_without_ema_is_exported_as_non_ema() -> None:
    assert "--set non-ema " in backup_kind(Path("b"), ema=False).command


def test_folders(tmp_path: Path) -> None:
    assert kind_of(tmp_path, ["stage_c.a", "text_encoder.b"]).name == "stable-cascade"
    (tmp_path / "model_index.json").touch()
    assert kind_of(tmp_path, ["unet.a"]).name == "diffusers"
