"""`list`: what lies in a workspace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from onetrainer_ema_select.checksums import Verdict, verify_backup, verify_model
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
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file, and compare it with its checksum where there is one.")
    ] = False,
) -> None:
    """Show backups, milestones and saves: step, epoch, sets, size, whether each is complete and why not.

    Also says what "continue last backup" would load, in plain OneTrainer and with the plugin. With --verify the
    exit code is 1 if something is damaged.
    """
    view = scan_workspace(workspace)
    verdicts = verify_all(view) if verify else {}
    if as_json:
        report = {"workspace": workspace.absolute(), **asdict(view)}
        if verify:
            report["verified"] = {str(path): asdict(verdict) for path, verdict in verdicts.items()}
        echo_json(report)
    else:
        print_view(view, verdicts, workspace)
    if any(verdict.problem for verdict in verdicts.values()):
        raise typer.Exit(1)


def verify_all(view: WorkspaceView) -> dict[Path, Verdict]:
    """Verify every complete backup and every save."""
    backups = [backup for backup in (*view.backups, *view.milestones) if backup.complete]
    jobs: list[tuple[Path, Callable[..., Verdict], int]]
    jobs = [(backup.path, verify_backup, backup.size_bytes) for backup in backups]
    jobs += [(save.path, verify_model, save.size_bytes) for save in view.saves]
    total = sum(size for _, _, size in jobs)
    verdicts = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="verifying", delay=2, file=sys.stderr) as bar:
        for path, check, _ in jobs:
            verdicts[path] = check(path, advance=bar.update)
    return verdicts


def print_view(view: WorkspaceView, verdicts: Mapping[Path, Verdict], workspace: Path) -> None:
    """Print it all for people."""
    for title, backups in (("Backups", view.backups), ("Milestones", view.milestones)):
        if backups:
            print_block(f"{title}, newest first", backup_rows(backups, verdicts))
    if view.saves:
        print_block("Saves", save_rows(view.saves, verdicts))
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


def verdict_notes(path: Path, verdicts: Mapping[Path, Verdict]) -> tuple[str, ...]:
    """What verifying has found, where it was asked for."""
    if path not in verdicts:
        return ()
    verdict = verdicts[path]
    if verdict.problem:
        return (f"DAMAGED: {verdict.problem}",)
    return ("verified by checksums" if verdict.checksums else "readable throughout; it holds no checksums",)


def backup_rows(backups: Iterable[BackupView], verdicts: Mapping[Path, Verdict]) -> list[Line]:
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
            notes += [f"milestone: {backup.milestone}"] if backup.milestone else []
            notes += verdict_notes(backup.path, verdicts)
        lines.append(
            Line(backup.step, backup.epoch, backup.size_bytes, ", ".join(sets) or "-", backup.name, tuple(notes))
        )
    return lines


def save_rows(saves: Iterable[SaveView], verdicts: Mapping[Path, Verdict]) -> list[Line]:
    """A line for each saved model, the two sets of a moment below each other."""
    return [
        Line(
            save.step,
            save.epoch,
            save.size_bytes,
            save.set or "not told",
            save.path.name,
            (
                *((f"milestone: {save.milestone}",) if save.milestone else ()),
                *((f"without its partner: {save.missing} is not there",) if save.missing else ()),
                *verdict_notes(save.path, verdicts),
            ),
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
