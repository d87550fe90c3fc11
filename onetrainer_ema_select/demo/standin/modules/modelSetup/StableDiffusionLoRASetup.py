from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.modelSetup.BaseStableDiffusionSetup import BaseStableDiffusionSetup
from modules.module.LoRAModule import LoRAModuleWrapper
from modules.util import factory
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.NamedParameterGroup import NamedParameterGroupCollection


@factory.register(BaseModelSetup, ModelType.STABLE_DIFFUSION_15, TrainingMethod.LORA)
class StableDiffusionLoRASetup(BaseStableDiffusionSetup):
    def create_parameters(self, model, config):
        collection = NamedParameterGroupCollection()
        if model.text_encoder_lora is not None:
            self._create_model_part_parameters(
                collection, "text_encoder_lora", model.text_encoder_lora, config.text_encoder
            )
        self._add_embedding_param_groups(model, config, collection)
        self._create_model_part_parameters(collection, "unet_lora", model.unet_lora, config.unet)
        return collection

    def _setup_adapters(self, model, config):
        parts = ["text_encoder", "unet"] if config.text_encoder.train else ["unet"]
        for part in parts:
            adapter = LoRAModuleWrapper(getattr(model, part), part, config)
            if model.lora_state_dict is not None:
                adapter.load_state_dict(model.lora_state_dict)
            adapter.to(self.train_device, config.lora_weight_dtype.torch_dtype())
            adapter.hook_to_module()
            setattr(model, f"{part}_lora", adapter)
        model.lora_state_dict = None

    def _setup_requires_grad(self, model, config):
        for name in ("text_encoder", "unet"):
            getattr(model, name).requires_grad_(False)
            adapter = getattr(model, f"{name}_lora")
            if adapter is not None:
                self._setup_model_part_requires_grad(
                    f"{name}_lora", adapter, getattr(config, name), model.train_progress
                )
        model.vae.requires_grad_(False)
