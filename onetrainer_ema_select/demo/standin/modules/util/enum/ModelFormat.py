from enum import Enum


class ModelFormat(Enum):
    DIFFUSERS = "DIFFUSERS"
    ORIGINAL_SINGLE_FILE = "ORIGINAL_SINGLE_FILE"
    LEGACY_SAFETENSORS = "LEGACY_SAFETENSORS"
    DIFFUSERS_LORA = "DIFFUSERS_LORA"
    KOHYA_LORA = "KOHYA_LORA"
    LEGACY_LORA = "LEGACY_LORA"
    SAFETENSORS = "SAFETENSORS"
    INTERNAL = "INTERNAL"

    def __str__(self):
        return self.value

    def file_extension(self):
        """What ends a destination's name; empty for those that are folders."""
        return "" if self in (ModelFormat.DIFFUSERS, ModelFormat.INTERNAL) else ".safetensors"

    def is_single_file(self):
        return self.file_extension() != ""
