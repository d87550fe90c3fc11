from abc import ABC, abstractmethod

from modules.util.NamedParameterGroup import NamedParameterGroup
from modules.util.TimedActionMixin import TimedActionMixin


class BaseModelSetup(TimedActionMixin, ABC):
    def __init__(self, train_device, temp_device, debug_mode):
        super().__init__()
        self.train_device = train_device
        self.temp_device = temp_device
        self.debug_mode = debug_mode

    @abstractmethod
    def create_parameters(self, model, config): ...

    @abstractmethod
    def setup_model(self, model, config): ...

    @abstractmethod
    def setup_train_device(self, model, config): ...

    @abstractmethod
    def predict(self, model, batch, config, train_progress, *, deterministic=False): ...

    @abstractmethod
    def calculate_loss(self, model, batch, data, config): ...

    @abstractmethod
    def after_optimizer_step(self, model, config, train_progress): ...

    def setup_optimizations(self, model, config):
        """Nothing to be had for a model of this size."""

    def _create_model_part_parameters(self, collection, unique_name, part, config):
        if config.train:
            collection.add_group(NamedParameterGroup(unique_name, part.parameters(), config.learning_rate))

    def _setup_model_part_requires_grad(self, unique_name, part, config, train_progress):
        """A part may stop training in the middle of a run; it stays in the list of parameters."""
        stopped = self.single_action_elapsed(
            f"stop_{unique_name}", config.stop_training_after, config.stop_training_after_unit, train_progress
        )
        part.requires_grad_(config.train and not stopped)
