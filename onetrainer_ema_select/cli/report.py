"""`report`: one HTML page that shows which set is better."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from onetrainer_ema_select.cli.common import JsonOption, echo_json, size_text
from onetrainer_ema_select.cli.export import progress_into
from onetrainer_ema_select.cli.table import wrapped
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.report import Made, make_report

EXAMPLE = f"Example: {PACKAGE} report workspace/run --open"


class Language(str, Enum):
    """Languages of the page."""

    AUTO = "auto"
    ENGLISH = "en"
    CHINESE = "zh"


def report(
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="A run's workspace, as workspace_dir in its config.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", show_default="WORKSPACE/ema_select/report.html", help="The page."
        ),
    ] = None,
    language: Annotated[
        Language, typer.Option(help="What it begins in; auto: as the browser. It holds both.")
    ] = Language.AUTO,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one HTML page of a run: its line, samples of both sets side by side, curves, and what to do.

    The page holds everything but the samples' originals, which it links: nothing is loaded from anywhere. What the
    workspace lacks, the page names.
    """
    # None: off where nobody watches, as in a log file
    with tqdm(total=0, delay=2, file=sys.stderr, leave=False, disable=None) as bar:
        made = make_report(
            workspace,
            output=output,
            language="" if language is Language.AUTO else language.value,
            progress=progress_into(bar),
        )
        bar.clear()  # closing clears only what `update` has shown
    if as_json:
        echo_json({"schema": 1, "workspace": workspace.absolute(), **asdict(made)})
    else:
        print_made(made)
    if show and not webbrowser.open(made.path.as_uri()):
        typer.echo(f"No browser could be opened. Open it yourself: {made.path}", err=True)


def print_made(made: Made) -> None:
    """Say what was made, for people."""
    typer.echo(f"Wrote {made.path} ({size_text(made.size_bytes)})")
    sure = {"clear": "clear", "probable": "probable"}.get(made.sure, "cannot be told")
    shown = f"{made.samples} samples" + (f" ({made.left_out} more were left out)" if made.left_out else "")
    typer.echo(f"It shows {shown} and {len(made.charts)} curves.")
    for line in wrapped(f"{made.headline} (how sure: {sure})"):
        typer.echo(line)
    if made.missing:
        typer.echo("Missing:")
    for text in made.missing:
        for line in wrapped(text, indent="  "):
            typer.echo(line)
