from abc import ABC, abstractmethod

import torch
from modules.util import create
from modules.util.TimedActionMixin import TimedActionMixin


class BaseTrainer(TimedActionMixin, ABC):
    def __init__(self, config, callbacks, commands):
        super().__init__()
        self.config = config
        self.callbacks = callbacks
        self.commands = commands
        self.train_device = torch.device(config.train_device)
        self.temp_device = torch.device(config.temp_device)

    @abstractmethod
    def start(self): ...

    @abstractmethod
    def train(self): ...

    @abstractmethod
    def end(self): ...

    def create_model_loader(self):
        return create.create_model_loader(self.config.model_type, self.config.training_method)

    def create_model_setup(self):
        return create.create_model_setup(
            self.config.model_type,
            self.train_device,
            self.temp_device,
            self.config.training_method,
            self.config.debug_mode,
        )

    def create_data_loader(self, train_progress, is_validation=False):
        return create.create_data_loader(self.config, train_progress, is_validation)

    def create_model_saver(self):
        return create.create_model_saver(self.config.model_type, self.config.training_method)

    def create_model_sampler(self, model):
        return create.create_model_sampler(
            self.train_device, self.temp_device, model, self.config.model_type, self.config.training_method
        )
