"""The demonstration's steps: real runs of the `train` verb in a copy of the stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.errors import EmaSelectError

PACKAGE = "onetrainer-ema-select"
STANDIN = "standin"
CONFIG = "run.json"
WORKSPACE = "workspace"

#: What the run's config says beyond OneTrainer's defaults, less the parts that are the plugin's subject.
BASE_CONFIG: dict[str, object] = {
    "training_method": "FINE_TUNE",
    "workspace_dir": WORKSPACE,
    "output_model_destination": "models/1.safetensors",
    "output_model_format": "LEGACY_SAFETENSORS",
    "concepts": [],
    "samples": [],
    "epochs": 20,
    "backup_after_unit": "NEVER",
    "ema_update_step_interval": 1,
}

#: What a user adds for the plugin; shown in the first step.
PLUGIN_CONFIG: dict[str, object] = {
    "ema": "CPU",
    "ema_select": {"enabled": True, "milestones": "10 epochs"},
}

# OneTrainer's progress bars move the cursor; what is left is its text.
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SHOWN = ("[ema_select] ", "Saving ", "Creating Backup ")


@dataclass(frozen=True)
class Step:
    """One run.

    Attributes:
        title: What it shows.
        text: What happens and why, for people.
        overrides: ``KEY=VALUE`` for OneTrainer's ``--config-value``.
    """

    title: str
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Arguments of the plugin's command; run in the demonstration's folder."""
        values = [part for override in self.overrides for part in ("--config-value", override)]
        return ["train", "--onetrainer", STANDIN, "--config-path", CONFIG, *values]


STEPS = (
    Step(
        "Train with EMA, and get both sets",
        "20 epochs. At the milestone after epoch 10 and at the end, the EMA weights and the weights as they were "
        "trained (non-EMA) are saved side by side. The backup at the end holds both.",
    ),
    Step(
        "Go on with EMA switched off",
        "10 more epochs from the non-EMA weights. Plain OneTrainer would lose the EMA here; the plugin sets it "
        "aside (it is parked).",
        ("continue_last_backup=true", "epochs=30", "ema=OFF", "output_model_destination=models/2.safetensors"),
    ),
    Step(
        "Switch EMA on again",
        "10 more epochs. The parked EMA is taken up again.",
        ("continue_last_backup=true", "epochs=40", "ema=CPU", "output_model_destination=models/3.safetensors"),
    ),
    Step(
        "Go on from the EMA weights instead",
        "10 more epochs that begin with the EMA as the weights: one key chooses the set that a resumed run loads.",
        (
            "continue_last_backup=true",
            "epochs=50",
            "ema_select.resume_weights=EMA",
            "output_model_destination=models/4.safetensors",
        ),
    ),
)


def prepare(folder: Path) -> None:
    """Put the stand-in and the run's config into a folder.

    Raises:
        EmaSelectError: The folder is not empty, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise EmaSelectError(
            f"{folder} is not empty, and the demonstration would mix its files with what is there. Name a new or "
            f"empty folder: {PACKAGE} demo --output DIR",
            path=str(folder),
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy_standin(folder / STANDIN)
        config = json.dumps({**BASE_CONFIG, **PLUGIN_CONFIG}, indent=2)
        (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    except OSError as error:
        raise EmaSelectError(
            f"The demonstration cannot write to {folder}: {error.strerror or error}. Name a folder of yours with: "
            f"{PACKAGE} demo --output DIR",
            path=str(folder),
        ) from error


def command_text(step: Step, *, windows: bool = os.name == "nt") -> str:
    """The step's command, to be typed in the demonstration's folder.

    Args:
        step: The step.
        windows: Whether it must be one line: the shells there do not agree on how to break one.
    """
    program = PACKAGE
    if shutil.which(PACKAGE) is None:
        python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
        program = f"{python} -m onetrainer_ema_select"
    lines = [f"{program} train", f"--onetrainer {STANDIN} --config-path {CONFIG}"]
    if not windows and len(f"{lines[0]} {lines[1]}") < 76:
        lines = [f"{lines[0]} {lines[1]}"]
    lines += [f"--config-value {override}" for override in step.overrides]
    return " ".join(lines) if windows else " \\\n    ".join(lines)


def run_step(step: Step, folder: Path) -> tuple[str, ...]:
    """Carry out a step.

    Returns:
        What it printed that matters here: the plugin's own lines, and what was saved.

    Raises:
        EmaSelectError: It failed; the message holds the end of its output.
    """
    # The package is found also where it is not installed but run from its source.
    start = (
        f"import sys; sys.path.append({str(Path(__file__).absolute().parents[2])!r}); "
        "from onetrainer_ema_select.cli.app import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *step.arguments],
        cwd=folder,
        # weights as few as these are no work for several threads, which would only wait for each other
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        # The run has got the same Ctrl-C and is about to end; its folder must not be removed under it.
        process.communicate()
        raise
    lines = clean_lines(output.decode("utf-8", errors="replace"))
    if process.returncode != 0:
        tail = "\n".join(lines[-15:])
        raise EmaSelectError(
            f"The run ended with exit code {process.returncode}. The end of what it printed:\n{tail}\n"
            f"To look closer, repeat the command in {folder}. If this is a fresh installation, please report it."
        )
    return tuple(line for line in lines if line.startswith(_SHOWN))


def clean_lines(output: str) -> list[str]:
    """The lines of a run's output without cursor movements, empty lines and progress bars."""
    lines = (_CONTROL.sub("", line).strip() for line in re.split(r"[\r\n]+", output))
    return [line for line in lines if line and not re.match(r"(epoch|step):\s+\d+%", line)]
