from datetime import date

_REQUIRED = ("sai_model_spec", "architecture", "implementation", "title")


class ModelSpec:
    """What a model file says about itself, as `modelspec.*` in its header."""

    def __init__(self, architecture="", implementation="", title="", description="", usage_hint=""):
        self.sai_model_spec = "1.0.0"
        self.architecture = architecture
        self.implementation = implementation
        self.title = title
        self.description = description
        self.author = ""
        self.date = date.today().isoformat()
        self.hash_sha256 = ""
        self.usage_hint = usage_hint

    def to_dict(self):
        return {f"modelspec.{key}": value for key, value in vars(self).items() if value or key in _REQUIRED}
