"""`list`: what lies in a workspace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from onetrainer_ema_select.cli.common import PACKAGE, JsonOption, console, echo_json, size_text
from onetrainer_ema_select.workspace import BackupView, SaveView, WorkspaceView, scan_workspace

EXAMPLE = f"Example: {PACKAGE} list workspace/run"


def list_workspace(
    workspace: Annotated[Path, typer.Argument(help="A run's workspace, as workspace_dir in its config.")],
    as_json: JsonOption = False,
) -> None:
    """Show backups, milestones and saves: step, epoch, sets, size, whether each is complete and why not.

    Also says what "continue last backup" would load, in plain OneTrainer and with the plugin.
    """
    view = scan_workspace(workspace)
    if as_json:
        echo_json({"workspace": workspace.absolute(), **asdict(view)})
        return
    output = console()
    for title, backups in (("Backups", view.backups), ("Milestones", view.milestones)):
        if backups:
            output.print(backup_table(title, backups))
    if view.saves:
        output.print(save_table(view.saves))
    for parked in view.parked:
        stopped = "" if parked.step is None else f", stopped at step {parked.step}"
        typer.echo(f"Parked EMA: {parked.path.name}{stopped}, {size_text(parked.size_bytes)}")
    if not (view.backups or view.milestones or view.saves or view.parked):
        typer.echo(f"No backups and no saves in {workspace}.")
    for line in continue_lines(view):
        typer.echo(line)


def continue_lines(view: WorkspaceView) -> list[str]:
    """What "continue last backup" would load, and why that may not be the same for both."""
    if not view.backups:
        return ['"Continue last backup" would find nothing and start anew.']
    lines = []
    if view.plain_continue == view.our_continue:
        lines.append(f'"Continue last backup" would load {view.our_continue}, with and without the plugin.')
    else:
        ours = view.our_continue or "nothing (no backup is complete)"
        lines.append(f'"Continue last backup" would load {ours} with the plugin.')
        lines.append(f"Plain OneTrainer would try {view.plain_continue}, and fail if that is not complete.")
    return lines + list(view.skipped)


def backup_table(title: str, backups: Iterable[BackupView]) -> Table:
    """One row for each backup."""
    table = Table(title=title, title_justify="left")
    for heading in ("name", "step", "epoch", "sets", "size", "complete", "leg"):
        table.add_column(heading, justify="right" if heading in ("step", "epoch", "size") else "left")
    for backup in backups:
        complete = "yes" if backup.complete else "NO"
        table.add_row(
            escape(backup.name),
            count(backup.step),
            count(backup.epoch),
            ", ".join(backup.sets + tuple(f"parked {escape(name)}" for name in backup.parked)) or "-",
            size_text(backup.size_bytes),
            f"{complete}: {escape(backup.reason)}" if backup.reason else complete,
            escape(backup.leg) or "without the plugin",
        )
    return table


def save_table(saves: Iterable[SaveView]) -> Table:
    """One row for each saved model."""
    table = Table(title="Saves", title_justify="left")
    for heading in ("name", "set", "step", "epoch", "milestone", "size", "other set"):
        table.add_column(heading, justify="right" if heading in ("step", "epoch", "size") else "left")
    for save in saves:
        table.add_row(
            escape(save.path.name),
            save.set or "not told",
            count(save.step),
            count(save.epoch),
            escape(save.milestone or "-"),
            size_text(save.size_bytes),
            escape(save.partner.name) if save.partner else "-",
        )
    return table


def count(number: int | None) -> str:
    """A number that may not be known."""
    return "?" if number is None else str(number)
