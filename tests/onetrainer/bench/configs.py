"""OneTrainer configurations for the tiny models, as the dicts its JSON files hold.

Only keys that differ from OneTrainer's defaults are set. Steps and epochs are counted as OneTrainer does: one
step is one batch. A save or backup asked for every n steps is made when n - 1 steps are done, then 2n - 1 and so
on, and carries the number of steps done in its name: it holds the weights recorded after that step. Samples are
made when 0, n, 2n ... steps are done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Config: TypeAlias = "dict[str, Any]"

EMBEDDING_UUID = "00000000-0000-4000-8000-000000000001"
TRAIN_IMAGES = 4
PART_NAMES = (
    "unet", "prior", "text_encoder", "text_encoder_2", "vae", "effnet_encoder", "decoder", "decoder_vqgan",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What sets one kind of training apart; ``keys`` are OneTrainer's own, ``formats`` what it can write."""

    name: str
    model_type: str
    method: str
    resolution: int
    output_format: str
    formats: tuple[str, ...]
    learning_rate: float


SD15_FINE_TUNE = Family(
    "sd15-fine-tune", "STABLE_DIFFUSION_15", "FINE_TUNE", 64, "ORIGINAL_SINGLE_FILE",
    ("ORIGINAL_SINGLE_FILE", "DIFFUSERS", "LEGACY_SAFETENSORS"), 1e-3,
)  # fmt: skip
SD15_LORA = Family(
    "sd15-lora", "STABLE_DIFFUSION_15", "LORA", 64, "KOHYA_LORA",
    ("KOHYA_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA", "COMFY_LORA", "LEGACY_LORA"), 1e-2,
)  # fmt: skip
SD15_EMBEDDING = Family(
    "sd15-embedding", "STABLE_DIFFUSION_15", "EMBEDDING", 64, "SAFETENSORS", ("SAFETENSORS",), 1e-2,
)  # fmt: skip
CASCADE_FINE_TUNE = Family(
    "cascade-fine-tune", "STABLE_CASCADE_1", "FINE_TUNE", 128, "LEGACY_SAFETENSORS",
    ("LEGACY_SAFETENSORS", "DIFFUSERS"), 1e-3,
)  # fmt: skip
CASCADE_LORA = Family(
    "cascade-lora", "STABLE_CASCADE_1", "LORA", 128, "KOHYA_LORA",
    ("KOHYA_LORA", "DIFFUSERS_LORA", "LEGACY_LORA"), 1e-2,
)  # fmt: skip
SDXL_FINE_TUNE = Family(
    "sdxl-fine-tune", "STABLE_DIFFUSION_XL_10_BASE", "FINE_TUNE", 64, "DIFFUSERS", ("DIFFUSERS",), 1e-3,
)  # fmt: skip
SDXL_LORA = Family(
    "sdxl-lora", "STABLE_DIFFUSION_XL_10_BASE", "LORA", 64, "KOHYA_LORA",
    ("KOHYA_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA", "COMFY_LORA", "LEGACY_LORA"), 1e-2,
)  # fmt: skip

REQUIRED = (SD15_FINE_TUNE, SD15_LORA, SD15_EMBEDDING, CASCADE_FINE_TUNE, CASCADE_LORA)
FAMILIES = (*REQUIRED, SDXL_FINE_TUNE, SDXL_LORA)


@dataclass(frozen=True)
class Schedule:
    """How long a run is and what happens in it; a number of steps of 0 means never.

    Attributes:
        epochs: Number of epochs.
        steps: Steps (batches) an epoch; the pictures are repeated as needed.
        batch_size: Pictures a batch.
        accumulation: Batches an optimizer step.
        save_every: In-training save every so many steps, first when one less than that many are done.
        backup_every: Backup every so many steps, the same.
        sample_every: Samples every so many steps, the first before the first step.
        validate_every: Validation every so many steps, the first after the first step.
        rolling_backups: Backups that OneTrainer keeps, 0 keeps all.
        backup_at_end: OneTrainer's ``backup_before_save``.
    """

    epochs: int = 2
    steps: int = 4
    batch_size: int = 1
    accumulation: int = 1
    save_every: int = 0
    backup_every: int = 0
    sample_every: int = 0
    validate_every: int = 0
    rolling_backups: int = 0
    backup_at_end: bool = False


def write_json(path: Path, value: object) -> Path:
    """Write ``value`` as JSON to ``path``, making its folder; returns ``path``.

    In one step: a run that is queued in the same folder may be reading what the next one is given again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return new.replace(path)


def concepts(models: Path, *, images: int) -> list[Config]:
    """One concept to train on, ``images`` an epoch, and one to validate with; seeds are fixed."""
    still = {"enable_crop_jitter": False}
    return [
        {
            "name": "train", "path": str(models / "data" / "train"), "seed": 1, "image": still,
            "balancing": float(images), "balancing_strategy": "SAMPLES",
        },
        {
            "name": "validation", "path": str(models / "data" / "validation"), "seed": 2, "image": still,
            "type": "VALIDATION",
        },
    ]  # fmt: skip


def samples(*, resolution: int) -> list[Config]:
    """One sample definition, as small and short as the samplers allow."""
    return [
        {
            "prompt": "picture 1 of <thing>", "width": resolution, "height": resolution, "seed": 7,
            "diffusion_steps": 2, "noise_scheduler": "DDIM",
        },
    ]  # fmt: skip


def model_keys(family: Family, models: Path) -> Config:
    """Where the parts of the family's model lie."""
    if family.model_type == "STABLE_CASCADE_1":
        cascade = models / "cascade"
        return {
            "base_model_name": str(cascade / "prior"),
            "prior": {"model_name": ""},
            "decoder": {"model_name": str(cascade / "decoder")},
            "effnet_encoder": {"model_name": str(cascade / "effnet.safetensors")},
        }
    folder = "sdxl" if "XL" in family.model_type else "sd15"
    return {"base_model_name": str(models / folder)}


def schedule_keys(schedule: Schedule) -> Config:
    """OneTrainer's keys for ``schedule``."""

    def every(key: str, unit_key: str, steps: int) -> Config:
        return {key: steps, unit_key: "STEP" if steps else "NEVER"}

    return {
        "epochs": schedule.epochs,
        "batch_size": schedule.batch_size,
        "gradient_accumulation_steps": schedule.accumulation,
        **every("save_every", "save_every_unit", schedule.save_every),
        **every("backup_after", "backup_after_unit", schedule.backup_every),
        **every("sample_after", "sample_after_unit", schedule.sample_every),
        **every("validate_after", "validate_after_unit", schedule.validate_every),
        "validation": bool(schedule.validate_every),
        "rolling_backup": bool(schedule.rolling_backups),
        "rolling_backup_count": schedule.rolling_backups or 3,
        "backup_before_save": schedule.backup_at_end,
    }


def merge(base: Config, more: Config) -> Config:
    """``base`` with ``more`` laid over it, sections key by key; both are left as they are."""
    merged = dict(base)
    for key, value in more.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def make_config(
    family: Family,
    *,
    models: Path,
    run: Path,
    config_version: int,
    schedule: Schedule | None = None,
    ema: str = "OFF",
    ema_decay: float = 0.9,
    ema_interval: int = 1,
    dtype: str = "FLOAT_32",
    output_dtype: str = "FLOAT_32",
    output_format: str | None = None,
    learning_rate: float | None = None,
    overrides: Config | None = None,
) -> Config:
    """A complete configuration for one run below the folder ``run``.

    The workspace is ``run/workspace``, the cache ``run/cache``, the final model ``run/output/...``; concept and
    sample definitions are written into ``run``. A second run with the same ``run`` and
    ``overrides={"continue_last_backup": True}`` resumes the first.

    Args:
        family: The kind of training, one of the constants of this module.
        models: The folder made by ``models.py``.
        run: The folder of this run; made if missing.
        config_version: OneTrainer's version number of its configuration.
        schedule: Length and events of the run.
        ema: OneTrainer's ``ema``: ``OFF``, ``CPU`` or ``GPU``.
        ema_decay: OneTrainer's ``ema_decay``.
        ema_interval: OneTrainer's ``ema_update_step_interval``.
        dtype: Weights and arithmetic: ``FLOAT_32`` or ``BFLOAT_16`` (then with stochastic rounding).
        output_dtype: The saves' dtype; ``NONE`` keeps the parameters'.
        output_format: One of ``family.formats``; default ``family.output_format``.
        learning_rate: Default ``family.learning_rate``.
        overrides: Keys laid over the result, sections key by key; e.g. ``{"ema_select": {"enabled": True}}``.
    """
    schedule = schedule or Schedule()
    images = schedule.steps * schedule.batch_size
    output_format = output_format or family.output_format
    is_folder = output_format == "DIFFUSERS"
    config: Config = {
        "__version": config_version,
        "training_method": family.method,
        "model_type": family.model_type,
        "workspace_dir": str(run / "workspace"),
        "cache_dir": str(run / "cache"),
        "offline_mode": True,
        "tensorboard": False,
        "output_model_format": output_format,
        "output_model_destination": str(run / "output" / ("model" if is_folder else "model.safetensors")),
        "output_dtype": output_dtype,
        "concept_file_name": str(write_json(run / "concepts.json", concepts(models, images=images))),
        "sample_definition_file_name": str(
            write_json(run / "samples.json", samples(resolution=family.resolution))
        ),
        "sample_image_format": "PNG",
        "samples_to_tensorboard": False,
        "aspect_ratio_bucketing": False,
        "learning_rate": learning_rate or family.learning_rate,
        "learning_rate_warmup_steps": 0.0,
        "ema": ema,
        "ema_decay": ema_decay,
        "ema_update_step_interval": ema_interval,
        "dataloader_threads": 1,
        "train_device": "cpu",
        "temp_device": "cpu",
        "train_dtype": dtype,
        "fallback_train_dtype": dtype,
        "resolution": str(family.resolution),
        "lora_rank": 4,
        "lora_weight_dtype": dtype,
        "embedding_weight_dtype": dtype,
        "embedding": {
            "uuid": EMBEDDING_UUID, "placeholder": "<thing>", "token_count": 2,
            "initial_embedding_text": "a thing",
        },
        "optimizer": {"optimizer": "ADAMW", "stochastic_rounding": dtype == "BFLOAT_16"},
        **schedule_keys(schedule),
    }  # fmt: skip
    config = merge(config, {name: {"weight_dtype": dtype} for name in PART_NAMES})
    config = merge(config, model_keys(family, models))
    return merge(config, overrides or {})
