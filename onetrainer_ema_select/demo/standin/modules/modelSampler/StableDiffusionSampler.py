"""Makes a picture with the weights that are in the model right now."""

import struct
import zlib
from pathlib import Path

import torch
from modules.model.tiny import TIMESTEPS, TOKENS
from modules.modelSampler.BaseModelSampler import BaseModelSampler, ModelSamplerOutput
from modules.util import factory
from modules.util.enum.ModelType import ModelType


@factory.register(BaseModelSampler, ModelType.STABLE_DIFFUSION_15)
class StableDiffusionSampler(BaseModelSampler):
    def __init__(self, train_device, temp_device, model, model_type):
        super().__init__(train_device, temp_device)
        self.model = model
        self.model_type = model_type

    @torch.no_grad()
    def sample(  # noqa: PLR0917 - OneTrainer's own signature
        self,
        sample_config,
        destination,
        image_format,
        video_format,
        audio_format,
        on_sample=lambda _: None,
        on_update_progress=lambda _, __: None,
    ):
        del video_format, audio_format
        self.model.materialize()
        unet, alphas = self.model.unet, self.model.noise_scheduler.alphas_cumprod
        generator = torch.Generator().manual_seed(sample_config.seed)
        x = torch.randn((1, 1, 8, 8), generator=generator).to(self.train_device)
        text = self.model.encode_text(torch.tensor([len(sample_config.prompt) % TOKENS], device=self.train_device))
        steps = torch.linspace(TIMESTEPS - 1, 0, sample_config.diffusion_steps).long().tolist()
        for index, step in enumerate(steps):
            timestep = torch.tensor([step], device=self.train_device)
            noise = unet(x.to(unet.conv_in.weight.dtype), timestep, text).float()
            clean = (x - (1 - alphas[step]).sqrt() * noise) / alphas[step].sqrt()
            after = alphas[steps[index + 1]] if index + 1 < len(steps) else torch.tensor(1.0)
            x = after.sqrt() * clean + (1 - after).sqrt() * noise
            on_update_progress(index + 1, len(steps))
        path = Path(destination + image_format.extension())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(x[0, 0].cpu()))
        on_sample(ModelSamplerOutput(x))


def _png(picture):
    """A grey PNG, each pixel 8 x 8 so that one can see it; values from -1 to 1."""
    levels = ((picture.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    levels = levels.repeat_interleave(8, 0).repeat_interleave(8, 1)
    rows = b"".join(b"\x00" + bytes(row.tolist()) for row in levels)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
