from pathlib import Path

from modules.modelSaver.BaseModelSaver import BaseModelSaver
from modules.modelSaver.mixin.EmbeddingSaverMixin import EmbeddingSaverMixin
from modules.modelSaver.mixin.InternalModelSaverMixin import InternalModelSaverMixin
from modules.util import factory
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod


@factory.register(BaseModelSaver, ModelType.STABLE_DIFFUSION_15, TrainingMethod.EMBEDDING)
class StableDiffusionEmbeddingModelSaver(BaseModelSaver, EmbeddingSaverMixin, InternalModelSaverMixin):
    def save(self, model, model_type, output_model_format, output_model_destination, dtype):
        del model_type
        embedding = model.embedding.text_encoder_embedding
        self._save_additional_embeddings(model, output_model_format, output_model_destination, dtype)
        if output_model_format == ModelFormat.INTERNAL:
            path = Path(output_model_destination, "embeddings", f"{embedding.uuid}.safetensors")
            self._save_embedding(model, embedding, path, None)
            self._save_internal_data(model, output_model_destination)
        elif output_model_format == ModelFormat.SAFETENSORS:
            self._save_embedding(model, embedding, output_model_destination, dtype)
        else:
            raise NotImplementedError(f"an embedding cannot be written as {output_model_format}")
