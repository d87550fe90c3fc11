from enum import Enum

from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.TrainingMethod import TrainingMethod


class ModelType(Enum):
    STABLE_DIFFUSION_15 = "STABLE_DIFFUSION_15"

    def __str__(self):
        return self.value

    def model_parts(self):
        """Attributes of the model that are moved between devices."""
        return ["unet", "text_encoder", "vae"]

    def supported_output_formats(self, training_method):
        """What a model of this type can be saved as."""
        if training_method == TrainingMethod.EMBEDDING:
            return [ModelFormat.SAFETENSORS]
        if training_method == TrainingMethod.LORA:
            return [ModelFormat.KOHYA_LORA, ModelFormat.DIFFUSERS_LORA, ModelFormat.LEGACY_LORA]
        return [ModelFormat.DIFFUSERS, ModelFormat.ORIGINAL_SINGLE_FILE, ModelFormat.LEGACY_SAFETENSORS]
