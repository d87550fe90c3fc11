from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.modelSetup.BaseStableDiffusionSetup import BaseStableDiffusionSetup
from modules.util import factory
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.NamedParameterGroup import NamedParameterGroupCollection


@factory.register(BaseModelSetup, ModelType.STABLE_DIFFUSION_15, TrainingMethod.FINE_TUNE)
class StableDiffusionFineTuneSetup(BaseStableDiffusionSetup):
    def create_parameters(self, model, config):
        collection = NamedParameterGroupCollection()
        self._create_model_part_parameters(collection, "text_encoder", model.text_encoder, config.text_encoder)
        self._add_embedding_param_groups(model, config, collection)
        self._create_model_part_parameters(collection, "unet", model.unet, config.unet)
        return collection

    def _setup_requires_grad(self, model, config):
        for name in ("text_encoder", "unet"):
            self._setup_model_part_requires_grad(
                name, getattr(model, name), getattr(config, name), model.train_progress
            )
        model.vae.requires_grad_(False)
