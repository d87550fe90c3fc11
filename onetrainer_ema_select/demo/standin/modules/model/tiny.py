"""The parts of the tiny model: as few weights as still learn something in a minute on a CPU."""

import math

import torch
from torch import nn

TOKENS = 16
TEXT_WIDTH = 16
WIDTH = 16
TIMESTEPS = 100


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x):
        return x + self.conv(nn.functional.silu(self.norm(x)))


class UNet(nn.Module):
    """Predicts the noise in 8 x 8 pictures of one channel."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv_out = nn.Conv2d(WIDTH, 1, 3, padding=1)

    def forward(self, x, timesteps, text):
        rates = torch.exp(torch.arange(WIDTH // 2) * (-math.log(TIMESTEPS) / (WIDTH // 2))).to(x.device)
        angles = timesteps[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        x = self.conv_in(x) + (self.time(waves) + self.text(text.to(x.dtype)))[:, :, None, None]
        for block in self.blocks:
            x = block(x)
        return self.conv_out(nn.functional.silu(x))


class TextEncoder(nn.Module):
    """Turns one word, and vectors of the user's own beside it, into a condition."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, TEXT_WIDTH)
        self.proj = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, tokens, vectors=()):
        words = self.tokens(tokens)
        for vector in vectors:
            words = words + vector.mean(dim=0).to(words.dtype)
        return self.proj(words)


class Vae(nn.Module):
    """Between pictures and latents, which here are the same; never trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def forward(self, x):
        return self.scale(x.to(self.scale.weight.dtype))


PARTS = {"unet": UNet, "text_encoder": TextEncoder, "vae": Vae}


class NoiseScheduler:
    def __init__(self):
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.08, TIMESTEPS), dim=0)

    def add_noise(self, x, noise, timesteps):
        alphas = self.alphas_cumprod.to(x.device)[timesteps][:, None, None, None]
        return alphas.sqrt() * x + (1 - alphas).sqrt() * noise


def new_parts(seed=0):
    """Every part with its weights drawn from a seed; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return {name: part() for name, part in PARTS.items()}
