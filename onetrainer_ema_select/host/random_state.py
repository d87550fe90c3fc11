"""The global random states of a process: kept, and put back as they were."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DEVICES = ("cuda", "xpu")


@dataclass(frozen=True)
class RandomState:
    """Torch's (of the CPU and of every GPU in use), numpy's and Python's, at one moment."""

    cpu: Tensor
    devices: dict[str, list[Tensor]]
    mps: Tensor | None
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> RandomState:
        """The states as they are; draws nothing."""
        return cls(
            cpu=torch.get_rng_state(),
            devices={name: getattr(torch, name).get_rng_state_all() for name in _DEVICES if _in_use(name)},
            mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
            numpy=np.random.get_state(),
            python=random.getstate(),
        )

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.cpu)
        for name, states in self.devices.items():
            getattr(torch, name).set_rng_state_all(states)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def _in_use(name: str) -> bool:
    """Whether a kind of GPU is; asking one that is not for its state would start it."""
    module = getattr(torch, name, None)
    return module is not None and module.is_available() and module.is_initialized()
