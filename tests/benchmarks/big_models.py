"""Makes a random SD 1.5 with a UNet of about 108 million weights; run by OneTrainer's python.

    python big_models.py FOLDER BENCH [CHANNELS]

``BENCH`` is ``tests/onetrainer/bench``, whose tiny model this one is but for the UNet. ``CHANNELS`` is the width of the
UNet's first block, 320 if it is not given; the weights grow with its square.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])

import models
from diffusers import UNet2DConditionModel

CHANNELS = int(sys.argv[3]) if len(sys.argv) > 3 else 320


def make_big_unet(**more: object) -> UNet2DConditionModel:
    """The UNet of ``models.make_unet``, wide."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(CHANNELS, 2 * CHANNELS),
        layers_per_block=2,
        norm_num_groups=32,
        attention_head_dim=8,
        cross_attention_dim=models.WIDTH,
        **more,
    )


if __name__ == "__main__":
    models.make_unet = make_big_unet
    folder = Path(sys.argv[1])
    models.make_images(folder / "data" / "train", count=models.TRAIN_IMAGES, seed=1)
    models.make_images(folder / "data" / "validation", count=models.VALIDATION_IMAGES, seed=2)
    models.make_sd15(folder / "sd15")
