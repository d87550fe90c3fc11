from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.modelSetup.BaseStableDiffusionSetup import BaseStableDiffusionSetup
from modules.util import factory
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.NamedParameterGroup import NamedParameterGroupCollection


@factory.register(BaseModelSetup, ModelType.STABLE_DIFFUSION_15, TrainingMethod.EMBEDDING)
class StableDiffusionEmbeddingSetup(BaseStableDiffusionSetup):
    def create_parameters(self, model, config):
        collection = NamedParameterGroupCollection()
        self._add_embedding_param_groups(model, config, collection)
        return collection

    def _setup_requires_grad(self, model, config):
        del config
        for part in (model.unet, model.text_encoder, model.vae):
            part.requires_grad_(False)
