"""A model out of the snapshots of a run: an EMA of a length that was never kept, written as `export` writes one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.errors import ManifestError, PostHocError
from onetrainer_ema_select.host.export.launch import absolute_base, carry_out
from onetrainer_ema_select.host.export.messages import ExportOrder, ExportResult, MixtureOrder, Progress
from onetrainer_ema_select.host.locate import find_onetrainer
from onetrainer_ema_select.integrity import backup_problem, read_safetensors_header
from onetrainer_ema_select.manifest import read_manifest
from onetrainer_ema_select.mixture import Mixture, mix
from onetrainer_ema_select.recognise import refuse_incomplete, refuse_other
from onetrainer_ema_select.snapshots import Snapshot, choose_end, find_snapshots
from onetrainer_ema_select.workspace import BACKUP_FOLDER, MILESTONE_FOLDER, folders_in


@dataclass(frozen=True)
class Synthesized:
    """What was written, or would be, and of which snapshots it is made."""

    mixture: Mixture
    backup: Path
    result: ExportResult


def synthesize(
    workspace: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    sigma_rel: float,
    at: str = "",
    backup: str | os.PathLike[str] | None = None,
    format: str = "",  # noqa: A002 - as the option of the command line
    dtype: str = "",
    rounding: str = "",
    base_model: str = "",
    config: str | os.PathLike[str] | None = None,
    config_values: Sequence[str] = (),
    overwrite: bool = False,
    dry_run: bool = False,
    onetrainer: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Synthesized:
    """Make a model of any EMA length out of the snapshots of post-hoc tracks, in any of OneTrainer's formats.

    The mixture is found first; nothing is started where it cannot be made. What is not trained comes out of a backup
    of the same run, the one nearest in steps.

    Args:
        workspace: A run's workspace.
        output: As of :func:`launch.export`.
        sigma_rel: The length.
        at: A step, or the name or path of a snapshot, backup or milestone; empty for the newest snapshot.
        backup: The backup that gives all but the averages; None for the nearest one.
        format: As of :func:`launch.export`, like all that follow.
        dtype: The same.
        rounding: The same.
        base_model: The same.
        config: The same.
        config_values: The same.
        overwrite: The same.
        dry_run: The same.
        onetrainer: The same.
        progress: The same.

    Returns:
        The mixture, and what was written, or would be.

    Raises:
        EmaSelectError: It could not be done; the message says why and what to do. Nothing is left then.
    """
    home = Path(workspace).expanduser().absolute()
    if not home.is_dir():
        raise PostHocError(
            f"There is no folder {home}. Give a run's workspace, the folder that workspace_dir names in its config.",
            path=home,
        )
    snapshots, problems = find_snapshots(home)
    end = choose_end(home, at, snapshots)
    mixture = mix(end, snapshots, sigma_rel=sigma_rel)
    if backup is not None:
        structure = Path(backup).expanduser().absolute()
        refuse_other(structure)
        refuse_incomplete(structure)
    else:
        structure = nearest_backup(home, mixture)
    order = ExportOrder(
        action="plan" if dry_run else "export",
        onetrainer=find_onetrainer(Path(onetrainer) if onetrainer is not None else None),
        backup=structure,
        config=Path(config).expanduser().absolute() if config is not None else None,
        sets="ema",
        output=Path(output).expanduser().absolute(),
        format=format,
        dtype=dtype,
        rounding=rounding,
        base_model=absolute_base(base_model),
        config_values=tuple(config_values),
        overwrite=overwrite,
        mixture=_order(mixture),
    )
    result = carry_out(order, progress)
    return Synthesized(mixture, structure, result.model_copy(update={"notes": problems + mixture.notes + result.notes}))


def _order(mixture: Mixture) -> MixtureOrder:
    manifest = mixture.end.manifest
    return MixtureOrder(
        sigma_rel=mixture.sigma_rel,
        fit_error=mixture.fit.error,
        name=mixture.end.path.name,
        files=tuple(source.file.absolute() for source in mixture.sources),
        coefficients=tuple(source.coefficient for source in mixture.sources),
        step=manifest.step,
        epoch=manifest.epoch,
        epoch_step=manifest.epoch_step,
        run=manifest.run,
        leg=manifest.leg.id,
    )


def nearest_backup(workspace: Path, mixture: Mixture) -> Path:
    """The whole backup of the same run and the same weights that is nearest in steps.

    Raises:
        PostHocError: There is none.
    """
    end = mixture.end
    if end.manifest.kind == "backup":
        return end.path
    wanted = _names(mixture.line[-1])
    found: list[tuple[int, Path]] = []
    passed: list[str] = []
    for place in (BACKUP_FOLDER, MILESTONE_FOLDER):
        for folder in folders_in(workspace / place):
            if why := _unfit(folder, end, wanted):
                passed.append(f"{folder.name}: {why}")
                continue
            manifest = read_manifest(folder)
            found.append((abs((manifest.step if manifest is not None else 0) - end.step), folder))
    if found:
        return min(found, key=lambda entry: entry[0])[1]
    listed = "; ".join(passed) if passed else "there is no backup"
    raise PostHocError(
        f"There are snapshots in {workspace}, but no backup of their run to take the rest of the model from "
        f"({listed}). Bring one back, or name a copy of one with --backup PATH.",
        path=workspace,
        expected="a whole backup of the same run",
        found=listed,
    )


def _unfit(folder: Path, end: Snapshot, wanted: frozenset[str]) -> str:
    """Why a backup does not go with the snapshots; empty where it does."""
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return str(error)
    if manifest is None:
        return "made without the plugin"
    if manifest.run != end.manifest.run:
        return "of another run"
    if problem := backup_problem(folder, optimizer=False):
        return problem
    return "" if wanted <= {record.name for record in manifest.parameters} else "of other trained weights"


def _names(snapshot: Snapshot) -> frozenset[str]:
    header = read_safetensors_header(snapshot.file(snapshot.record.tracks[0]))
    return frozenset(name for name in header if name != "__metadata__")
