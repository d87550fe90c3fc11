"""`disable`: OneTrainer starts without the plugin again."""

from __future__ import annotations

import typer

from onetrainer_ema_select.cli.common import DirectoryArgument, OneTrainerOption, named_onetrainer
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.origin import PACKAGE

EXAMPLE = f"Example: {PACKAGE} disable ~/OneTrainer"


def disable(directory: DirectoryArgument = None, onetrainer: OneTrainerOption = None) -> None:
    """Take out the file that `enable` put into OneTrainer's folder, and nothing else.

    Backups and models stay as they are; plain OneTrainer can use them.
    """
    folder = named_onetrainer(directory, onetrainer)
    path = dropin.dropin_path(folder)
    if dropin.disable(folder):
        typer.echo(f"Disabled: {path} is removed.")
    else:
        typer.echo(f"Nothing to do: the plugin was not enabled, there is no {path}.")
