"""What a model's file or folder is good for, told from its place and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.errors import ManifestError
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.recognise import MODEL_INDEX, enclosing_backup, is_parked, is_snapshot

_LORA_LEAF = re.compile(
    r"\.(lora_(down|up|A|B)(\.\w+)?\.weight|lora[._](down|up)\.weight|alpha|dora_scale|hada_\w+|lokr_\w+|oft_\w+(\.weight)?"
    r"|diff(_b)?)$"
)
_INTERNAL_LEAF = re.compile(r"\.(lora_(down|up)\.weight|alpha|dora_scale|hada_\w+|lokr_\w+|oft_\w+(\.weight)?)$")
_INTERNAL_PREFIX = re.compile(r"(unet|transformer|prior|text_encoder(_\d)?)\.|bundle_emb\.")
_PEFT_LEAF = re.compile(r"\.lora_[AB](\.\w+)?\.weight$|\.dora_scale$|\.alpha$")
_PEFT_PREFIX = re.compile(r"(unet|transformer|prior|text_encoder(_\d)?|base_model)\.")
_EMBEDDING = re.compile(r"(emp_params|string_to_param\..*|clip_[lgh]|t5(xxl)?|llama|gemma|qwen)(_out)?")
_TRANSFORMER = re.compile(
    r"(diffusion_model\.)?(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks|"
    r"blocks|layers|noise_refiner|double_stream_blocks)\.\d+\."
)


@dataclass(frozen=True)
class Kind:
    """What something is.

    Attributes:
        name: In one word, for programs.
        use: What it is good for, in one sentence.
        command: What to type where the sentence ends with a colon; else empty.
    """

    name: str
    use: str
    command: str = ""


def export_command(backup: Path, *, ema: bool) -> str:
    """What to type to get a model out of a backup."""
    text = f'"{backup}"' if " " in str(backup) else str(backup)
    return f"{PACKAGE} export {text} --set {'ema' if ema else 'non-ema'} --output MODEL"


def backup_kind(path: Path, *, ema: bool) -> Kind:
    """Of a backup."""
    return Kind("backup", "Resumes training; not a model: export it:", export_command(path, ema=ema))


PARKED = Kind(
    "parked",
    "An average that was set aside: a run with EMA on takes it up again when it resumes; not a model that can be used.",
)


def snapshot_kind(folder: Path) -> Kind:
    """Of a snapshot of post-hoc tracks."""
    workspace = folder.parents[3] if len(folder.parents) > 3 else Path("WORKSPACE")
    text = f'"{workspace}"' if " " in str(workspace) else str(workspace)
    return Kind(
        "snapshot",
        "Post-hoc tracks of one moment, out of which an EMA of any length is made; not a model that can be used:",
        f"{PACKAGE} synthesize {text} --at {folder.name} --sigma-rel 0.10 --output MODEL",
    )


def kind_of(path: Path, names: Collection[str]) -> Kind:
    """What a model is, as well as its place and its tensors' names can tell."""
    around = enclosing_backup(path)
    if around is not None:
        part = "A backup's internal LoRA" if path.parent.name == "lora" else "A part of a backup"
        return Kind("backup-part", f"{part}, not a model: export the backup:", export_command(around, ema=True))
    if path.is_file() and _is(is_parked, path.parent):
        return PARKED
    if path.is_file() and _is(is_snapshot, path.parent):
        return snapshot_kind(path.parent)
    if path.is_dir():
        if (path / MODEL_INDEX).is_file():
            return Kind(
                "diffusers", "A model in diffusers' format: usable in diffusers (from_pretrained), and as a base model."
            )
        parts = {name.partition(".")[0] for name in names}
        if {"stage_c", "text_encoder"} <= parts:
            return Kind(
                "stable-cascade",
                "Stable Cascade: usable in ComfyUI: stage_c.safetensors belongs into models/diffusion_models, "
                "text_encoder.safetensors into models/text_encoders; stages A and B are separate.",
            )
    return _kind_of_names(names)


def _is(kind: Callable[[Path], bool], folder: Path) -> bool:
    try:
        return kind(folder)
    except ManifestError:
        return False


def _kind_of_names(names: Collection[str]) -> Kind:
    def any_begins(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if names and all(_EMBEDDING.fullmatch(name) for name in names):
        return Kind(
            "embedding",
            "A textual-inversion embedding: usable in A1111, Forge and ComfyUI, in their embeddings folder, as far as "
            "they know embeddings for its model.",
        )
    lora = [name for name in names if not name.startswith("bundle_emb.")]
    if lora and sum(_LORA_LEAF.search(name) is not None for name in lora) * 2 > len(lora):
        return _lora_kind(lora)
    if any_begins("model.diffusion_model."):
        if any_begins("first_stage_model.", "vae."):
            return Kind(
                "checkpoint",
                "A whole model in one file: usable in A1111, Forge and ComfyUI, in their folder of checkpoints.",
            )
        return Kind(
            "transformer",
            "The denoising model alone: usable in ComfyUI, in models/diffusion_models; VAE and text encoders are "
            "separate.",
        )
    if any_begins("down_blocks.") and any_begins("conv_in."):
        return Kind(
            "component", "A part of a model in diffusers' format (a UNet): usable in diffusers beside the other parts."
        )
    if any_begins("text_model.", "text_encoder.", "encoder.block.", "shared.weight") and not any_begins("down_blocks."):
        return Kind(
            "text-encoder", "A text encoder alone: usable in ComfyUI, in models/text_encoders, beside the other parts."
        )
    if any(_TRANSFORMER.match(name) for name in names):
        return Kind(
            "transformer",
            "The denoising model alone: usable in ComfyUI, in models/diffusion_models, or in diffusers beside the "
            "other parts; VAE and text encoders are separate.",
        )
    return Kind("unknown", "Not a format that is known here; look at the names of its tensors with --json.")


def _lora_kind(names: Collection[str]) -> Kind:
    if all(_INTERNAL_PREFIX.match(name) and _INTERNAL_LEAF.search(name) for name in names):
        return Kind(
            "internal-lora",
            "A backup's internal LoRA, not a model: export its backup:",
            export_command(Path("BACKUP"), ema=True),
        )
    if all(name.startswith("lora_") for name in names):
        return Kind("kohya-lora", "A LoRA in kohya's format: usable in ComfyUI, A1111, Forge and diffusers.")
    if all(name.startswith(("diffusion_model.", "text_encoders.")) for name in names):
        return Kind("comfy-lora", "A LoRA in ComfyUI's format: usable in ComfyUI, in models/loras.")
    if all(_PEFT_PREFIX.match(name) and _PEFT_LEAF.search(name) for name in names):
        return Kind(
            "diffusers-lora", "A LoRA in diffusers' format: usable in diffusers (load_lora_weights) and ComfyUI."
        )
    if all(_PEFT_LEAF.search(name) for name in names):
        return Kind(
            "original-lora",
            "A LoRA with the names of the model's original code: usable there, and in ComfyUI for models it knows.",
        )
    return Kind("lora", "A LoRA in a format that is not known here; look at the names of its tensors with --json.")
