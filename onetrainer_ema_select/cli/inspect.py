"""`inspect`: what one backup or model holds, where it comes from, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onetrainer_ema_select.cli.common import JsonOption, OneTrainerOption, echo_json
from onetrainer_ema_select.origin import PACKAGE

EXAMPLE = f"Example: {PACKAGE} inspect models/model.safetensors"


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A backup, a snapshot, a parked EMA, or a model: a file or a folder.")
    ],
    *,
    every: Annotated[bool, typer.Option("--all", help="Show every block, not only the 12 furthest apart.")] = False,
    onetrainer: OneTrainerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the sets of a backup or model file: sizes, lengths, dtypes, origin, and how far the sets are apart.

    Says in one sentence what it is good for. Every tensor is read, to find NaN and Inf. A saved model is also
    compared with the other set of the same moment, if that lies beside it. A backup made without the plugin has no
    names for its EMA: --onetrainer DIR has OneTrainer say them.
    """
    # torch is imported here, so that `--help` answers at once
    from onetrainer_ema_select.cli.inspection import inspect_path
    from onetrainer_ema_select.cli.inspection_text import report_json, report_lines

    report = inspect_path(path, onetrainer=onetrainer)
    if as_json:
        echo_json(report_json(report))
        return
    for line in report_lines(report, every=every):
        typer.echo(line)
