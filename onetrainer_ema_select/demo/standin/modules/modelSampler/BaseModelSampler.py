from abc import ABC, abstractmethod


class ModelSamplerOutput:
    def __init__(self, data):
        self.data = data


class BaseModelSampler(ABC):
    def __init__(self, train_device, temp_device):
        self.train_device = train_device
        self.temp_device = temp_device

    @abstractmethod
    def sample(  # noqa: PLR0917 - OneTrainer's own signature
        self,
        sample_config,
        destination,
        image_format,
        video_format,
        audio_format,
        on_sample=lambda _: None,
        on_update_progress=lambda _, __: None,
    ): ...
