"""The post-hoc tracks of a run: their time in images, their snapshots, and what a backup keeps of them."""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onetrainer_ema_select import store
from onetrainer_ema_select.average_age import power_half_life
from onetrainer_ema_select.errors import PostHocError, ResumeError
from onetrainer_ema_select.host.announce import gigabytes
from onetrainer_ema_select.host.backup import of_moment
from onetrainer_ema_select.host.length import images_per_step
from onetrainer_ema_select.integrity import safetensors_problem
from onetrainer_ema_select.manifest import (
    FOLDER,
    Manifest,
    PostHocRecord,
    PowerTrackRecord,
    StretchRecord,
    write_manifest,
)
from onetrainer_ema_select.posthoc import gamma_from_sigma_rel
from onetrainer_ema_select.power_tracks import PowerTracks
from onetrainer_ema_select.schedule import Milestone, Position, Unit, due_milestones, parse_interval
from onetrainer_ema_select.settings import EmaDtype, ResumeEma
from onetrainer_ema_select.snapshots import STATE_FOLDER
from onetrainer_ema_select.workspace import SNAPSHOT_FOLDER

if TYPE_CHECKING:
    from onetrainer_ema_select.host.session import Session


class PostHoc:
    """Keeps power-function tracks beside the average of a run, on the first process.

    Attributes:
        tracks: The tracks.
        sentence: Where they begin, or what they go on from, for people.
    """

    def __init__(self, session: Session, parameters: Sequence[Tensor], *, device: torch.device) -> None:
        """Begin at the weights as they are, or go on from what the backup holds.

        Args:
            session: The run; its model is loaded and its weights are named.
            parameters: The trained weights.
            device: Where the tracks live.

        Raises:
            EmaSelectError: If the backup's tracks cannot be read, or are of other shapes.
        """
        config, settings = session.config, session.settings
        self._session = session
        self._every = parse_interval(settings.post_hoc_every)
        self._previous = _position(session.model.train_progress)
        self._stretch = uuid.uuid4().hex[:12]
        self._line: tuple[StretchRecord, ...] = ()
        self._images_per_step = images_per_step(config)
        self._accumulation = int(config.gradient_accumulation_steps)
        self._files: Path | None = None
        self._files_at = self._snapshot_at = (-1, -1)
        self._said = False
        self._owed = False
        self._begin_step: int = session.model.train_progress.global_step
        self._begin_images = float(self._begin_step * self._images_per_step)
        record = self._record_to_go_on_from()
        sigma_rels = settings.post_hoc_lengths
        saved: dict[float, dict[str, Tensor]] = {}
        if record is not None:
            # Ended between an update and the counting of its step, the tracks are ahead.
            self._begin_images = max(record.images, record.time)
            self._line = (*record.line, StretchRecord(id=record.stretch, until_step=self._begin_step))
            saved = self._read(record, sigma_rels)
        elif settings.resume_ema is ResumeEma.RESTART and session.starts_average:
            self._begin_images = 0.0  # nothing of what came before is to be in them
        self.sentence = self._describe(record, sigma_rels, tuple(saved))
        begun_at = {track.sigma_rel: track.begun_at for track in record.tracks} if record is not None else {}
        self.tracks = PowerTracks(
            zip(session.names, parameters, strict=True),
            sigma_rels=sigma_rels,
            device=device,
            dtype=torch.float32 if settings.ema_dtype is EmaDtype.FLOAT_32 else None,
            interval=config.ema_update_step_interval,
            begun_at=begun_at if saved else self._begin_images,
            time=record.time if record is not None and saved else self._begin_images,
            updates=record.updates if record is not None and saved else 0,
            initial=saved or None,
            time_of=self.time_of,
        )
        # The backup that is resumed holds these tracks, and most often there is a snapshot of them too.
        self._resumed_at = (self._begin_step, self.tracks.updates if saved else -1)

    # -- where they come from ----------------------------------------------------------------------------

    def _record_to_go_on_from(self) -> PostHocRecord | None:
        """What the backup says of its tracks, if they are to go on and are of the weights that are trained now."""
        session = self._session
        contents = session.contents
        manifest = contents.manifest if contents is not None else None
        if manifest is None or manifest.post_hoc is None or session.plan.restarts:
            return None
        if {record.name for record in manifest.parameters} != set(session.names):
            return None  # what was averaged of other weights is no profile of these
        return manifest.post_hoc

    def _read(self, record: PostHocRecord, sigma_rels: Sequence[float]) -> dict[float, dict[str, Tensor]]:
        found: dict[float, dict[str, Tensor]] = {}
        for track in record.tracks:
            if track.sigma_rel not in sigma_rels:
                continue
            file = Path(str(self._session.backup)) / track.file
            advice = (
                "Choose another backup with ema_select.resume_backup, or set ema_select.resume_ema to RESTART to begin "
                "all averages anew at the loaded weights."
            )
            if problem := safetensors_problem(file):
                raise ResumeError(f"The post-hoc track {file} {problem}. {advice}", path=file)
            try:
                # Copies: OneTrainer deletes old backups while it trains, and Windows deletes no file that is mapped.
                found[track.sigma_rel] = {name: tensor.clone() for name, tensor in load_file(file).items()}
            except Exception as error:
                raise ResumeError(f"The post-hoc track {file} cannot be read: {error}. {advice}", path=file) from error
        return found

    def _describe(self, record: PostHocRecord | None, sigma_rels: Sequence[float], saved: Sequence[float]) -> str:
        """What the tracks begin with, as the end of a sentence."""
        contents = self._session.contents
        if contents is None:
            return "they begin at the model's weights"
        if record is None:
            if self._session.plan.restarts:
                return "they begin anew at the loaded weights (resume_ema: RESTART)"
            holds = contents.manifest is not None and contents.manifest.post_hoc is not None
            why = "the backup's are of other trained weights" if holds else "the backup holds none"
            return f"they begin at the loaded weights, because {why}"
        new = [sigma_rel for sigma_rel in sigma_rels if sigma_rel not in saved]
        left = [track.sigma_rel for track in record.tracks if track.sigma_rel not in sigma_rels]
        text = f"{_listed(saved)} go on from the backup" if saved else "the backup holds other lengths"
        text += f", {_listed(new)} begin at the loaded weights" if new else ""
        return text + (f", {_listed(left)} end here" if left else "")

    # -- time --------------------------------------------------------------------------------------------

    def images_at(self, step: int) -> float:
        """Images that the run has trained on after so many of OneTrainer's steps.

        Counted on from what the backup says, as a run may be resumed with another batch size.
        """
        return self._begin_images + (step - self._begin_step) * self._images_per_step

    def time_of(self, optimization_step: int) -> float:
        """The tracks' time after an optimizer step (0-based)."""
        return self.images_at((optimization_step + 1) * self._accumulation)

    def half_lives(self) -> dict[float, float]:
        """How long each track is by now, in OneTrainer's steps."""
        return {
            sigma_rel: power_half_life(gamma_from_sigma_rel(sigma_rel), self.tracks.time) / self._images_per_step
            for sigma_rel in self.tracks.sigma_rels
        }

    # -- when --------------------------------------------------------------------------------------------

    @property
    def at_backups(self) -> bool:
        """Whether snapshots are written with backups and milestones."""
        return self._every is None

    def follow(self, train_progress: Any, *, epoch_length: int, epochs: int) -> None:
        """Take note of OneTrainer's progress, and write the snapshot that has become due."""
        if self._every is None:
            return
        if not self._said:
            self._said = True
            self._session.reporter.say(self._projection(self._every, epoch_length=epoch_length, epochs=epochs))
        previous, self._previous = self._previous, _position(train_progress)
        if due_milestones(
            (self._every,), previous=previous, current=self._previous, epoch_length=epoch_length, epochs=epochs
        ):
            self._owed = True
        # The last step of an epoch is told of twice: here the epoch is not counted as finished yet.
        if self._owed and self._previous.epoch_step < epoch_length:
            self._owed = False
            self.snapshot()

    def _projection(self, every: Milestone, *, epoch_length: int, epochs: int) -> str:
        left = epochs - self._previous.epoch
        if every.unit is Unit.STEPS:
            left = epoch_length * epochs - self._previous.global_step
        count = max(int(left // every.amount), 1)
        size = gigabytes(count * self.tracks.nbytes)
        return f"About {count} snapshot(s) of the post-hoc tracks are still to come, {size} together."

    # -- what is written ---------------------------------------------------------------------------------

    @property
    def _now(self) -> tuple[int, int]:
        """Step and updates: a run that ends between an update and the counting of its step is at neither of the two."""
        return self._session.model.train_progress.global_step, self.tracks.updates

    def kept_in(self, backup: Path) -> None:
        """Note that a backup with the tracks of this moment is at its place: what comes next links its files."""
        self._files, self._files_at = backup / STATE_FOLDER, self._now

    def snapshot(self) -> None:
        """Write a snapshot of this moment, once. A failure is reported, and training goes on."""
        session = self._session
        progress = session.model.train_progress
        if self._now in (self._snapshot_at, self._resumed_at) or self.tracks.updates == 0:
            return  # it is there, or would hold nothing but the weights that the tracks began with
        name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}-snapshot-{progress.filename_string()}"
        place = session.workspace / SNAPSHOT_FOLDER / name
        if place.exists():  # of a line that was at this step in the same second
            place = place.with_name(f"{name}-{self._stretch}")
        try:
            if self._files_at != self._now:
                session.space.before("snapshot", place, count=1, dtype=None)
            staging = store.Staging(place, workspace=session.workspace)
            try:
                staging.path.mkdir()
                with staging.writing():
                    record = self._write(staging.path, "")
                write_manifest(self._manifest(record), staging.path)
                staging.publish()
            finally:
                staging.discard()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
            session.reporter.problem(
                f"The snapshot of the post-hoc tracks of step {progress.global_step} could not be written to {place}. "
                "Training goes on, and the next one is tried. Check the disk space and the folder.",
                error,
            )
            return
        self._snapshot_at = self._files_at = self._now
        self._files = place

    def keep(self, folder: Path) -> PostHocRecord | None:
        """Put the tracks into a backup that is being written, so that a resumed run goes on with them exactly.

        Where a snapshot or backup of the same moment has them, they are linked, if the file system can, and take no
        space of their own. A failure is reported: the backup itself is whole without them.

        Returns:
            What its manifest says of them; None where they are not in it.
        """
        try:
            (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
            return self._write(folder, f"{STATE_FOLDER.as_posix()}/")
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not cost a backup
            with contextlib.suppress(OSError):
                for file in (folder / STATE_FOLDER).glob("*.safetensors"):
                    file.unlink()
            self._session.reporter.problem(
                f"The post-hoc tracks could not be kept in the backup {folder.name}. A run that is resumed from it "
                "begins them anew. Check the disk space.",
                error,
            )
            return None

    def _write(self, folder: Path, prefix: str) -> PostHocRecord:
        """Write the tracks, a file each; those that lie somewhere already are linked."""
        session = self._session
        step = session.model.train_progress.global_step
        there = self._files if self._files_at == self._now else None
        records = []
        for sigma_rel, averages in self.tracks.sets().items():
            name = f"sigma_rel-{sigma_rel:g}.safetensors"
            file = folder / f"{prefix}{name}"
            file.unlink(missing_ok=True)
            if there is not None and (there / name).is_file():
                store.link_or_copy(there / name, file)
            else:
                save_file(_on_cpu(averages), file, metadata=self._marks(sigma_rel, step))
            begun_at = self.tracks.begun_at[sigma_rel]
            records.append(PowerTrackRecord(sigma_rel=sigma_rel, file=f"{prefix}{name}", begun_at=begun_at))
        return PostHocRecord(
            tracks=tuple(records),
            dtype=str(session.settings.ema_dtype),
            images=self.images_at(step),
            time=self.tracks.time,
            updates=self.tracks.updates,
            interval=self.tracks.interval * self._accumulation * self._images_per_step,
            update_step_interval=self.tracks.interval,
            stretch=self._stretch,
            line=self._line,
        )

    def _marks(self, sigma_rel: float, step: int) -> dict[str, str]:
        marks = {"set": "POST_HOC", "sigma_rel": f"{sigma_rel:g}", "step": str(step), "run": self._session.run}
        return {f"{FOLDER}.{key}": value for key, value in marks.items()}

    def _manifest(self, record: PostHocRecord) -> Manifest:
        averages: Mapping[str, Tensor] = next(iter(self.tracks.sets().values()))
        moment = of_moment(self._session, self._session.model, averages.items())
        return Manifest(kind="snapshot", **moment, post_hoc=record)


def begin_post_hoc(session: Session, parameters: Sequence[Tensor], *, device: torch.device) -> PostHoc:
    """Begin the tracks of a run, or go on with those of its backup.

    Raises:
        EmaSelectError: As of :class:`PostHoc`, and if the device has not got the memory.
    """
    try:
        return PostHoc(session, parameters, device=device)
    except torch.cuda.OutOfMemoryError as error:
        lengths = session.settings.post_hoc_lengths
        size = gigabytes(4 * len(lengths) * sum(parameter.numel() for parameter in parameters))
        raise PostHocError(
            f"The post-hoc tracks of {len(lengths)} lengths take about {size} in 32 bits, which {device} has not got. "
            "Set ema to CPU, ema_select.ema_dtype to PARAMETER, or fewer lengths in ema_select.post_hoc_sigma_rels.",
            key="post_hoc_sigma_rels",
            found=size,
        ) from error


def _on_cpu(averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: average.detach().cpu().contiguous() for name, average in averages.items()}


def _position(train_progress: Any) -> Position:
    return Position(
        global_step=train_progress.global_step, epoch=train_progress.epoch, epoch_step=train_progress.epoch_step
    )


def _listed(sigma_rels: Sequence[float]) -> str:
    return ", ".join(f"{sigma_rel:g}" for sigma_rel in sigma_rels)
