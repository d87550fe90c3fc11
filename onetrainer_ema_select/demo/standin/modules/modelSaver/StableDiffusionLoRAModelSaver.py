from pathlib import Path

from modules.modelSaver.BaseModelSaver import BaseModelSaver
from modules.modelSaver.mixin.DtypeModelSaverMixin import DtypeModelSaverMixin
from modules.modelSaver.mixin.EmbeddingSaverMixin import EmbeddingSaverMixin
from modules.modelSaver.mixin.InternalModelSaverMixin import InternalModelSaverMixin
from modules.util import factory
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from safetensors.torch import save_file

_LEAVES = ("lora_down.weight", "lora_up.weight", "alpha")


@factory.register(BaseModelSaver, ModelType.STABLE_DIFFUSION_15, TrainingMethod.LORA)
class StableDiffusionLoRAModelSaver(BaseModelSaver, DtypeModelSaverMixin, EmbeddingSaverMixin, InternalModelSaverMixin):
    def save(self, model, model_type, output_model_format, output_model_destination, dtype):
        del model_type
        tensors = {}
        for adapter in model.adapters():
            tensors |= adapter.state_dict()
        tensors |= model.lora_state_dict or {}
        path = Path(output_model_destination)
        match output_model_format:
            case ModelFormat.INTERNAL:
                path, dtype = path / "lora" / "lora.safetensors", None
            case ModelFormat.DIFFUSERS_LORA:
                tensors = {_peft(key): value for key, value in tensors.items()}
            case ModelFormat.KOHYA_LORA | ModelFormat.LEGACY_LORA:
                tensors = {_flat(key): value for key, value in tensors.items()}
            case _:
                raise NotImplementedError(f"a LoRA cannot be written as {output_model_format}")
        internal = output_model_format == ModelFormat.INTERNAL
        bundled = model.train_config.bundle_additional_embeddings
        if bundled:
            for embedding in model.all_text_encoder_embeddings():
                tensors[f"bundle_emb.{embedding.placeholder}.clip_l"] = embedding.vector.detach()
        tensors = self._convert_state_dict_dtype(tensors, dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, self._create_safetensors_header(model, tensors))
        if internal or not bundled:
            self._save_additional_embeddings(model, output_model_format, output_model_destination, dtype)
        if internal:
            self._save_internal_data(model, output_model_destination)


def _flat(key):
    """As kohya's scripts: `lora_unet_conv_in.lora_down.weight`."""
    leaf = next(leaf for leaf in _LEAVES if key.endswith(leaf))
    part = key.removesuffix(f".{leaf}").replace("text_encoder.", "te.", 1)
    return f"lora_{part.replace('.', '_')}.{leaf}"


def _peft(key):
    return key.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
