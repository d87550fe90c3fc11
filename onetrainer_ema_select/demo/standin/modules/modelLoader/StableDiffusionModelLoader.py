"""Loads the tiny model: made up, from a folder, from one file, or from a backup."""

from pathlib import Path

from modules.model.StableDiffusionModel import Pipeline, StableDiffusionModel
from modules.model.tiny import PARTS, new_parts
from modules.modelLoader.BaseModelLoader import BaseModelLoader
from modules.modelLoader.mixin.InternalModelLoaderMixin import InternalModelLoaderMixin
from modules.modelSaver.StableDiffusionFineTuneModelSaver import PREFIXES
from modules.util import factory
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.modelSpec.ModelSpec import ModelSpec
from safetensors.torch import load_file


def load_parts(name):
    """The parts of a model; the name `stand-in` is one that is always there."""
    path = Path(name)
    if name == "stand-in":
        return new_parts()
    try:
        if (path / "model_index.json").is_file():
            return Pipeline.from_pretrained(path).parts
        tensors = load_file(path)
        parts = {part: cls() for part, cls in PARTS.items()}
        for part, module in parts.items():
            prefix = PREFIXES[part]
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            module.to(next(iter(own.values())).dtype).load_state_dict(own)
    except Exception as error:
        raise RuntimeError(f"could not load model: {name}") from error
    return parts


class StableDiffusionModelLoader(BaseModelLoader, InternalModelLoaderMixin):
    def load(self, model_type, model_names, weight_dtypes, quantization):
        del quantization
        model = StableDiffusionModel(model_type)
        model.model_spec = ModelSpec(
            architecture="stand-in", implementation="onetrainer-ema-select", title="The stand-in's tiny model"
        )
        self._load_internal_data(model, self._backup(model_names))
        if model_names.base_model is not None:
            for name, part in load_parts(model_names.base_model).items():
                setattr(model, name, part.to(weight_dtypes[name]))
        self._load_trained(model, model_names)
        for embedding in model_names.all_embedding():
            saved = Path(self._backup(model_names), "embeddings", f"{embedding.uuid}.safetensors")
            source = saved if saved.is_file() else embedding.model_name
            model.embedding_state_dicts[embedding.uuid] = load_file(source) if source else None
        return model

    def _backup(self, model_names):
        """Where a backup would be, if it is one."""
        return model_names.base_model

    def _load_trained(self, model, model_names):
        """Load what lies apart from the base model."""


@factory.register(BaseModelLoader, ModelType.STABLE_DIFFUSION_15, TrainingMethod.FINE_TUNE)
class StableDiffusionFineTuneModelLoader(StableDiffusionModelLoader):
    pass


@factory.register(BaseModelLoader, ModelType.STABLE_DIFFUSION_15, TrainingMethod.LORA)
class StableDiffusionLoRAModelLoader(StableDiffusionModelLoader):
    def _backup(self, model_names):
        return model_names.lora

    def _load_trained(self, model, model_names):
        if model_names.lora:
            path = Path(model_names.lora)
            inside = path / "lora" / "lora.safetensors"
            model.lora_state_dict = load_file(inside if path.is_dir() else path)


@factory.register(BaseModelLoader, ModelType.STABLE_DIFFUSION_15, TrainingMethod.EMBEDDING)
class StableDiffusionEmbeddingModelLoader(StableDiffusionModelLoader):
    def _backup(self, model_names):
        return model_names.embedding.model_name
