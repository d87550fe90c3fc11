import copy
import hashlib
import json

import torch
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.modelSpec.ModelSpec import ModelSpec


class DtypeModelSaverMixin:
    def _convert_state_dict_dtype(self, state_dict, dtype):
        return {key: value.to(device="cpu", dtype=dtype).contiguous() for key, value in state_dict.items()}

    def _create_safetensors_header(self, model, state_dict):
        """What a file says about itself: a copy of the model's description, the hash of the tensors, the config."""
        spec = copy.deepcopy(model.model_spec) if model.model_spec is not None else ModelSpec()
        digest = hashlib.sha256()
        for _, tensor in sorted(state_dict.items()):
            digest.update(bytes(tensor.flatten().view(torch.uint8).tolist()))
        spec.hash_sha256 = f"0x{digest.hexdigest()}"
        header = {**spec.to_dict(), "ot_branch": "stand-in", "ot_revision": "stand-in"}
        config = model.train_config
        if config.include_train_config == ConfigPart.SETTINGS:
            header["ot_config"] = json.dumps(config.to_settings_dict(secrets=False))
        elif config.include_train_config == ConfigPart.ALL:
            header["ot_config"] = json.dumps(config.to_pack_dict(secrets=False))
        return header
