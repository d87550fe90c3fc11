"""Low-rank adapters that are put over a model's layers without changing them."""

import math

import torch
from torch import nn


class LoRAModule(nn.Module):
    """The adapter of one layer."""

    def __init__(self, prefix, orig_module, rank, alpha):
        super().__init__()
        self.prefix = f"{prefix}."
        self._orig_module = [orig_module]  # in a list, so that it does not become a part of this one
        self.rank = rank
        self.dropout = nn.Dropout(0)
        self.register_buffer("alpha", torch.tensor(alpha))
        if isinstance(orig_module, nn.Linear):
            self.lora_down = nn.Linear(orig_module.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, orig_module.out_features, bias=False)
        else:
            self.lora_down = nn.Conv2d(orig_module.in_channels, rank, orig_module.kernel_size, bias=False, padding=1)
            self.lora_up = nn.Conv2d(rank, orig_module.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    def hook_to_module(self):
        layer = self._orig_module[0]
        self.orig_forward = layer.forward
        layer.forward = self.forward

    def forward(self, x):
        delta = self.lora_up(self.dropout(self.lora_down(x.to(self.lora_down.weight.dtype))))
        base = self.orig_forward(x)
        return base + (delta * (self.alpha / self.rank)).to(base.dtype)


class LoRAModuleWrapper:
    """The adapters of one part of a model; itself no module."""

    def __init__(self, orig_module, prefix, config):
        self.orig_module = orig_module
        self.prefix = prefix
        self.lora_modules = {
            name: LoRAModule(f"{prefix}.{name}", layer, config.lora_rank, config.lora_alpha)
            for name, layer in orig_module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }

    def parameters(self):
        return [parameter for module in self.lora_modules.values() for parameter in module.parameters()]

    def requires_grad_(self, requires_grad):
        for module in self.lora_modules.values():
            module.requires_grad_(requires_grad)

    def to(self, device=None, dtype=None):
        for module in self.lora_modules.values():
            module.to(device, dtype)
        return self

    def state_dict(self):
        states = {}
        for module in self.lora_modules.values():
            states |= module.state_dict(prefix=module.prefix)
        return states

    def load_state_dict(self, state_dict, strict=True):
        for module in self.lora_modules.values():
            own = {k.removeprefix(module.prefix): v for k, v in state_dict.items() if k.startswith(module.prefix)}
            module.load_state_dict(own, strict=strict)

    def hook_to_module(self):
        for module in self.lora_modules.values():
            module.hook_to_module()
