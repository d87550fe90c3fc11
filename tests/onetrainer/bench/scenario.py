"""Several runs in one workspace, as a user has them over the days."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from . import configs
from .configs import Family, Schedule
from .recording import Recording
from .workers import BENCH, Batch, Bench, Job

DECAY = 0.9
HOOKS = BENCH / "hooks.py"
FAMILY = configs.SD15_LORA


class Scenario:
    """Runs that share a workspace, begun from a copy of a first part where there is one."""

    def __init__(self, bench: Bench, name: str, *, family: Family = FAMILY, begin: Path | None = None) -> None:
        self.bench, self.name, self.family = bench, name, family
        self.run = bench.new_folder(name)
        if begin is not None:
            shutil.copytree(begin / "workspace", self.run / "workspace")

    def start(
        self,
        *,
        plugin: bool = True,
        actions: dict[int, tuple[str, ...]] | None = None,
        hook: str = "initial_weights",
        **options: Any,
    ) -> Batch:
        """Queue a run in the workspace; ``ema_select`` are the section's keys, ``hook`` is one of ``hooks.py``."""
        section = options.pop("ema_select", {})
        overrides: dict[str, Any] = options.pop("overrides", {})
        if plugin:
            overrides = {**overrides, "ema_select": {"enabled": True, **section}}
        config = self.bench.config(
            self.family, run=self.run, **{"ema": "CPU", "ema_decay": DECAY, **options}, overrides=overrides
        )
        job = Job(self.name, config, reseed=True, record=("live", "ema"), actions=actions or {}, hook=(HOOKS, hook))
        return self.bench.start([job], plugin=plugin)

    def finish(self, **options: Any) -> Recording:
        """Queue a run and wait for its end."""
        return self.start(**options).results()[0].require()

    def resume(self, *, plugin: bool = True, **options: Any) -> Batch:
        """Queue a run that continues the last backup."""
        overrides = {**options.pop("overrides", {}), "continue_last_backup": True}
        return self.start(plugin=plugin, overrides=overrides, **options)

    @property
    def initial(self) -> list[Tensor]:
        """The weights that the last run in the workspace began with."""
        return list(load_file(self.run / "workspace" / "initial.safetensors").values())


def steps(epochs: int, **events: Any) -> Schedule:
    """Four steps an epoch."""
    return Schedule(epochs=epochs, steps=4, **events)
