"""What a run shows of its two sets while it goes on: curves in OneTrainer's TensorBoard, and a warning or two."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from onetrainer_ema_select.average_age import START_LEFT, AverageAge, later_share, settled_age, young_half_life
from onetrainer_ema_select.drift import Distance, Pair, Sample, distances, sample
from onetrainer_ema_select.drift_warnings import same_to_rounding, start_remains, swings
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.host.length import run_average, steps_per_epoch
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.look_times import LookTimes
from onetrainer_ema_select.manifest import EmaRecord
from onetrainer_ema_select.schedule import warmup_decay
from onetrainer_ema_select.swings import Swings
from onetrainer_ema_select.workspace import DRIFT_FILE

TAG: Final = "ema_select"
SAMPLED: Final = 1 << 15
# Of what this start of the run trains: before that the sets have had no time to come apart.
EARLY: Final = 0.1


class DriftWatch:
    """Looks at both sets now and then. Only reads them; nothing that it does can change or end a run."""

    def __init__(
        self, session: Session, ema: HostEma, record: EmaRecord | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin at the step that the run begins from.

        Args:
            session: The run.
            ema: Its average.
            record: Of the average that goes on, None where it begins here or was made without the plugin.
            clock: Seconds.
        """
        self._session = session
        self._tracks = ema.tracks
        self._clock = clock
        self._times = LookTimes(now=clock())
        self._began = int(session.model.train_progress.global_step)
        self._swings = Swings()
        self._warned: set[str] = set()
        self._same = self._same_before = False
        self._looked_at = -1
        self._decay: float | None = None
        self._updated_at: int | None = None
        self._failed = False
        self.age = self._age(record)
        ema.updated = self.updated

    def _age(self, record: EmaRecord | None) -> AverageAge:
        if self._session.starts_average:
            return AverageAge(start_share=1.0, mean_age=0.0, at_step=self._began)
        tracks, accumulation = self._tracks, self._session.config.gradient_accumulation_steps
        decay = tracks.decay_per_update()
        if tracks.pace is None:
            decay = warmup_decay(self._began // accumulation, decay)
        return AverageAge(
            start_share=None if record is None else record.start_share,
            mean_age=min(settled_age(decay, self._steps_per_update), self._began),
            at_step=self._began,
        )

    @property
    def _steps_per_update(self) -> int:
        return int(self._tracks.update_step_interval * self._session.config.gradient_accumulation_steps)

    @property
    def _file_dtype(self) -> torch.dtype | None:
        dtype: torch.dtype | None = self._session.config.output_dtype.torch_dtype()
        return dtype

    # -- when --------------------------------------------------------------------------------------------

    def updated(self, optimization_step: int, decay: float) -> None:
        """Follow an update of the average, right after it, and look where a look is due.

        Args:
            optimization_step: 0-based number of the optimizer step.
            decay: Of this update.
        """
        step = self._session.model.train_progress.global_step + 1  # OneTrainer counts the step only later
        # Also where looking has failed: backups note what is left of the start.
        self.age.advance(decay, step=step)
        self._updated_at, self._decay = optimization_step, decay
        if self._times.is_due(step, now=self._clock()):
            self._guarded(lambda: self._look(step, final=False))

    def before_save(self) -> None:
        """Look at what is about to be written. The live weights have to be shown."""
        self._guarded(lambda: self._look(self._session.model.train_progress.global_step, final=self._session.ending))

    def _is_over(self, step: int) -> bool:
        """Whether a run that ends has come to its end, and was not stopped, from where it may go on."""
        run_steps = self._run_steps()
        return run_steps is None or step >= run_steps

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
            self._failed = True
            self._session.reporter.problem(
                "How far the two sets are apart could not be measured or written down; the curves in TensorBoard end "
                "here. Training and the sets themselves are as they should be.",
                error,
            )

    def _look(self, step: int, *, final: bool) -> None:
        if step != self._looked_at:
            self._looked_at = step
            began = self._clock()
            pairs = self._pairs()
            found = distances(pairs)
            taken = sample(pairs, size=SAMPLED, file_dtype=self._file_dtype)
            age = self.age
            swing = self._swings.add(taken, step=step, mean_age=age.mean_age, start_share=age.start_share)
            self._same = self._is_same(taken, step=step, final=final)
            self._show(step, found, swing)
            self._times.looked(step, run_steps=self._run_steps(), seconds=self._clock() - began)
        self._warn(step, final=final)

    def _pairs(self) -> list[Pair]:
        tracks = self._tracks
        live: list[Tensor] = self._session.model.parameters.parameters()
        return [
            (name, average, parameter)
            for name, parameter in zip(tracks.names, live, strict=True)
            if parameter.requires_grad and (average := tracks.average(name)) is not None
        ]

    def _run_steps(self) -> int | None:
        length = steps_per_epoch(self._session)
        return None if length is None else length * int(self._session.config.epochs)

    # -- what is shown -----------------------------------------------------------------------------------

    def _show(self, step: int, found: dict[str, Distance], swing: float | None) -> None:
        values = {"distance": sum(found.values(), Distance()).relative}
        values |= {f"distance/{part}": distance.relative for part, distance in found.items()}
        if self._decay is not None:
            values["decay_per_step"] = self._decay ** (1.0 / self._steps_per_update)
        values |= {f"half_life_steps/{name}": length for name, length in self._lengths(step).items()}
        if self.age.start_share is not None:
            values["start_share"] = self.age.start_share
        if swing is not None:
            values["swing"] = swing
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        # OneTrainer's own curves give a step the number of steps that were done before it.
        self._draw(lambda board: [board.add_scalar(f"{TAG}/{key}", value, step - 1) for key, value in values.items()])
        self._note({"step": step, **values})

    def _lengths(self, step: int) -> dict[str, float]:
        """Each track's half-life as it is by now, in steps."""
        pace = self._tracks.pace
        now = run_average(self._session).half_life_at(step).steps
        lengths = {"EMA": now if pace is None else young_half_life(now, pace.age)}
        if (post_hoc := self._session.post_hoc) is not None:
            lengths |= {f"POST_HOC_{sigma_rel:g}": steps for sigma_rel, steps in post_hoc.half_lives().items()}
        return lengths

    def _draw(self, draw: Callable[[Any], object]) -> None:
        """Draw in OneTrainer's TensorBoard, which its trainer has on the first process only."""
        board = getattr(self._session.trainer, "tensorboard", None)
        if board is not None:
            draw(board)

    def _note(self, entry: dict[str, object]) -> None:
        """Add a line to the plugin's own list of what was found."""
        session = self._session
        path = session.workspace / DRIFT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"run": session.run, "leg": session.plan.leg.id, **entry})
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    # -- warnings ----------------------------------------------------------------------------------------

    def _is_same(self, taken: Sample, *, step: int, final: bool) -> bool:
        """Whether the sets are as good as equal in files, at two looks one after the other."""
        before, self._same_before = self._same_before, taken.same
        run_steps = self._run_steps()
        early = run_steps is None or step - self._began < EARLY * (run_steps - self._began)
        return taken.same and before and (final or not early)

    def _warn(self, step: int, *, final: bool) -> None:
        # What is wrong with the length as such was said when the data was loaded.
        known = not final and bool(run_average(self._session).warnings(run_steps=self._run_steps()))
        if self._same and not known:
            self._say("same", step, same_to_rounding(step, file_dtype=self._file_dtype))
        over = final and self._is_over(step)
        if not known and (share := self._share_at_end(final=over)) is not None:
            self._say("start", step, start_remains(share, ended=over))
        if (swing := self._swings.swinging) is not None:
            self._say("swing", step, swings(swing, step=step))

    def _say(self, kind: str, step: int, text: str) -> None:
        if kind in self._warned:
            return
        self._warned.add(kind)
        self._session.reporter.say(f"WARNING: {text}")
        self._draw(lambda board: board.add_text(f"{TAG}/warnings", text, step - 1))
        self._note({"step": step, "warning": kind, "text": text})

    def _share_at_end(self, *, final: bool) -> float | None:
        """The beginning's share in the average at the end of the run, where that is too much."""
        share, run_steps = self.age.start_share, self._run_steps()
        if share is None or share < START_LEFT:
            return None
        if final:
            return share
        if run_steps is None or self._updated_at is None:
            return None
        tracks, accumulation = self._tracks, self._session.config.gradient_accumulation_steps
        interval = tracks.update_step_interval
        updates = range(self._updated_at + interval, run_steps // accumulation, interval)
        if tracks.pace is None:
            share = later_share(share, decay=tracks.decay, updates=updates, at_least=START_LEFT)
        else:
            share *= tracks.pace.decay() ** len(updates)
        return share if share >= START_LEFT else None


def begin(session: Session, record: EmaRecord | None) -> None:
    """Begin to watch, where there is an average; a watch that cannot begin is reported and left out."""
    if session.ema is None:
        return
    try:
        session.drift = DriftWatch(session, session.ema, record)
    except Exception as error:  # noqa: BLE001 - nothing of ours may end a run
        session.reporter.problem("The distance between the two sets cannot be followed in this run.", error)
