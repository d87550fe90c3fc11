from abc import ABC, abstractmethod


class BaseModelSaver(ABC):
    @abstractmethod
    def save(self, model, model_type, output_model_format, output_model_destination, dtype): ...
