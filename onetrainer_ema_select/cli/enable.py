"""`enable`: the plugin starts with OneTrainer."""

from __future__ import annotations

import typer

from onetrainer_ema_select.cli.common import DirectoryArgument, OneTrainerOption, named_onetrainer
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.host.locate import python_without_package
from onetrainer_ema_select.origin import PACKAGE, install_source

EXAMPLE = f"Example: {PACKAGE} enable ~/OneTrainer"


def enable(directory: DirectoryArgument = None, onetrainer: OneTrainerOption = None) -> None:
    """Let the plugin start with OneTrainer: puts one small file into its folder, and nothing else.

    Nothing changes in a run until its config asks for the plugin.
    """
    folder = named_onetrainer(directory, onetrainer)
    renewed = dropin.is_enabled(folder)
    path = dropin.enable(folder)
    typer.echo(f"{'Enabled already, renewed' if renewed else 'Enabled'}: {path}")
    if python := python_without_package(folder):
        typer.echo(
            f"OneTrainer has a Python of its own, and the plugin is not installed there yet:\n"
            f'  "{python}" -m pip install {install_source()}'
        )
    typer.echo(
        "The plugin stays off until a run's config turns it on:\n"
        '  "ema_select": {"enabled": true}\n'
        "in the config JSON, or on the command line of scripts/train.py:\n"
        "  --config-value ema_select.enabled=true"
    )
