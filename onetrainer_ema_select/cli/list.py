"""`list`: what lies in a workspace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from onetrainer_ema_select.cli.common import JsonOption, echo_json, size_text
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.workspace import (
    STRAY,
    BackupView,
    ParkedView,
    SaveView,
    WorkspaceView,
    scan_workspace,
)

EXAMPLE = f"Example: {PACKAGE} list workspace/run"


def list_workspace(
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="A run's workspace, as workspace_dir in its config.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show backups, milestones and saves: step, epoch, sets, size, whether each is complete and why not.

    Also says what "continue last backup" would load, in plain OneTrainer and with the plugin.
    """
    view = scan_workspace(workspace)
    if as_json:
        echo_json({"workspace": workspace.absolute(), **asdict(view)})
        return
    for title, backups in (("Backups", view.backups), ("Milestones", view.milestones)):
        if backups:
            print_block(f"{title}, newest first", backup_rows(backups))
    if view.saves:
        print_block("Saves", save_rows(view.saves))
    if view.parked:
        print_block("Parked EMA, to be taken up again by a run with EMA on", parked_rows(view.parked))
    if not (view.backups or view.milestones or view.saves or view.parked):
        typer.echo(f"No backups and no saves in {workspace}.\n")
    for line in continue_lines(view):
        typer.echo(line)


@dataclass(frozen=True)
class Line:
    """One thing in a workspace: the columns before its name, its name, and what else is to be said of it."""

    step: int | None
    epoch: int | None
    size_bytes: int
    sets: str
    name: str
    notes: tuple[str, ...] = ()


def print_block(title: str, lines: Sequence[Line]) -> None:
    """Print a heading and aligned columns. The long names come last, so that no terminal breaks the columns."""
    width = max(len("sets"), *(len(line.sets) for line in lines))
    typer.echo(title)
    typer.echo(f"  {'step':>6} {'epoch':>5} {'size':>8}  {'sets':<{width}}  name")
    for line in lines:
        step, epoch = ("-" if number is None else str(number) for number in (line.step, line.epoch))
        typer.echo(f"  {step:>6} {epoch:>5} {size_text(line.size_bytes):>8}  {line.sets:<{width}}  {line.name}")
        for note in line.notes:
            typer.echo(f"         {note}")
    typer.echo()


def backup_rows(backups: Iterable[BackupView]) -> list[Line]:
    """A line for each backup; what is not usual about one stands below it."""
    lines = []
    for backup in backups:
        sets = backup.sets + (("parked ema",) if backup.parked else ())
        notes = []
        if not backup.complete:
            notes.append(backup.reason if backup.reason == STRAY else f"NOT COMPLETE: {backup.reason}")
        else:
            notes += [f"problem: {backup.reason}"] if backup.reason else []
            notes.append(f"leg: {backup.leg}" if backup.leg else "made without the plugin")
        lines.append(
            Line(backup.step, backup.epoch, backup.size_bytes, ", ".join(sets) or "-", backup.name, tuple(notes))
        )
    return lines


def save_rows(saves: Iterable[SaveView]) -> list[Line]:
    """A line for each saved model, the two sets of a moment below each other."""
    return [
        Line(
            save.step,
            save.epoch,
            save.size_bytes,
            save.set or "not told",
            save.path.name,
            (f"milestone: {save.milestone}",) if save.milestone else (),
        )
        for save in saves
    ]


def parked_rows(parked: Iterable[ParkedView]) -> list[Line]:
    """A line for each average that was set aside; its step is the one it stopped at."""
    return [Line(one.step, None, one.size_bytes, "ema", one.path.name) for one in parked]


def continue_lines(view: WorkspaceView) -> list[str]:
    """What "continue last backup" would load, and why that may not be the same for both."""
    if not view.backups:
        return ['"Continue last backup" would find nothing and start anew.']
    if view.plain_continue == view.our_continue:
        return [f'"Continue last backup" would load, with and without the plugin: {view.our_continue}']
    lines = [f'"Continue last backup" would load, with the plugin: {view.our_continue or "nothing"}']
    lines.append(f"Plain OneTrainer would try: {view.plain_continue}")
    return lines + list(view.skipped)
