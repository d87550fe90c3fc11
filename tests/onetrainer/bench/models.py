"""Makes the tiny random models and the pictures the real OneTrainer trains on.

Run by OneTrainer's own python, as a script: ``python models.py FOLDER``. It needs no OneTrainer module, only
the libraries of its environment. Every model has its own seed, so that a folder can be made again bit for bit.

What is written below ``FOLDER``:

- ``sd15/``, ``sdxl/``: diffusers folders;
- ``cascade/prior``, ``cascade/decoder``, ``cascade/effnet.safetensors``: Stable Cascade, as its loader wants it;
- ``data/train``, ``data/validation``: pictures with a caption beside each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import efficientnet_v2_s
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16
TRAIN_IMAGES = 4
VALIDATION_IMAGES = 2
EFFNET_LATENT_CHANNELS = 16
EFFNET_FEATURES = 1280


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's byte-level vocabulary is made of, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer without merges: every byte is one token (514 entries with the two special ones)."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = byte_symbols()
    entries = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)


def text_config(*, projection: int = WIDTH) -> CLIPTextConfig:
    """A two-layer CLIP text encoder over the vocabulary of :func:`make_tokenizer`."""
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def make_vae() -> AutoencoderKL:
    """A VAE of the depth the single-file writers take for granted (four levels, two layers each)."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=0.18215,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_unet(**more: Any) -> UNet2DConditionModel:
    """A two-level UNet; ``more`` sets the block types and what SDXL adds."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=more.pop("cross_attention_dim", WIDTH),
        **more,
    )


def make_sd15(folder: Path) -> None:
    """Stable Diffusion 1.5: one text encoder, attention in the outer level."""
    torch.manual_seed(15)
    StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=make_tokenizer(folder / "tokenizer"),
        unet=make_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def make_sdxl(folder: Path) -> None:
    """SDXL: two text encoders, attention in the inner level, size and pooled text as extra conditions."""
    torch.manual_seed(10)
    time_width = 8
    StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer=make_tokenizer(folder / "tokenizer"),
        tokenizer_2=make_tokenizer(folder / "tokenizer_2"),
        unet=make_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + WIDTH,
            use_linear_projection=True,
        ),
        scheduler=make_scheduler(),
    ).save_pretrained(folder)


def make_cascade_unet(**more: Any) -> StableCascadeUNet:
    """One stage of Stable Cascade, two blocks that keep their resolution."""
    return StableCascadeUNet(
        conditioning_dim=WIDTH,
        block_out_channels=(WIDTH, WIDTH),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        timestep_ratio_embedding_dim=8,
        clip_text_pooled_in_channels=WIDTH,
        switch_level=(False,),
        **more,
    )


def make_cascade(folder: Path) -> None:
    """Stable Cascade: the prior that is trained, and the decoder and image encoder that have to be there."""
    torch.manual_seed(1)
    prior = folder / "prior"
    # The trainer feeds zeros of width 768 for the picture condition, whatever the model says.
    make_cascade_unet(
        in_channels=16, out_channels=16, clip_text_in_channels=WIDTH, clip_image_in_channels=768
    ).save_pretrained(prior / "prior")
    CLIPTextModelWithProjection(text_config()).save_pretrained(prior / "text_encoder")
    make_tokenizer(prior / "tokenizer").save_pretrained(prior / "tokenizer")
    DDPMWuerstchenScheduler().save_pretrained(prior / "scheduler")

    decoder = folder / "decoder"
    make_cascade_unet(
        in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=16, pixel_mapper_in_channels=3
    ).save_pretrained(decoder / "decoder")
    PaellaVQModel(bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16).save_pretrained(decoder / "vqgan")
    DDPMWuerstchenScheduler().save_pretrained(decoder / "scheduler")

    backbone = efficientnet_v2_s().features
    mapper = nn.Sequential(
        nn.Conv2d(EFFNET_FEATURES, EFFNET_LATENT_CHANNELS, kernel_size=1, bias=False),
        nn.BatchNorm2d(EFFNET_LATENT_CHANNELS, affine=False),
    )
    save_file(nn.ModuleDict({"backbone": backbone, "mapper": mapper}).state_dict(), folder / "effnet.safetensors")


def make_images(folder: Path, *, count: int, seed: int) -> None:
    """``count`` smooth random pictures of 128 pixels, each with its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        coarse = random.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:02d}.png")
        # The placeholder of the embedding in ``configs.py``; for other trainings it is plain text.
        (folder / f"{index:02d}.txt").write_text(f"picture {index} of <thing>\n", encoding="utf-8")


def make_all(folder: Path) -> None:
    """Everything the bench needs, below ``folder``."""
    make_images(folder / "data" / "train", count=TRAIN_IMAGES, seed=1)
    make_images(folder / "data" / "validation", count=VALIDATION_IMAGES, seed=2)
    make_sd15(folder / "sd15")
    make_sdxl(folder / "sdxl")
    make_cascade(folder / "cascade")


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
