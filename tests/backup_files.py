"""Builds backups as OneTrainer writes them, small, with weights that the tests know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrainer_ema_select.manifest import (
    EmaRecord,
    Manifest,
    ParameterRecord,
    PostHocRecord,
    PowerTrackRecord,
    StretchRecord,
    write_manifest,
)

NAME = "2026-08-19_11-00-00-backup-8-4-1"


def tensors(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random weights; none are equal."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def write_backup(
    folder: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    *,
    averages: Sequence[Tensor] | None = None,
    names: Sequence[str] | None = None,
    config: Mapping[str, object] | None = None,
    optimizer: bool = True,
) -> Path:
    """Write a backup.

    Args:
        folder: Its folder.
        files: Tensors by file, relative to the folder.
        averages: What `ema.pt` holds.
        names: Of the averages; a manifest is written where they are given.
        config: What OneTrainer's own copy of the configuration says.
        optimizer: Whether there is an optimizer's state.
    """
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
        if path.parent.name not in ("lora", "embeddings"):
            (path.parent / "config.json").write_text("{}", encoding="utf-8")
    if optimizer:
        (folder / "optimizer").mkdir(parents=True)
        torch.save({"state": {}}, folder / "optimizer" / "optimizer.pt")
    if averages is not None:
        (folder / "ema").mkdir(parents=True, exist_ok=True)
        torch.save({"decay": 0.99, "ema_parameters": list(averages)}, folder / "ema" / "ema.pt")
    progress = {"epoch": 4, "epoch_step": 1, "epoch_sample": 2, "global_step": 8}
    (folder / "meta.json").write_text(json.dumps({"train_progress": progress}), encoding="utf-8")
    if config is not None:
        (folder / "onetrainer_config").mkdir()
        (folder / "onetrainer_config" / "args.json").write_text(json.dumps(config), encoding="utf-8")
    if names is not None:
        write_manifest(manifest(names, averages or []), folder / "ema_select")
    return folder


def manifest(names: Sequence[str], averages: Sequence[Tensor], *, kind: str = "backup", file: str = "") -> Manifest:
    """What the plugin notes of these averages."""
    records = tuple(
        ParameterRecord(name=name, shape=tuple(average.shape), dtype=str(average.dtype).removeprefix("torch."))
        for name, average in zip(names, averages, strict=True)
    )
    return Manifest(
        kind=kind,
        plugin_version="0.1.0",
        run="a-run",
        step=8,
        epoch=4,
        epoch_step=1,
        model_type="STABLE_DIFFUSION_15",
        training_method="FINE_TUNE",
        parameters=records,
        ema=EmaRecord(
            file=file or "ema/ema.pt",
            dtype="FLOAT_32",
            decay=0.99,
            update_step_interval=2,
            updates=4,
            step=8,
        ),
    )


def park(folder: Path, named: Mapping[str, Tensor]) -> Path:
    """Write an average that was set aside."""
    folder.mkdir(parents=True)
    save_file(dict(named), folder / "ema.safetensors")
    write_manifest(
        manifest(list(named), list(named.values()), kind="parked", file="ema.safetensors"),
        folder,
    )
    return folder


def write_snapshot(
    folder: Path,
    tracks: Mapping[float, Mapping[str, Tensor]],
    *,
    step: int,
    run: str = "a-run",
    stretch: str = "s",
    line: Sequence[tuple[str, int]] = (),
    images: float | None = None,
) -> Path:
    """Write a snapshot of post-hoc tracks; one step is one image."""
    folder.mkdir(parents=True)
    records = []
    for sigma_rel, named in tracks.items():
        file = f"sigma_rel-{sigma_rel:g}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, folder / file)
        records.append(PowerTrackRecord(sigma_rel=sigma_rel, file=file))
    time = float(step) if images is None else images
    named = next(iter(tracks.values()))
    content = manifest(list(named), list(named.values()), kind="snapshot")
    record = PostHocRecord(
        tracks=tuple(records),
        dtype="FLOAT_32",
        images=time,
        time=time,
        updates=step,
        interval=1.0,
        update_step_interval=1,
        stretch=stretch,
        line=tuple(StretchRecord(id=each, until_step=until) for each, until in line),
    )
    write_manifest(content.model_copy(update={"step": step, "run": run, "ema": None, "post_hoc": record}), folder)
    return folder
