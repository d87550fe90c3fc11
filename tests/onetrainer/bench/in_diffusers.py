"""Loads what was exported as anybody would who has diffusers, and renders a picture of it.

``python in_diffusers.py TASKS RESULTS [PEFT]``: each task is ``{"model": folder}`` or ``{"base": folder, "lora":
file}``; its result is a picture's fingerprint, and what diffusers had to say about the keys. Diffusers loads adapters
with the package ``peft`` alone, which is no part of OneTrainer's environment: ``PEFT`` is a folder that has it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

if len(sys.argv) > 3:
    sys.path.append(sys.argv[3])

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


class Heard(logging.Handler):
    """Collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.lines.append(record.getMessage())


def open_pipeline(folder: str) -> Any:
    """The pipeline that its index names, without a filter."""
    kind = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    if kind == "StableDiffusionXLPipeline":
        return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


def render(pipeline: Any) -> str:
    """A small picture's fingerprint."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    image = pipeline(
        "picture 1", num_inference_steps=2, height=64, width=64, generator=generator, output_type="np"
    ).images
    return hashlib.sha256(image.tobytes()).hexdigest()


def read_adapter(pipeline: Any, file: str) -> dict[str, Any]:
    """The adapter's weights by the names that diffusers gives them."""
    weights: dict[str, Any] = pipeline.lora_state_dict(str(Path(file).parent), weight_name=Path(file).name)[0]
    return weights


def unknown_keys(pipeline: Any, file: str) -> list[str]:
    """Keys of an adapter, as diffusers reads it, that no layer of the model belongs to; needs no ``peft``."""
    layers = {
        f"{part}.{name}"
        for part in ("unet", "text_encoder", "text_encoder_2")
        if getattr(pipeline, part, None) is not None
        for name, _ in getattr(pipeline, part).named_modules()
    }
    bases = {key: re.split("[._]lora", key.replace(".processor", ""))[0] for key in read_adapter(pipeline, file)}
    # A text encoder's layers have names of their own, which diffusers puts in later.
    renamed = {key: re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", base) for key, base in bases.items()}
    return [key for key, base in renamed.items() if base not in layers and f"{base}.0" not in layers]


def do(task: dict[str, str], *, peft: bool) -> dict[str, Any]:
    """One task."""
    heard = Heard()
    logging.getLogger("diffusers").addHandler(heard)
    pipeline = open_pipeline(task.get("model") or task["base"])
    result: dict[str, Any] = {}
    if "lora" in task:
        result["unknown"] = unknown_keys(pipeline, task["lora"])
        result["keys"] = len(read_adapter(pipeline, task["lora"]))
        if peft:
            pipeline.load_lora_weights(str(Path(task["lora"]).parent), weight_name=Path(task["lora"]).name)
            result["adapters"] = pipeline.get_list_adapters()
    result["picture"] = render(pipeline)
    result["said"] = [line for line in heard.lines if "key" in line]
    logging.getLogger("diffusers").removeHandler(heard)
    return result


if __name__ == "__main__":
    tasks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    done = [do(task, peft=len(sys.argv) > 3) for task in tasks]
    Path(sys.argv[2]).write_text(json.dumps(done), encoding="utf-8")
