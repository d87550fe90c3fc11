from enum import Enum

import torch

_TORCH = {"FLOAT_32": torch.float32, "FLOAT_16": torch.float16, "BFLOAT_16": torch.bfloat16}


class DataType(Enum):
    NONE = "NONE"
    FLOAT_16 = "FLOAT_16"
    FLOAT_32 = "FLOAT_32"
    BFLOAT_16 = "BFLOAT_16"

    def __str__(self):
        return self.value

    def torch_dtype(self, supports_quantization=True):
        """The dtype for torch, None for NONE."""
        del supports_quantization  # there is none here
        return _TORCH.get(self.value)
