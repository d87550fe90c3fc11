"""The configuration of a run: the keys of OneTrainer's that the stand-in or the plugin uses."""

import json
import uuid
from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.enum.DataType import DataType
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.ImageFormat import ImageFormat
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.ModelNames import EmbeddingName, ModelNames


class TrainOptimizerConfig(BaseConfig):
    @staticmethod
    def default_values():
        return TrainOptimizerConfig(
            [
                ("optimizer", Optimizer.ADAMW, Optimizer, False),
                ("beta1", 0.9, float, True),
                ("beta2", 0.999, float, True),
                ("eps", 1e-8, float, True),
                ("weight_decay", 1e-2, float, True),
                ("momentum", 0.0, float, True),
                ("MuonWithAuxAdam", False, bool, False),
            ]
        )


class TrainModelPartConfig(BaseConfig):
    @staticmethod
    def default_values():
        return TrainModelPartConfig(
            [
                ("model_name", "", str, False),
                ("train", True, bool, False),
                ("stop_training_after", None, int, True),
                ("stop_training_after_unit", TimeUnit.NEVER, TimeUnit, False),
                ("learning_rate", None, float, True),
                ("weight_dtype", DataType.FLOAT_32, DataType, False),
            ]
        )


class TrainEmbeddingConfig(BaseConfig):
    @staticmethod
    def default_values():
        return TrainEmbeddingConfig(
            [
                ("uuid", str(uuid.uuid4()), str, False),
                ("model_name", "", str, False),
                ("placeholder", "<embedding>", str, False),
                ("train", True, bool, False),
                ("token_count", 1, int, True),
                ("is_output_embedding", False, bool, False),
            ]
        )


class TrainConfig(BaseConfig):
    def model_names(self):
        single = self.training_method == TrainingMethod.EMBEDDING
        return ModelNames(
            base_model=self.base_model_name,
            lora=self.lora_model_name,
            embedding=EmbeddingName(self.embedding.uuid, self.embedding.model_name) if single else None,
            additional_embeddings=[EmbeddingName(e.uuid, e.model_name) for e in self.additional_embeddings],
        )

    def weight_dtypes(self):
        """Dtype of each part as it is loaded, by the part's name."""
        return {part: getattr(self, part).weight_dtype.torch_dtype() for part in self.model_type.model_parts()}

    def get_last_backup_path(self):
        """The folder of the greatest name in the workspace's backups, whatever it holds."""
        folder = Path(self.workspace_dir, "backup")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        return str(folder / names[-1]) if names else None

    def to_settings_dict(self, secrets):
        config = TrainConfig.default_values().from_dict(self.to_dict())
        config.concepts = None
        config.samples = None
        return _without_secrets(config, secrets)

    def to_pack_dict(self, secrets):
        """The whole run in one dictionary; what stands in files of its own is read into it."""
        config = TrainConfig.default_values().from_dict(self.to_dict())
        if config.concepts is None:
            entries = json.loads(Path(config.concept_file_name).read_text(encoding="utf-8"))
            config.concepts = [ConceptConfig.default_values().from_dict(entry) for entry in entries]
        if config.samples is None:
            entries = json.loads(Path(config.sample_definition_file_name).read_text(encoding="utf-8"))
            config.samples = [SampleConfig.default_values().from_dict(entry) for entry in entries]
        return _without_secrets(config, secrets)

    @staticmethod
    def default_values():
        return TrainConfig(_rows())


def _without_secrets(config, secrets):
    data = config.to_dict()
    if not secrets:
        data.pop("secrets", None)
    return data


def _rows():
    vae = TrainModelPartConfig.default_values()
    vae.train = False
    return [
        ("training_method", TrainingMethod.FINE_TUNE, TrainingMethod, False),
        ("model_type", ModelType.STABLE_DIFFUSION_15, ModelType, False),
        ("debug_mode", False, bool, False),
        ("workspace_dir", "workspace/run", str, False),
        ("cache_dir", "workspace-cache/run", str, False),
        ("huggingface_cache_dir", "", str, False),
        ("offline_mode", False, bool, False),
        ("validation", False, bool, False),
        ("validate_after", 1, int, False),
        ("validate_after_unit", TimeUnit.EPOCH, TimeUnit, False),
        ("continue_last_backup", False, bool, False),
        ("include_train_config", ConfigPart.NONE, ConfigPart, False),
        ("multi_gpu", False, bool, False),
        # the model that the loader makes up by itself, or a folder or file that was saved before
        ("base_model_name", "stand-in", str, False),
        ("output_dtype", DataType.FLOAT_32, DataType, False),
        ("output_model_format", ModelFormat.LEGACY_SAFETENSORS, ModelFormat, False),
        ("output_model_destination", "models/model.safetensors", str, False),
        ("concept_file_name", "training_concepts/concepts.json", str, False),
        ("concepts", None, list[ConceptConfig], True),
        ("learning_rate", 1e-3, float, False),
        ("epochs", 100, int, False),
        ("batch_size", 4, int, False),
        ("gradient_accumulation_steps", 1, int, False),
        ("clip_grad_norm", 1.0, float, True),
        ("ema", EMAMode.OFF, EMAMode, False),
        ("ema_decay", 0.999, float, False),
        ("ema_update_step_interval", 5, int, False),
        ("train_device", "cpu", str, False),
        ("temp_device", "cpu", str, False),
        ("train_dtype", DataType.FLOAT_32, DataType, False),
        ("unet", TrainModelPartConfig.default_values(), TrainModelPartConfig, False),
        ("text_encoder", TrainModelPartConfig.default_values(), TrainModelPartConfig, False),
        ("vae", vae, TrainModelPartConfig, False),
        ("embedding_learning_rate", None, float, True),
        ("embedding", TrainEmbeddingConfig.default_values(), TrainEmbeddingConfig, False),
        ("additional_embeddings", [], list[TrainEmbeddingConfig], False),
        ("embedding_weight_dtype", DataType.FLOAT_32, DataType, False),
        ("lora_model_name", "", str, False),
        ("lora_rank", 4, int, False),
        ("lora_alpha", 1.0, float, False),
        ("lora_weight_dtype", DataType.FLOAT_32, DataType, False),
        ("bundle_additional_embeddings", True, bool, False),
        ("optimizer", TrainOptimizerConfig.default_values(), TrainOptimizerConfig, False),
        ("sample_definition_file_name", "training_samples/samples.json", str, False),
        ("samples", None, list[SampleConfig], True),
        ("sample_after", 10, int, False),
        ("sample_after_unit", TimeUnit.NEVER, TimeUnit, False),
        ("sample_skip_first", 0, int, False),
        ("sample_image_format", ImageFormat.PNG, ImageFormat, False),
        ("non_ema_sampling", True, bool, False),
        ("backup_after", 30, int, False),
        ("backup_after_unit", TimeUnit.MINUTE, TimeUnit, False),
        ("rolling_backup", False, bool, False),
        ("rolling_backup_count", 3, int, False),
        ("backup_before_save", True, bool, False),
        ("save_every", 0, int, False),
        ("save_every_unit", TimeUnit.NEVER, TimeUnit, False),
        ("save_skip_first", 0, int, False),
        ("save_filename_prefix", "", str, False),
        ("secrets", SecretsConfig.default_values(), SecretsConfig, False),
    ]
