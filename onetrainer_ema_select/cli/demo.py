"""`demo`: the whole cycle in a minute, without OneTrainer."""

from __future__ import annotations

import json
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onetrainer_ema_select.cli.common import size_text
from onetrainer_ema_select.origin import PACKAGE

if TYPE_CHECKING:
    from onetrainer_ema_select.demo.results import Row

EXAMPLE = f"Example: {PACKAGE} demo --output ema-select-demo"

# A line of dashes below the heading and nothing else: every console can show it.
_PLAIN_BOX = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

_NEXT = (
    "With your own OneTrainer (~/OneTrainer stands for its folder), look whether the two fit together, and let the "
    "plugin start with it:",
    f"  {PACKAGE} doctor ~/OneTrainer\n  {PACKAGE} enable ~/OneTrainer",
    'Then set "ema" to GPU or CPU in your config and add the section "ema_select", as in run 1. OneTrainer\'s window '
    "and scripts work as always. To train once without enabling anything:",
    f"  {PACKAGE} train --onetrainer ~/OneTrainer --config-path YOUR.json",
    "What lies in a workspace, and what a resumed run would load:",
    f"  {PACKAGE} list WORKSPACE",
)


def demo(
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="A new folder to work in; it is kept."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
) -> None:
    """Show the whole cycle in about a minute on a CPU: needs no OneTrainer, no GPU and no download.

    A tiny diffusion model trains in a stand-in for OneTrainer's folder. Both sets are saved, a run is resumed
    with EMA off, with EMA on, and from the EMA weights.
    """
    console = Console(highlight=False)
    if output is not None:
        show(output.absolute(), console)
        console.print(f"Everything is in {output.absolute()}; the commands above work there.", soft_wrap=True)
        return
    if keep:
        folder = Path(tempfile.mkdtemp(prefix="ema-select-demo-"))
        show(folder, console)
        console.print(f"Everything is in {folder}; the commands above work there.", soft_wrap=True)
        return
    with tempfile.TemporaryDirectory(prefix="ema-select-demo-", ignore_cleanup_errors=True) as temporary:
        show(Path(temporary), console)
    console.print("All this was in a temporary folder, which is removed now. To keep it and try the commands:")
    console.print(f"  {PACKAGE} demo --output ema-select-demo")


def show(folder: Path, console: Console) -> None:
    """Carry out all steps in a folder and tell of them.

    Raises:
        EmaSelectError: A step failed, or has not left what it should.
    """
    # torch takes a second or two; `--help` must not wait for it
    from onetrainer_ema_select.demo.results import collect
    from onetrainer_ema_select.demo.runner import PLUGIN_CONFIG, STEPS, command_text, prepare, run_step

    prepare(folder)
    console.print(
        f"{len(STEPS)} short runs of a tiny diffusion model in a stand-in for OneTrainer's folder, about half a minute "
        "on a CPU. The plugin does here what it does in OneTrainer. Everything is in:"
    )
    console.print(Text(f"  {folder}"), soft_wrap=True)
    told: set[str] = set()
    for number, step in enumerate(STEPS, start=1):
        console.print()
        console.rule(Text(f"{number}. {step.title}", style="bold"), align="left", characters="-")
        console.print(step.text)
        if number == 1:
            console.print("\nWhat asks for it in the config run.json:")
            console.print(Text(config_text(PLUGIN_CONFIG), style="cyan"))
        console.print()
        console.print(Text(f"$ {command_text(step)}", style="bold green"), soft_wrap=True)
        with console.status("training ...", spinner="line"):
            lines = run_step(step, folder)
        for line in lines:
            if line not in told:
                console.print(wrapped(line, console.width))
        told.update(lines)
    console.print()
    console.rule(Text("What lies where", style="bold"), align="left", characters="-")
    console.print(table(collect(folder)))
    console.print()
    console.print("(apart: the distance between the two sets of that moment, in percent of the weights' own length)")
    console.print()
    console.rule(Text("What to do next", style="bold"), align="left", characters="-")
    for paragraph in _NEXT:
        console.print(Text(paragraph))
    console.print()


def wrapped(line: str, width: int) -> Text:
    """A line of a run's output, broken between words; what the plugin says stands out."""
    text = textwrap.fill(line, width - 1, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return Text(text, style="" if line.startswith("[ema_select]") else "dim", no_wrap=True, overflow="ignore")


def config_text(config: dict[str, object]) -> str:
    """Keys of a config as they stand in its JSON."""
    return "\n".join(f'  "{key}": {json.dumps(value)},' for key, value in config.items())


def table(rows: list[Row]) -> Table:
    """One line for each file or folder, below the folder that it lies in."""
    result = Table(box=_PLAIN_BOX, show_edge=False, pad_edge=False, padding=0)
    result.add_column("file", overflow="fold")
    result.add_column("set", no_wrap=True)
    for heading in ("step", "size", "apart"):
        result.add_column(heading, justify="right", no_wrap=True)
    folder = ""
    for row in rows:
        if row.folder != folder:
            if folder:
                result.add_row()
            folder = row.folder
            result.add_row(Text(f"in {folder}:", style="bold"))
        apart = "" if row.apart is None else f"{row.apart:.1%}"
        result.add_row(Text(row.name), row.sets, row.step, size_text(row.size_bytes), apart)
    return result
