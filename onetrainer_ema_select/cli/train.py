"""`train`: one run of OneTrainer with the plugin."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from onetrainer_ema_select.cli.common import OneTrainerOption
from onetrainer_ema_select.host import bootstrap
from onetrainer_ema_select.host.locate import TRAIN_SCRIPT, find_onetrainer
from onetrainer_ema_select.origin import PACKAGE

EXAMPLE = f"Example: {PACKAGE} train --config-path run.json --config-value ema_select.enabled=true"

#: What other options are passed on as they are; each of them takes one value.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

PathOption = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="As of OneTrainer.")]


def train(
    context: typer.Context,
    config_path: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The run's config, as OneTrainer's own --config-path."),
    ],
    preset_path: PathOption = None,
    secrets_path: PathOption = None,
    onetrainer: OneTrainerOption = None,
) -> None:
    """Train once with the plugin, with nothing enabled permanently.

    Runs OneTrainer's scripts/train.py with this Python. Other options are passed on, and the exit code back.
    """
    folder = find_onetrainer(onetrainer)
    files = {"--config-path": config_path, "--preset-path": preset_path, "--secrets-path": secrets_path}
    arguments: list[str] = []
    for option, file in files.items():
        if file is not None:
            arguments += [option, str(absolute_file(file, option=option, folder=folder))]
    arguments += context.args
    if not asks_for_plugin(Path(arguments[1]), context.args):
        typer.echo(
            f"{config_path} does not turn the plugin on, so this run is plain OneTrainer. "
            "To turn it on, add: --config-value ema_select.enabled=true",
            err=True,
        )
    raise typer.Exit(
        run(
            [
                sys.executable,
                str(Path(bootstrap.__file__).absolute()),
                str(folder / TRAIN_SCRIPT),
                *arguments,
            ],
            folder,
        )
    )


def absolute_file(file: Path, *, option: str, folder: Path) -> Path:
    """A file named relative to the current folder or, as OneTrainer's presets are, to OneTrainer's.

    Raises:
        typer.BadParameter: It is in neither.
    """
    for base in (Path.cwd(), folder):
        if (path := base / file.expanduser()).is_file():
            return path
    raise typer.BadParameter(f"There is no file {file} (looked in {Path.cwd()} and {folder}).", param_hint=option)


def asks_for_plugin(config: Path, arguments: list[str]) -> bool:
    """Whether the config or the command line sets `ema_select.enabled`; true where that cannot be told."""
    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--config-value" and (value or "".join(arguments[index + 1 : index + 2])).startswith(
            "ema_select.enabled="
        ):
            return True
    try:
        section = json.loads(config.read_text(encoding="utf-8")).get("ema_select")
    except (OSError, ValueError, AttributeError):
        return True  # OneTrainer will say what is wrong with the file
    return bool(section) and (not isinstance(section, dict) or "enabled" in section)


def run(command: list[str], folder: Path) -> int:
    """Run a command in a folder and wait, whatever signals arrive: they are for the run.

    Ctrl-C reaches the run by itself (it shares the terminal); what only this process gets, as from a service
    manager, is passed on. A second Ctrl-C must not leave the run alone either.

    Returns:
        The command's exit code; as shells put it, 128 and the signal's number where a signal ended it.
    """
    # a function, not SIG_IGN: the run would inherit that, and could no longer be interrupted
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
    child: subprocess.Popen[bytes] | None = None
    pending: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            pending.append(number)
        else:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    child = subprocess.Popen(command, cwd=folder)
    for number in pending:
        child.send_signal(number)
    code = child.wait()
    return code if code >= 0 else 128 - code
