import copy
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

PREFIXES = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model.", "vae": "first_stage_model."}


@factory.register(BaseModelSaver, ModelType.STABLE_DIFFUSION_15, TrainingMethod.FINE_TUNE)
class StableDiffusionFineTuneModelSaver(
    BaseModelSaver, DtypeModelSaverMixin, EmbeddingSaverMixin, InternalModelSaverMixin
):
    def save(self, model, model_type, output_model_format, output_model_destination, dtype):
        del model_type
        match output_model_format:
            case ModelFormat.DIFFUSERS:
                self._save_folder(model, output_model_destination, dtype)
            case ModelFormat.LEGACY_SAFETENSORS | ModelFormat.ORIGINAL_SINGLE_FILE:
                self._save_file(model, output_model_destination, dtype)
            case ModelFormat.INTERNAL:
                self._save_folder(model, output_model_destination, None)
            case _:
                raise NotImplementedError(f"a fine-tune cannot be written as {output_model_format}")
        self._save_additional_embeddings(model, output_model_format, output_model_destination, dtype)
        if output_model_format == ModelFormat.INTERNAL:
            self._save_internal_data(model, output_model_destination)

    def _save_folder(self, model, destination, dtype):
        pipeline = model.create_pipeline().to("cpu")
        if dtype is not None:
            # the model itself must keep its dtype, so a copy is converted
            pipeline = copy.deepcopy(pipeline).to("cpu", dtype)
        pipeline.save_pretrained(destination)

    def _save_file(self, model, destination, dtype):
        tensors = {}
        for part, prefix in PREFIXES.items():
            tensors |= {prefix + key: value for key, value in getattr(model, part).state_dict().items()}
        tensors = self._convert_state_dict_dtype(tensors, dtype)
        path = Path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, self._create_safetensors_header(model, tensors))
        lines = ["model:", *(f"  {key}: {value}" for key, value in model.sd_config["model"].items())]
        path.with_suffix(".yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
