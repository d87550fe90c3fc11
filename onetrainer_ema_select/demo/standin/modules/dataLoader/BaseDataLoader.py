from abc import ABC, abstractmethod


class BaseDataLoader(ABC):
    @abstractmethod
    def get_data_set(self): ...

    @abstractmethod
    def get_data_loader(self): ...
