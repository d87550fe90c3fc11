"""A model in training: its parts, what trains them, and how far it is."""

import torch
from modules.util.TrainProgress import TrainProgress


class BaseModelEmbedding:
    """Vectors trained for a word of the user's own, before the text encoder (`vector`) or behind it."""

    def __init__(self, uuid, placeholder, vector, is_output_embedding):
        self.uuid = uuid
        self.placeholder = placeholder
        self.is_output_embedding = is_output_embedding
        self.token_count = 0 if vector is None else vector.shape[0]
        self.vector = vector
        self.output_vector = None
        if vector is not None and is_output_embedding:
            self.vector = torch.zeros_like(vector)
            self.output_vector = vector.to(torch.float32)

    @property
    def trained(self):
        return self.output_vector if self.is_output_embedding else self.vector

    def requires_grad_(self, requires_grad):
        self.trained.requires_grad_(requires_grad)


class BaseModel:
    def __init__(self, model_type):
        self.model_type = model_type
        self.parameters = None
        self.optimizer = None
        self.optimizer_state_dict = None
        self.param_group_mapping = None
        self.ema = None
        self.ema_state_dict = None
        self.train_progress = TrainProgress()
        self.model_spec = None
        self.train_config = None
        self.embedding_state_dicts = {}

    def evict(self):
        """Move every part to the temp device, out of the way of a save."""
        self._move(torch.device(self.train_config.temp_device))

    def materialize(self):
        """Move every part to the train device."""
        self._move(torch.device(self.train_config.train_device))

    def eval(self):
        for part in self.model_type.model_parts():
            getattr(self, part).eval()

    def adapters(self):
        found = [getattr(self, f"{part}_lora", None) for part in self.model_type.model_parts()]
        return [adapter for adapter in found if adapter is not None]

    def _move(self, device):
        for part in self.model_type.model_parts():
            getattr(self, part).to(device)
        for adapter in self.adapters():
            adapter.to(device)
