"""`list`: what lies in a workspace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from tqdm import tqdm

from onetrainer_ema_select.checksums import Verdict, verify_backup, verify_model
from onetrainer_ema_select.cli.common import JsonOption, echo_json, size_text
from onetrainer_ema_select.cli.table import WIDTH, padded, wrapped
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.workspace import (
    STRAY,
    BackupView,
    ParkedView,
    SaveView,
    SnapshotView,
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
    """Show backups, milestones, saves and snapshots: step, epoch, sets, size, whether each is complete and why not.

    Also says what "continue last backup" would load, in plain OneTrainer and with the plugin. With --verify the
    exit code is 1 if something is damaged.
    """
    view = scan_workspace(workspace)
    verdicts = verify_all(view) if verify else {}
    if as_json:
        report = {"schema": 1, "workspace": workspace.absolute(), **asdict(view)}
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
    if view.snapshots:
        for line in snapshot_lines(view.snapshots):
            typer.echo(line)
        typer.echo()
    if not (view.backups or view.milestones or view.saves or view.parked or view.snapshots):
        for line in wrapped(f"No backups and no saves in {workspace}.", keep=[workspace]):
            typer.echo(line)
        typer.echo()
    for line in continue_lines(view, workspace):
        typer.echo(line)


# Of snapshots, of which there may be hundreds.
_STEPS_SHOWN = 12

# What is said of a thing stands below it.
_INDENT = " " * 9


@dataclass(frozen=True)
class Line:
    """One thing in a workspace: the columns before its name, its name, and what else is to be said of it.

    Names and paths in the notes that are not to be broken are in `whole`.
    """

    step: int | None
    epoch: int | None
    size_bytes: int
    sets: str
    name: str
    notes: tuple[str, ...] = ()
    whole: tuple[object, ...] = ()


def print_block(title: str, lines: Sequence[Line]) -> None:
    """Print a heading and aligned columns; where a name does not fit behind them, all stand on lines of their own."""
    width = max(cell_len("sets"), *(cell_len(line.sets) for line in lines))
    before = len(_columns("", "", "", "sets", width)) + 2
    beside = all(before + cell_len(line.name) <= WIDTH for line in lines)
    typer.echo(title)
    typer.echo((_columns("step", "epoch", "size", "sets", width) + ("  name" if beside else "")).rstrip())
    for line in lines:
        step, epoch = ("-" if number is None else str(number) for number in (line.step, line.epoch))
        columns = _columns(step, epoch, size_text(line.size_bytes), line.sets, width)
        typer.echo(f"{columns}  {line.name}" if beside else columns.rstrip())
        if not beside:
            typer.echo(wrapped(line.name, indent=_INDENT, keep=[line.name])[0])
        for note in line.notes:
            for text in wrapped(note, indent=_INDENT, keep=line.whole):
                typer.echo(text)
    typer.echo()


def _columns(step: str, epoch: str, size: str, sets: str, width: int) -> str:
    return f"  {step:>6} {epoch:>5} {size:>8}  {padded(sets, width)}"


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
            notes += [str(backup.validation["text"])] if backup.validation is not None else []
            notes += [f"EMA half-life: {backup.half_life.text}"] if backup.half_life is not None else []
            notes += [f"WARNING: {text}" for text in backup.length_warnings]
            notes += [f"parked: {name}" for name in backup.parked]
            notes += verdict_notes(backup.path, verdicts)
        whole = (backup.path, *(name.rpartition(" (stopped at step ")[0] for name in backup.parked))
        lines.append(
            Line(backup.step, backup.epoch, backup.size_bytes, ", ".join(sets) or "-", backup.name, tuple(notes), whole)
        )
    return lines


def save_rows(saves: Sequence[SaveView], verdicts: Mapping[Path, Verdict]) -> list[Line]:
    """A line for each saved model, the two sets of a moment below each other."""
    lines = []
    for place, save in enumerate(saves):
        notes = [f"milestone: {save.milestone}"] if save.milestone else []
        if save.partner is not None:
            above = place > 0 and saves[place - 1].path == save.partner
            below = place + 1 < len(saves) and saves[place + 1].path == save.partner
            # The two are told once, at the second.
            notes += [] if below else ["partner of the one above"] if above else [f"partner: {save.partner.name}"]
        notes += [f"without its partner: {save.missing} is not there"] if save.missing else []
        notes += verdict_notes(save.path, verdicts)
        lines.append(Line(save.step, save.epoch, save.size_bytes, save.set or "not told", save.path.name, tuple(notes)))
    return lines


def parked_rows(parked: Iterable[ParkedView]) -> list[Line]:
    """A line for each average that was set aside; its step is the one it stopped at."""
    return [Line(one.step, None, one.size_bytes, "ema", one.path.name) for one in parked]


def snapshot_lines(snapshots: Sequence[SnapshotView]) -> list[str]:
    """The snapshots of post-hoc tracks together, there are many, and those with which something is wrong."""
    whole = [one for one in snapshots if not one.reason]
    size = size_text(sum(one.size_bytes for one in snapshots))
    steps = sorted({one.step for one in whole if one.step is not None})
    lengths = sorted({sigma_rel for one in whole for sigma_rel in one.sigma_rels})
    said = f"Snapshots for post-hoc EMA: {len(snapshots)}, {size} together"
    if steps:
        shown = ", ".join(f"{sigma_rel:g}" for sigma_rel in lengths)
        which = ", ".join(map(str, steps)) if len(steps) <= _STEPS_SHOWN else f"{steps[0]} to {steps[-1]}"
        said += f", sigma_rel {shown}, of the steps {which}"
    lines = wrapped(f"{said}.")
    for one in snapshots:
        if one.reason:
            lines += wrapped(f"DAMAGED: {one.path.name}: {one.reason}", indent="  ", keep=[one.path.name, one.path])
    return lines


def continue_lines(view: WorkspaceView, workspace: Path) -> list[str]:
    """What "continue last backup" would load, and why that may not be the same for both."""
    if not view.backups:
        return ['"Continue last backup" would find nothing and start anew.']
    keep = [*(backup.path for backup in view.backups), *(backup.name for backup in view.backups), workspace]
    if view.plain_continue == view.our_continue:
        said = [f'"Continue last backup" would load, with and without the plugin: {view.our_continue}']
    else:
        said = [
            f'"Continue last backup" would load, with the plugin: {view.our_continue or "nothing"}',
            f"Plain OneTrainer would try: {view.plain_continue}",
            *view.skipped,
        ]
    return [line for sentence in said for line in wrapped(sentence, keep=keep)]
