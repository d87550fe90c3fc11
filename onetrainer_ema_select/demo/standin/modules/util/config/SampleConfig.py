from modules.util.config.BaseConfig import BaseConfig


class SampleConfig(BaseConfig):
    def from_train_config(self, train_config):
        """Take over what a sample shares with the training; nothing here."""

    @staticmethod
    def default_values(model_type=None):
        del model_type
        return SampleConfig(
            [
                ("enabled", True, bool, False),
                ("prompt", "", str, False),
                ("seed", 42, int, False),
                ("diffusion_steps", 10, int, False),
            ]
        )
