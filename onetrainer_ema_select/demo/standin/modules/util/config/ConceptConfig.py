from modules.util.config.BaseConfig import BaseConfig


class ConceptConfig(BaseConfig):
    @staticmethod
    def default_values():
        return ConceptConfig([("name", "", str, False), ("path", "", str, False)])
