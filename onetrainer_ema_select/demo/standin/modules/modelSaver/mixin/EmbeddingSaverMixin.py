from pathlib import Path

from modules.util.enum.ModelFormat import ModelFormat
from safetensors.torch import save_file


class EmbeddingSaverMixin:
    def _save_embedding(self, model, embedding, destination, dtype):
        """One file of vectors, without any metadata."""
        tensors = dict(model.embedding_state_dicts.get(embedding.uuid) or {})
        if embedding.vector is not None:
            tensors["emp_params"] = embedding.vector.detach().to(device="cpu", dtype=dtype)
        if embedding.output_vector is not None:
            tensors["emp_params_out"] = embedding.output_vector.detach().to(device="cpu", dtype=dtype)
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, destination)

    def _save_additional_embeddings(self, model, output_model_format, destination, dtype):
        """Beside a model in a folder of its own, or inside a backup."""
        for wrapper in model.additional_embeddings:
            embedding = wrapper.text_encoder_embedding
            if output_model_format == ModelFormat.INTERNAL:
                path = Path(destination, "embeddings", f"{embedding.uuid}.safetensors")
                self._save_embedding(model, embedding, path, None)
            else:
                name = "".join(c for c in embedding.placeholder.replace(" ", "_") if c.isalnum() or c in "._-#")
                self._save_embedding(model, embedding, f"{destination}_embeddings/{name}.safetensors", dtype)
