"""Workspaces as runs leave them, with pictures that look like something, for the page to be made of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from onetrainer_ema_select.manifest import (
    EmaRecord,
    LegRecord,
    Manifest,
    PostHocRecord,
    PowerTrackRecord,
    write_manifest,
)

#: Prompts in several scripts, and such as try to break a page.
PROMPTS = (
    "a lighthouse on a cliff at dusk, oil painting",
    "一只坐在窗台上的橘猫，清晨的阳光",
    '<script>window.broken = 1</script><img src=x onerror="window.broken=1">',
    "\"quotes\" 'single' </script></style><!-- & &amp; 100% #1 ?x=1 {{ 7 * 7 }} \u202egnirts \u2028 end",
    "very " * 60 + "long",
)


def kept(prompt: str) -> str:
    """As OneTrainer's folders are named (path_util.safe_filename)."""
    return "".join(filter(lambda x: str.isalnum(x) or x in " ._-#", prompt)).strip()[:32].strip()


def time_of(step: int) -> str:
    return f"2026-03-01_{12 + step // 3600:02d}-{step // 60 % 60:02d}-{step % 60:02d}"


def picture(*, seed: int, share: float, size: int, blur: float = 0.0) -> Image.Image:
    """A landscape that comes out of noise; `share` of it is there."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    hue = random.random(3)
    sky = np.stack([0.35 + 0.5 * hue[channel] * (1 - y) + 0.25 * y for channel in range(3)], -1)
    for ridge in range(4):
        phase, height = random.random() * 6, 0.45 + 0.13 * ridge
        line = height + 0.07 * np.sin(x * (5 + 3 * ridge) + phase) + 0.03 * np.sin(x * 17 + phase)
        colour = hue * (0.75 - 0.16 * ridge)
        sky[y > line] = colour
    image = Image.fromarray((np.clip(sky, 0, 1) * 255).astype(np.uint8))
    sun, radius = (int(size * random.random()), int(size * 0.2)), size // 11
    ImageDraw.Draw(image).ellipse((sun[0] - radius, sun[1] - radius, sun[0] + radius, sun[1] + radius), "#fff3d6")
    levels = np.asarray(image, dtype=np.float32)
    cell = random.normal(0, 1, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)
    grain = random.normal(0, 1, (size, size, 1))
    noise = (1 - share) * (70 * cell + 12 * grain) * (1 - blur) + 4 * grain
    return Image.fromarray(np.clip(levels * (0.45 + 0.55 * share) + noise, 0, 255).astype(np.uint8))


def add_samples(
    workspace: Path,
    prompts: Sequence[str] = PROMPTS,
    *,
    steps: Sequence[int] = (0, 100, 200, 300, 400),
    size: int = 64,
    sets: Sequence[str] = ("", " - no-ema"),
    ending: str = ".jpg",
    first: int = 0,
) -> int:
    """OneTrainer's samples; returns how many."""
    count = 0
    for number, prompt in enumerate(prompts, first):
        for postfix in sets:
            folder = workspace / "samples" / f"{number} - {kept(prompt)}{postfix}"
            folder.mkdir(parents=True, exist_ok=True)
            for step in steps:
                share = 1 - math.exp(-(step + 30) / 130) * (0.9 if postfix else 1.0)
                file = folder / f"{time_of(step)}-training-sample-{step}-{step // 100}-{step % 100}{ending}"
                blur = 0.0 if postfix else 0.45
                picture(seed=number, share=share, size=size, blur=blur).save(file, quality=90)
                count += 1
    return count


def add_config(workspace: Path, prompts: Sequence[str] = PROMPTS, *, ema: str = "CPU") -> Path:
    """OneTrainer's copy of its configuration."""
    file = workspace / "config" / f"{time_of(0)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    config = {"ema": ema, "epochs": 4, "samples": [{"prompt": prompt, "enabled": True} for prompt in prompts]}
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


def add_backup(backup: Path, *, step: int, epoch: int, **more: Any) -> None:
    """A whole backup of both sets, with the plugin's own file."""
    import torch
    from safetensors.torch import save_file

    for name in ("lora", "optimizer", "ema"):
        (backup / name).mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.zeros(4, 2)}, backup / "lora" / "lora.safetensors")
    torch.save({"state": {}}, backup / "optimizer" / "optimizer.pt")
    torch.save({"decay": 0.99, "ema_parameters": [torch.zeros(4, 2)]}, backup / "ema" / "ema.pt")
    progress = {"epoch": epoch, "epoch_step": 0, "epoch_sample": 0, "global_step": step}
    (backup / "meta.json").write_text(json.dumps({"train_progress": progress}), encoding="utf-8")
    add_manifest(backup, step=step, epoch=epoch, **more)


def add_manifest(
    backup: Path, *, step: int, epoch: int, leg: LegRecord | None = None, milestones: Sequence[str] = ()
) -> None:
    """The plugin's own file in a backup."""
    write_manifest(
        Manifest(
            kind="backup",
            plugin_version="1",
            created=f"2026-03-01T12:00:{step // 10 % 60:02d}+00:00",
            run="r",
            step=step,
            epoch=epoch,
            epoch_step=0,
            model_type="STABLE_DIFFUSION_15",
            training_method="LORA",
            parameters=(),
            ema=EmaRecord(
                file="ema/ema.pt", dtype="FLOAT_32", decay=0.99, update_step_interval=1, updates=step, step=step
            ),
            leg=leg or LegRecord(),
            milestones=tuple(milestones),
        ),
        backup / "ema_select",
    )


def add_validation(
    workspace: Path, steps: Sequence[int], *, concepts: Sequence[str] = ("portraits", "landscapes")
) -> None:
    """Validations of both sets; the EMA is better from the third on, and rises at the end."""
    path = workspace / "ema_select" / "validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for index, step in enumerate(steps):
            non_ema = 0.09 + 0.06 * math.exp(-step / 120) + 0.004 * math.sin(step)
            ema = 0.083 + 0.11 * math.exp(-step / 80)
            better = "EMA" if ema < non_ema else "NON_EMA"
            record = {
                "step": step, "epoch": step // 100, "batches": 32, "ema": ema, "non_ema": non_ema,
                "difference": ema - non_ema, "standard_error": 0.0009, "better": better,
                "sure": "clear" if index > 2 else "cannot be told", "run": "r", "leg": "",
                "concepts": [
                    {"label": name, "batches": 16, "ema": ema * (1 + place / 5), "non_ema": non_ema * (1 + place / 5)}
                    for place, name in enumerate(concepts)
                ],
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")


def add_drift(workspace: Path, steps: Sequence[int]) -> None:
    """How far the sets are apart."""
    path = workspace / "ema_select" / "drift.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for step in steps:
            apart = 0.02 * (1 - math.exp(-step / 60)) + 0.002 * math.sin(step / 7)
            values = {
                "step": step, "distance": apart, "distance/unet": apart * 1.1, "distance/text_encoder": apart * 0.5,
                "decay_per_step": (1 + step) / (10 + step), "half_life_steps/EMA": min(69.0, 0.08 * step + 1),
                "half_life_steps/POST_HOC_0.05": 0.03 * step + 1, "half_life_steps/POST_HOC_0.1": 0.07 * step + 1,
            }  # fmt: skip
            file.write(json.dumps({"run": "r", "leg": "", **values}) + "\n")


def add_snapshots(workspace: Path, steps: Sequence[int], *, sigma_rels: Sequence[float] = (0.05, 0.1)) -> None:
    """Post-hoc snapshots' manifests, without weights."""
    for step in steps:
        folder = workspace / "ema_select" / "post_hoc" / "backup" / f"{time_of(step)}-snapshot-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        record = PostHocRecord(
            tracks=tuple(PowerTrackRecord(sigma_rel=one, file=f"{one}.safetensors") for one in sigma_rels),
            dtype="FLOAT_32", images=step, time=step, updates=step, interval=1, update_step_interval=1, stretch="s",
        )  # fmt: skip
        manifest = Manifest(
            kind="snapshot", plugin_version="0", run="r", step=step, epoch=step // 100, epoch_step=0, parameters=(),
            post_hoc=record,
        )  # fmt: skip
        write_manifest(manifest, folder)


def add_tensorboard(workspace: Path, steps: int) -> None:
    """OneTrainer's curves, by torch's own writer."""
    from torch.utils.tensorboard import SummaryWriter

    random = np.random.default_rng(1)
    board = SummaryWriter(str(workspace / "tensorboard" / time_of(0)))
    smooth = 0.2
    for step in range(steps):
        loss = 0.1 + 0.08 * math.exp(-step / 90) + abs(random.normal(0, 0.03))
        smooth = 0.97 * smooth + 0.03 * loss
        board.add_scalar("loss/train_step", loss, step)
        board.add_scalar("smooth_loss/train_step", smooth, step)
    board.close()
