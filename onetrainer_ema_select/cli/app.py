"""The command `onetrainer-ema-select`: its verbs, and how errors are shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from onetrainer_ema_select import __version__
from onetrainer_ema_select.cli import compare, demo, disable, doctor, enable, export, inspect, synthesize, train
from onetrainer_ema_select.cli import list as list_verb
from onetrainer_ema_select.cli import report as report_verb
from onetrainer_ema_select.errors import EmaSelectError

app = typer.Typer(
    name="onetrainer-ema-select",
    help="Keep, save and choose between the EMA and the non-EMA weights of a OneTrainer run.",
    epilog="New here? Try: onetrainer-ema-select demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(asked: bool) -> None:
    """Print the version and leave, where `--version` was given."""
    if asked:
        typer.echo(f"onetrainer-ema-select {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before the verb."""


app.command("enable", epilog=enable.EXAMPLE)(enable.enable)
app.command("disable", epilog=disable.EXAMPLE)(disable.disable)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.command("train", epilog=train.EXAMPLE, context_settings=train.CONTEXT_SETTINGS)(train.train)
app.command("list", epilog=list_verb.EXAMPLE)(list_verb.list_workspace)
app.command("inspect", epilog=inspect.EXAMPLE)(inspect.inspect)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.command("synthesize", epilog=synthesize.EXAMPLE)(synthesize.synthesize)
app.command("compare", epilog=compare.EXAMPLE)(compare.compare)
app.command("report", epilog=report_verb.EXAMPLE)(report_verb.report)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)


def main() -> None:
    """Run the command line: exit code 0 done, 1 could not, 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        # a console that cannot show a character of a path must not turn a report into a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        # also where it runs as `python -m`: the examples name it so
        app(prog_name="onetrainer-ema-select")
    except EmaSelectError as error:
        # says itself what is wrong and what to do
        typer.echo(str(error), err=True)
        sys.exit(1)
