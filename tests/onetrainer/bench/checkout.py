"""Finds OneTrainer, makes private copies of its checkout, and runs its python."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_COPIED = ("venv", ".venv", ".git", "__pycache__", "workspace", "workspace-cache", "models")
TIMEOUT_SECONDS = 300

# What an older OneTrainer cannot do at all is mended in the copy, so that the plugin can be tested with it: before
# 23df3832 no Stable Cascade can be fine-tuned, before f89bbb3e no LoRA of SDXL's text encoders loaded from a backup.
# File, what stands there, what should.
_OWN_KEYS = "can pop states\n        state_dict = {k: v for (k, v) in state_dict.items() if k.startswith(self.prefix"
MENDED = (
    (
        Path("modules", "modelSetup", "WuerstchenFineTuneSetup.py"),
        "model.text_encoder, config.text_encoder",
        "model.prior_text_encoder, config.text_encoder",
    ),
    (
        Path("modules", "module", "LoRAModule.py"),
        f"{_OWN_KEYS})}}",
        f"{_OWN_KEYS} + '.' * bool(self.prefix))}}",
    ),
)


@functools.cache
def package_folder() -> Path:
    """A folder that holds the package under test, the one that is imported here, and nothing else.

    A copy: the rest of the site-packages it may be installed in (another torch) is not for OneTrainer's python.
    """
    import onetrainer_ema_select

    folder = Path(tempfile.mkdtemp(prefix="package-under-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(onetrainer_ema_select.__file__).resolve().parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@dataclass(frozen=True)
class Host:
    """A OneTrainer checkout that is only read, its python, its configuration's version number and its commit."""

    directory: Path
    python: Path
    config_version: int
    commit: str


def find_host() -> Host | str:
    """The OneTrainer to test with, or the reason why there is none."""
    directory = Path(os.environ.get("ONETRAINER_DIR") or Path.home() / "OneTrainer").expanduser()
    source = directory / "modules" / "util" / "config" / "TrainConfig.py"
    if not source.is_file():
        return f"no OneTrainer at {directory} (set ONETRAINER_DIR)"
    pythons = [directory / "venv" / part for part in ("bin/python", "Scripts/python.exe")]
    python = next((path for path in pythons if path.is_file()), None)
    if python is None:
        return f"{directory} has no venv (run OneTrainer's install script)"
    version = re.search(r"config_version\s*=\s*(\d+)", source.read_text(encoding="utf-8"))
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "0" * 40
    return Host(directory, python, int(version.group(1)) if version else 0, commit)


def copy_checkout(host: Host, destination: Path) -> Path:
    """Copy the checkout without what is large or private, with just enough git to name its revision."""
    shutil.copytree(host.directory, destination, ignore=shutil.ignore_patterns(*NOT_COPIED))
    git = destination / ".git"
    (git / "objects").mkdir(parents=True)
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/master\n", encoding="utf-8")
    (git / "refs" / "heads" / "master").write_text(f"{host.commit}\n", encoding="utf-8")
    for name, wrong, right in MENDED:
        text = (destination / name).read_text(encoding="utf-8")
        (destination / name).write_text(text.replace(wrong, right), encoding="utf-8")
    return destination


def host_environment(*, package: Path | None) -> dict[str, str]:
    """The environment for OneTrainer's python: offline, one thread, ``package`` (a folder) importable or not."""
    kept = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    more = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**kept, **more, **({"PYTHONPATH": str(package)} if package else {})}


def run_python(
    host: Host,
    arguments: Sequence[object],
    *,
    cwd: Path,
    package: Path | None = None,
    more: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run OneTrainer's python to its end, output captured; the caller looks at the exit code.

    ``more`` is laid over the environment.
    """
    return subprocess.run(
        [str(host.python), *map(str, arguments)],
        cwd=cwd,
        env={**host_environment(package=package), **(more or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
