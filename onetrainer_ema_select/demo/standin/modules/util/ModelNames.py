"""Where the parts of a model are loaded from."""


class EmbeddingName:
    def __init__(self, uuid, model_name):
        self.uuid = uuid
        self.model_name = model_name


class ModelNames:
    def __init__(self, base_model="", lora="", embedding=None, additional_embeddings=None):
        self.base_model = base_model
        self.lora = lora
        self.embedding = embedding
        self.additional_embeddings = additional_embeddings or []

    def all_embedding(self):
        return [*self.additional_embeddings, *([self.embedding] if self.embedding is not None else [])]
