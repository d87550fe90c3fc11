"""What tests of several folders build on: a folder that looks like OneTrainer, and backups in a workspace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import torch
from safetensors.torch import save_file
from xdist.scheduler import LoadScopeScheduling

MakeBackup = Callable[..., Path]
HERE = Path(__file__).parent
OWN_PROCESSES = ("test_cloud.py", "test_install.py", "test_ranks.py", "test_window.py")
"""Of the tests of the real OneTrainer, the files that start it themselves, whoever else is running."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Measure in one process, whatever the suite runs in."""
    if config.getoption("--benchmark-only", default=False):
        config.option.numprocesses, config.option.dist = None, "no"


class SharedPreparations(LoadScopeScheduling):
    """Keeps together what shares its preparations: a file's tests, and all that share the processes of OneTrainer.

    What starts its own has only the models to make once more, and ends about as late as the others this way.

    By node ids and not by `--dist=loadgroup`: pytest 9.2 has taken away what that one's marks are passed on by.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        if "onetrainer" not in file.parts[:-1]:
            return str(file)
        return "onetrainer, own processes" if file.name in OWN_PROCESSES else "onetrainer"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SharedPreparations:
    """Have the processes that the tests run in get them so."""
    return SharedPreparations(config, log)


@pytest.fixture
def onetrainer(tmp_path: Path) -> Path:
    """A folder that is recognised as OneTrainer; holds no code. Its path has a space in it."""
    root = tmp_path / "One Trainer"
    for name in ("modules/trainer/GenericTrainer.py", "modules/util/config/TrainConfig.py", "scripts/train.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("", encoding="utf-8")
    (root / "modules" / "modelSetup").mkdir()
    return root


@pytest.fixture
def make_backup() -> MakeBackup:
    """Writes a small whole backup, as OneTrainer does: `make_backup(workspace, name, step=4, method="LORA")`."""

    def make(
        workspace: Path, name: str, *, step: int = 4, epoch: int = 2, ema: bool = True, method: str = "LORA"
    ) -> Path:
        backup = workspace / "backup" / name
        weights = {"weight": torch.full((4, 2), float(step))}
        if method == "LORA":
            model = backup / "lora" / "lora.safetensors"
        elif method == "EMBEDDING":
            model = backup / "embeddings" / "0b2f.safetensors"
        else:
            model = backup / "unet" / "diffusion_pytorch_model.safetensors"
        model.parent.mkdir(parents=True)
        save_file(weights, model)
        if method == "FINE_TUNE":
            (backup / "model_index.json").write_text('{"unet": ["diffusers", "UNet"]}', encoding="utf-8")
        (backup / "optimizer").mkdir()
        torch.save({"state": {}}, backup / "optimizer" / "optimizer.pt")
        if ema:
            (backup / "ema").mkdir()
            torch.save({"decay": 0.9, "ema_parameters": list(weights.values())}, backup / "ema" / "ema.pt")
        progress = {"epoch": epoch, "epoch_step": 0, "epoch_sample": 0, "global_step": step}
        (backup / "meta.json").write_text(json.dumps({"train_progress": progress}), encoding="utf-8")
        return backup

    return make
