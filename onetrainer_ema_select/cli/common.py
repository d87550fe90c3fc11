"""What several verbs share: how the OneTrainer folder is named, and how reports are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from onetrainer_ema_select.host.locate import find_onetrainer

WHERE = "OneTrainer's folder. Default: $ONETRAINER_DIR, the current folder or its parents, ~/OneTrainer."

DirectoryArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR",
        show_default=False,
        help=WHERE,
    ),
]
OneTrainerOption = Annotated[
    Path | None,
    typer.Option(
        "--onetrainer",
        metavar="DIR",
        show_default=False,
        help=WHERE,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for other programs, not text.")]


def named_onetrainer(directory: Path | None, onetrainer: Path | None) -> Path:
    """The OneTrainer folder from the two ways of naming it, or from where it usually is.

    Raises:
        typer.BadParameter: Both were given and differ.
        HostNotFoundError: It is not one, or none was found.
    """
    if directory is not None and onetrainer is not None and directory.absolute() != onetrainer.absolute():
        raise typer.BadParameter(f"DIR is {directory} and --onetrainer is {onetrainer}: give one of them.")
    return find_onetrainer(directory if directory is not None else onetrainer)


def echo_json(report: object) -> None:
    """Print a report as JSON; paths become text.

    Where the stream's encoding lacks a character, all that is not ASCII is escaped: a path with a question mark in
    the place of a letter would be another path to the program that reads it.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(report, indent=2, default=str)
    typer.echo(text)


def size_text(size: int) -> str:
    """A number of bytes, for people: `512 B`, `1.4 MB`, `6.9 GB` (thousands, as file managers count)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
