from abc import ABC, abstractmethod


class BaseModelLoader(ABC):
    @abstractmethod
    def load(self, model_type, model_names, weight_dtypes, quantization): ...
