"""The one type of model that the stand-in knows, and its form as a folder of parts."""

import json
from pathlib import Path

from modules.model.BaseModel import BaseModel, BaseModelEmbedding
from modules.model.tiny import PARTS, NoiseScheduler
from safetensors.torch import load_file, save_file

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


class StableDiffusionModelEmbedding:
    def __init__(self, uuid, text_encoder_vector, placeholder, is_output_embedding):
        self.text_encoder_embedding = BaseModelEmbedding(
            uuid=uuid, placeholder=placeholder, vector=text_encoder_vector, is_output_embedding=is_output_embedding
        )


class StableDiffusionModel(BaseModel):
    def __init__(self, model_type):
        super().__init__(model_type)
        self.noise_scheduler = NoiseScheduler()
        self.unet = None
        self.text_encoder = None
        self.vae = None
        self.embedding = None
        self.additional_embeddings = []
        self.unet_lora = None
        self.text_encoder_lora = None
        self.lora_state_dict = None
        self.sd_config = {"model": {"target": "stand-in", "parameterization": "eps"}}

    def all_text_encoder_embeddings(self):
        every = [*self.additional_embeddings, *([self.embedding] if self.embedding is not None else [])]
        return [embedding.text_encoder_embedding for embedding in every]

    def encode_text(self, tokens):
        embeddings = self.all_text_encoder_embeddings()
        text = self.text_encoder(tokens, [e.vector for e in embeddings])
        for embedding in embeddings:
            if embedding.output_vector is not None:
                text = text + embedding.output_vector.mean(dim=0).to(text.dtype)
        return text

    def create_pipeline(self):
        return Pipeline({part: getattr(self, part) for part in PARTS})


class Pipeline:
    """The parts of a model as a folder, one sub-folder each."""

    def __init__(self, parts):
        self.parts = parts

    def to(self, device=None, dtype=None):
        for part in self.parts.values():
            part.to(device, dtype)
        return self

    def save_pretrained(self, destination):
        folder = Path(destination)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in self.parts.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps({"_class_name": type(part).__name__}))
            tensors = {key: tensor.contiguous() for key, tensor in part.state_dict().items()}
            save_file(tensors, folder / name / FILES[name], metadata={"format": "pt"})
        index = {name: ["stand-in", type(part).__name__] for name, part in self.parts.items()}
        (folder / "model_index.json").write_text(json.dumps(index, indent=1))

    @staticmethod
    def from_pretrained(source):
        parts = {name: part() for name, part in PARTS.items()}
        for name, part in parts.items():
            tensors = load_file(Path(source, name, FILES[name]))
            part.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
        return Pipeline(parts)
