"""What the three ways of training have in common: the diffusion loss, and the user's own words."""

import torch
from modules.model.StableDiffusionModel import StableDiffusionModelEmbedding
from modules.model.tiny import TIMESTEPS
from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.util import multi_gpu_util as multi
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.NamedParameterGroup import NamedParameterGroup
from modules.util.optimizer_util import init_model_parameters


class BaseStableDiffusionSetup(BaseModelSetup):
    def setup_model(self, model, config):
        self._setup_embeddings(model, config)
        self._setup_adapters(model, config)
        parameters = self.create_parameters(model, config)
        self._setup_requires_grad(model, config)
        init_model_parameters(model, parameters, self.train_device)

    def setup_train_device(self, model, config):
        model.materialize()
        for part in ("unet", "text_encoder"):
            getattr(model, part).train(getattr(config, part).train)

    def after_optimizer_step(self, model, config, train_progress):
        del train_progress
        self._setup_requires_grad(model, config)

    def predict(self, model, batch, config, train_progress, *, deterministic=False):
        """Noise the pictures, and predict the noise. What is random depends on the step alone."""
        del config
        seed = 0 if deterministic else train_progress.global_step * multi.world_size() + multi.rank()
        generator = torch.Generator().manual_seed(seed)
        latents = model.vae(batch["image"].to(self.train_device)).float()
        noise = torch.randn(latents.shape, generator=generator).to(self.train_device)
        timesteps = torch.randint(TIMESTEPS, (latents.shape[0],), generator=generator).to(self.train_device)
        noisy = model.noise_scheduler.add_noise(latents, noise, timesteps)
        text = model.encode_text(batch["tokens"].to(self.train_device))
        predicted = model.unet(noisy.to(model.unet.conv_in.weight.dtype), timesteps, text)
        return {"predicted": predicted, "target": noise}

    def calculate_loss(self, model, batch, data, config):
        del model, batch, config
        return torch.nn.functional.mse_loss(data["predicted"].float(), data["target"])

    def _setup_adapters(self, model, config):
        """Put adapters over the model, where they are what is trained."""

    def _setup_requires_grad(self, model, config):
        raise NotImplementedError

    def _setup_embeddings(self, model, config):
        def load(settings):
            saved = model.embedding_state_dicts.get(settings.uuid) or {}
            vector = saved.get("emp_params_out" if settings.is_output_embedding else "emp_params")
            if vector is None:
                vector = model.text_encoder.tokens.weight[: settings.token_count].detach().clone()
            return StableDiffusionModelEmbedding(
                settings.uuid,
                vector.to(config.embedding_weight_dtype.torch_dtype()),
                settings.placeholder,
                settings.is_output_embedding,
            )

        model.additional_embeddings = [load(settings) for settings in config.additional_embeddings]
        model.embedding = load(config.embedding) if config.training_method == TrainingMethod.EMBEDDING else None

    def _add_embedding_param_groups(self, model, config, collection):
        settings = {entry.uuid: entry for entry in [*config.additional_embeddings, config.embedding]}
        for embedding in model.all_text_encoder_embeddings():
            embedding.requires_grad_(settings[embedding.uuid].train)
            collection.add_group(
                NamedParameterGroup(f"embeddings/{embedding.uuid}", [embedding.trained], config.embedding_learning_rate)
            )
