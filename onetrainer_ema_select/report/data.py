"""Everything that the page tells of a run, gathered from its workspace."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onetrainer_ema_select.errors import EmaSelectError, ManifestError
from onetrainer_ema_select.manifest import Manifest, read_manifest
from onetrainer_ema_select.report.samples import Prompt, find_samples
from onetrainer_ema_select.report.sources import (
    Curves,
    Drift,
    Snapshot,
    Validation,
    read_curves,
    read_drift,
    read_json,
    read_snapshots,
    read_validations,
    validation_of,
)
from onetrainer_ema_select.run_config import read_config
from onetrainer_ema_select.workspace import (
    STRAY,
    BackupView,
    SaveView,
    WorkspaceView,
    leg_text,
    scan_workspace,
)

BACKUP, MILESTONE, SNAPSHOT = "backup", "milestone", "snapshot"


@dataclass(frozen=True)
class PlacePoint:
    """A moment of the run that a model can be made from, or training be resumed from.

    Attributes:
        key: Tells it from the others in the page.
        kind: ``backup``, ``milestone`` or ``snapshot``.
        path: Its folder.
        step: Steps done, None where that cannot be told.
        epoch: Epochs finished, likewise.
        sets: Of ``ema`` and ``non-ema``.
        complete: Whether it can be used.
        reason: Why not, or what else is wrong with it.
        milestone: The milestones that it was pinned for.
        leg: What its leg began with.
        size_bytes: Everything in it.
        half_life: Of its average, in steps; None where it cannot be told.
        sigma_rels: Post-hoc tracks that there are of just this step.
        snapshot: The snapshot that they are in.
        folder_format: Whether the run writes models as folders.
        run: The run that it is of; empty where nothing says.
        leg_id: What tells its leg from others.
        time: When it was made, as its name says.
        validation: The last one of its leg before it, as it says itself.
    """

    key: str
    kind: str
    path: Path
    step: int | None
    epoch: int | None
    sets: tuple[str, ...]
    complete: bool
    reason: str = ""
    milestone: str = ""
    leg: str = ""
    size_bytes: int = 0
    half_life: float | None = None
    sigma_rels: tuple[float, ...] = ()
    snapshot: str = ""
    folder_format: bool = False
    run: str = ""
    leg_id: str = ""
    time: str = ""
    validation: Validation | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


@dataclass(frozen=True)
class Leg:
    """A stretch of a run; ``last`` is the last step that something is left of."""

    run: str
    id: str
    began_at: int
    last: int
    text: str
    resumed: bool


@dataclass(frozen=True)
class RunData:
    """All of it.

    Attributes:
        workspace: The folder.
        points: Backups, milestones and snapshots, newest first.
        saves: Models for inference.
        legs: The run's stretches, in their order.
        config_file: The newest configuration that OneTrainer has kept there.
        model: The kind of model and of training; empty where nothing says.
        made: When this was read.
        unreadable: What could not be read at all, a sentence each in the words of its error.
    """

    workspace: Path
    points: tuple[PlacePoint, ...]
    saves: tuple[SaveView, ...]
    legs: tuple[Leg, ...]
    prompts: tuple[Prompt, ...]
    validations: tuple[Validation, ...]
    drift: tuple[Drift, ...]
    warnings: frozenset[str]
    snapshots: tuple[Snapshot, ...]
    curves: Curves
    config_file: Path | None = None
    model: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = field(default=())
    made: str = ""

    def config_of(self, point: PlacePoint) -> Path | None:
        """The configuration of the start that made a point; the newest where the time of that is not known."""
        return _config_file(self.workspace, point.time) if point.time else self.config_file

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        steps = [point.step or 0 for point in self.points]
        steps += [save.step or 0 for save in self.saves]
        steps += [moment.step for prompt in self.prompts for moment in prompt.moments[-1:]]
        steps += [one.step for one in self.validations[-1:]]
        steps += [points[-1][0] + 1 for points in self.curves.training.values() if points]
        return max(steps, default=0)

    @property
    def steps_per_epoch(self) -> float | None:
        """From any point of which both are known."""
        pairs = [(point.step, point.epoch) for point in self.points]
        pairs += [(save.step, save.epoch) for save in self.saves]
        pairs += [(moment.step, moment.epoch) for prompt in self.prompts for moment in prompt.moments]
        known = [step / epoch for step, epoch in pairs if step and epoch]
        # What lies within an epoch has finished fewer than it has begun: the least is nearest.
        return min(known, default=None)


def gather(workspace: Path) -> RunData:
    """Read all that there is of a run.

    Raises:
        EmaSelectError: There is no such folder.
    """
    unreadable: list[str] = []
    try:
        view = scan_workspace(workspace)
    except OSError as error:
        view = WorkspaceView((), (), (), (), None, None, ())
        unreadable.append(str(error))
    snapshots, problems = read_snapshots(workspace)
    unreadable += problems
    drift, warnings = read_drift(workspace)
    manifests = {
        backup.path: manifest
        for backup in (*view.backups, *view.milestones)
        if (manifest := _manifest(backup.path, unreadable)) is not None
    }
    newest = next(iter(manifests.values()), None)
    return RunData(
        workspace=workspace,
        points=_points(view, snapshots, manifests),
        saves=view.saves,
        legs=_legs(manifests.values(), view.saves),
        prompts=find_samples(workspace),
        validations=read_validations(workspace),
        drift=drift,
        warnings=warnings,
        snapshots=snapshots,
        curves=read_curves(workspace),
        config_file=_config_file(workspace),
        model=(newest.model_type, newest.training_method) if newest else (),
        unreadable=tuple(unreadable),
        made=time.strftime("%Y-%m-%d_%H-%M-%S"),
    )


def _manifest(folder: Path, unreadable: list[str]) -> Manifest | None:
    try:
        return read_manifest(folder)
    except ManifestError as error:
        unreadable.append(str(error))
    except EmaSelectError:
        pass
    return None


def _points(
    view: WorkspaceView, snapshots: tuple[Snapshot, ...], manifests: Mapping[Path, Manifest]
) -> tuple[PlacePoint, ...]:
    kept = {(one.run, one.step): one for one in snapshots}
    points = [
        _point(backup, kind, kept, manifests.get(backup.path))
        for kind, backups in ((BACKUP, view.backups), (MILESTONE, view.milestones))
        for backup in backups
        if backup.reason != STRAY
    ]
    there = {(point.run, point.step) for point in points if point.complete}
    points += [
        PlacePoint(
            "",
            SNAPSHOT,
            Path(one.name),
            one.step,
            None,
            (),
            True,
            sigma_rels=one.sigma_rels,
            snapshot=one.name,
            time=_time(one.name),
            run=one.run,
        )
        for one in snapshots
        if (one.run, one.step) not in there
    ]
    order = sorted(
        points, key=lambda point: (point.time, -1 if point.step is None else point.step, point.name), reverse=True
    )
    return tuple(PlacePoint(**{**vars(point), "key": f"point-{index}"}) for index, point in enumerate(order))


def _time(name: str, created: str = "") -> str:
    """When a folder was made: by its name, else by its manifest."""
    found = re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", name)
    return found[0] if found else created[:19].replace("T", "_").replace(":", "-")


def _point(
    backup: BackupView, kind: str, kept: dict[tuple[str, int], Snapshot], manifest: Manifest | None
) -> PlacePoint:
    run = manifest.run if manifest else ""
    leg = manifest.leg.id if manifest else ""
    judged = manifest.validation if manifest else None
    snapshot = kept.get((run, backup.step)) if backup.complete and backup.step is not None else None
    config = read_config(backup.path) or {}
    return PlacePoint(
        key="",
        kind=kind,
        path=backup.path,
        step=backup.step,
        epoch=backup.epoch,
        sets=backup.sets,
        complete=backup.complete,
        reason=backup.reason,
        milestone=backup.milestone,
        leg=backup.leg,
        size_bytes=backup.size_bytes,
        half_life=backup.half_life.steps if backup.half_life else None,
        sigma_rels=snapshot.sigma_rels if snapshot else (),
        snapshot=snapshot.name if snapshot else "",
        folder_format=config.get("output_model_format") == "DIFFUSERS",
        run=run,
        leg_id=leg,
        time=_time(backup.name, manifest.created if manifest else ""),
        validation=validation_of({**judged.model_dump(mode="json"), "run": run, "leg": leg}) if judged else None,
    )


def _legs(manifests: Iterable[Manifest], saves: tuple[SaveView, ...]) -> tuple[Leg, ...]:
    found: dict[tuple[str, str], Leg] = {}
    order: dict[tuple[str, str], str] = {}
    for manifest in sorted(manifests, key=lambda one: one.created):
        key = (manifest.run, manifest.leg.id)
        last = max(manifest.step, found[key].last if key in found else 0)
        resumed = bool(manifest.leg.began_from or manifest.leg.choices is not None)
        began = manifest.leg.began_at_step
        found[key] = Leg(manifest.run, manifest.leg.id, began, last, leg_text(manifest.leg), resumed)
        order.setdefault(key, manifest.created)
    legs = sorted(found.items(), key=lambda item: order[item[0]])
    if len(legs) == 1 and saves:
        (key, leg) = legs[0]
        furthest = max((save.step or 0 for save in saves), default=0)
        return (Leg(leg.run, leg.id, leg.began_at, max(leg.last, furthest), leg.text, leg.resumed),)
    return tuple(leg for _, leg in legs)


def _config_file(workspace: Path, until: str = "") -> Path | None:
    """The newest configuration, or the one of the start that a moment belongs to."""
    # By the time at the end of the name: the prefix of the run's saves stands before it.
    try:
        files = sorted((workspace / "config").glob("*.json"), key=lambda file: file.stem[-19:], reverse=True)
    except OSError:
        return None
    return next((file for file in files if (not until or file.stem[-19:] <= until) and read_json(file)), None)
