from enum import Enum


class ModelType(Enum):
    STABLE_DIFFUSION_15 = "STABLE_DIFFUSION_15"

    def __str__(self):
        return self.value

    def model_parts(self):
        """Attributes of the model that are moved between devices."""
        return ["unet", "text_encoder", "vae"]
