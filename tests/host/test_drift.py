"""The watch over a run's sets, driven by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from onetrainer_ema_select.host import drift
from onetrainer_ema_select.host.drift import DriftWatch
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.length import Pace
from onetrainer_ema_select.manifest import EmaRecord
from onetrainer_ema_select.settings import parse_settings
from onetrainer_ema_select.tracks import WeightTracks

EPOCH, EPOCHS = 50, 2


class Board:
    """In the place of the host's TensorBoard."""

    def __init__(self) -> None:
        self.scalars: dict[str, dict[int, float]] = {}
        self.texts: list[tuple[str, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, {})[step] = value

    def add_text(self, tag: str, text: str, step: int) -> None:
        assert tag == "ema_select/warnings"
        self.texts.append((text, step))


class Run:
    """A run of two weights in two parts, whose steps are made by the test."""

    def __init__(
        self,
        workspace: Path,
        *,
        decay: float = 0.9,
        interval: int = 1,
        accumulation: int = 1,
        first: int = 0,
        starts: bool = True,
        record: EmaRecord | None = None,
        file_dtype: torch.dtype | None = torch.float32,
        pace: Pace | None = None,
        board: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed(2)
        self.weights = [nn.Parameter(torch.randn(size, generator=generator)) for size in (3000, 20)]
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.progress = SimpleNamespace(global_step=first)
        self.now = 0.0
        names = ["unet.a", "text_encoder.b", "unet.frozen"]
        tracks = WeightTracks(
            zip(names, [*self.weights, self.frozen], strict=True),
            decay=decay,
            device="cpu",
            update_step_interval=interval,
            pace=pace,
        )
        self.board = Board() if board else None
        self.reporter = Mock()
        data_set = SimpleNamespace(approximate_length=lambda: EPOCH)
        self.session: Any = SimpleNamespace(
            settings=parse_settings({"enabled": True, "ema_half_life": "20 steps" if pace else ""}),
            post_hoc=None,
            config=SimpleNamespace(
                output_dtype=SimpleNamespace(torch_dtype=lambda: file_dtype),
                gradient_accumulation_steps=accumulation,
                ema_decay=decay,
                ema_update_step_interval=interval,
                epochs=EPOCHS,
                batch_size=2,
            ),
            model=SimpleNamespace(
                train_progress=self.progress,
                parameters=SimpleNamespace(parameters=lambda: [*self.weights, self.frozen]),
            ),
            trainer=SimpleNamespace(data_loader=SimpleNamespace(get_data_set=lambda: data_set)),
            ema=HostEma(tracks, failed=Mock()),
            starts_average=starts,
            ending=False,
            workspace=workspace,
            run="r",
            plan=SimpleNamespace(leg=SimpleNamespace(id="l")),
            reporter=self.reporter,
            drift=None,
        )
        if self.board is not None:
            self.session.trainer.tensorboard = self.board
        self.watch = DriftWatch(self.session, self.session.ema, record, clock=lambda: self.now)

    def step(self, count: int = 1, *, by: float = 1e-3) -> None:
        for _ in range(count):
            with torch.no_grad():
                for weight in self.weights:
                    weight += by
            done = self.progress.global_step
            accumulation = self.session.config.gradient_accumulation_steps
            if (done + 1) % accumulation == 0:
                self.session.ema.step([*self.weights, self.frozen], done // accumulation)
            self.progress.global_step += 1

    def end(self) -> None:
        self.session.ending = True
        self.watch.before_save()

    @property
    def warnings(self) -> list[str]:
        return [call.args[0] for call in self.reporter.say.call_args_list]

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.session.workspace / "ema_select" / "drift.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def apart(self) -> float:
        averages = list(self.session.ema.ema_parameters)[:2]
        differences = [(w.detach(), a) for w, a in zip(self.weights, averages, strict=True)]
        off = sum(float((w.double() - a.double()).square().sum()) for w, a in differences)
        return math.sqrt(off / sum(float(w.detach().double().square().sum()) for w in self.weights))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onetrainer_ema_select.host.length.images_per_step", lambda config: config.batch_size)


def test_a_look_is_drawn_beside_the_host_s_own_curves_and_noted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    apart = []
    for _ in range(10):
        run.step()
        apart.append(run.apart())
    assert run.board is not None
    drawn = run.board.scalars
    assert set(drawn) == {
        f"ema_select/{key}"
        for key in (
            "distance",
            "distance/unet",
            "distance/text_encoder",
            "decay_per_step",
            "half_life_steps/EMA",
            "start_share",
            "swing",
        )
    }
    assert list(drawn["ema_select/distance"]) == list(range(10))
    assert list(drawn["ema_select/distance"].values()) == pytest.approx(apart, rel=1e-5)
    assert drawn["ema_select/decay_per_step"][7] == pytest.approx(8 / 17)
    assert drawn["ema_select/half_life_steps/EMA"][7] == pytest.approx(math.log(2) / math.log(17 / 8))
    assert drawn["ema_select/start_share"][2] == pytest.approx(1 / 10 * 2 / 11 * 3 / 12)
    assert [line["step"] for line in run.lines] == list(range(1, 11))
    assert run.lines[7] | {"run": "r", "leg": "l"} == run.lines[7]
    assert run.lines[7]["distance"] == drawn["ema_select/distance"][7]
    assert run.warnings == []
    run.reporter.problem.assert_not_called()


def test_interval_and_accumulation_are_in_the_length(tmp_path: Path) -> None:
    run = Run(tmp_path, decay=0.5, interval=2, accumulation=3)
    run.step(48)
    assert run.board is not None
    assert list(run.board.scalars["ema_select/distance"]) == list(range(5, 48, 6))
    assert run.board.scalars["ema_select/half_life_steps/EMA"][47] == pytest.approx(6.0)
    assert run.board.scalars["ema_select/decay_per_step"][47] == pytest.approx(0.5 ** (1 / 6))


def test_a_half_life_has_its_own_curve(tmp_path: Path) -> None:
    pace = Pace(lambda: 20.0, interval=5, accumulation=1, at_step=0, age=0.0)
    run = Run(tmp_path, interval=5, pace=pace)
    decays = []
    for step in range(EPOCH):
        decays.append(run.session.ema.get_current_decay(step))
        run.step()
    assert run.board is not None
    drawn = run.board.scalars["ema_select/half_life_steps/EMA"]
    assert drawn[4] == pytest.approx(20 * (1 - math.log2(1 + 2**-0.25)))
    assert drawn[49] == pytest.approx(20 * (1 - math.log2(1 + 2**-2.5)))
    assert run.board.scalars["ema_select/start_share"][4] == 0.0
    # the host's own curve: one decay for all the steps that come to one update, and no saw
    assert all(decays[step] == decays[step - step % 5] for step in range(EPOCH))
    assert decays[0] == 0.0
    assert decays[::5] == sorted(decays[::5])


def test_a_run_without_tensorboard_is_noted_all_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, board=False)
    run.step(3)
    assert len(run.lines) == 3
    run.reporter.problem.assert_not_called()


def test_what_is_saved_is_looked_at_and_nothing_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, interval=10)
    run.step(13)
    run.watch.before_save()
    run.watch.before_save()
    assert [line["step"] for line in run.lines] == [10, 13]
    assert run.lines[1]["distance"] == pytest.approx(run.apart(), rel=1e-5)


def test_a_failure_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "ema_select").write_text("a file in the way", encoding="utf-8")
    run = Run(tmp_path)
    run.step(5)
    run.watch.before_save()
    run.reporter.problem.assert_called_once()
    text, error = run.reporter.problem.call_args.args
    assert text.startswith("How far the two sets are apart could not be measured or written down")
    assert isinstance(error, OSError)
    assert run.session.ema.tracks.updates == 5
    # what backups note goes on
    assert run.watch.age.start_share == pytest.approx(math.prod((1 + k) / (10 + k) for k in range(5)))


def test_a_watch_that_cannot_begin_is_told_and_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    del run.session.model.train_progress
    drift.begin(run.session, None)
    run.reporter.problem.assert_called_once()
    assert run.reporter.problem.call_args.args[0] == (
        "The distance between the two sets cannot be followed in this run."
    )
    assert run.session.drift is None
    run.session.ema = None
    drift.begin(run.session, None)
    run.reporter.problem.assert_called_once()


def test_a_wreck_is_no_trouble(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    run.step(2, by=math.nan)
    assert "distance" in run.lines[0]
    assert "distance" not in run.lines[2]
    run.reporter.problem.assert_not_called()


def test_looks_that_take_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    found = drift.distances

    def slow(pairs: Any) -> Any:
        run.now += 100.0
        return found(pairs)

    monkeypatch.setattr(drift, "distances", slow)
    run.step(20)
    assert [line["step"] for line in run.lines] == [1]
    run.end()
    assert [line["step"] for line in run.lines] == [1, 20]


# -- warnings ------------------------------------------------------------------------------------------------


def test_equal_files_are_warned_of_once(tmp_path: Path) -> None:
    run = Run(tmp_path, file_dtype=torch.bfloat16)
    run.step(30, by=1e-9)
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith(
        "WARNING: After step 10 the two sets are the same to rounding: in bfloat16, as in the files, fewer than one "
        "weight in 1,000 differs, or by next to nothing. Give the EMA a longer half-life, for example "
        "ema_select.ema_half_life=1 epochs."
    )
    assert run.board is not None
    assert run.board.texts == [(run.warnings[0].removeprefix("WARNING: "), 9)]
    assert [line for line in run.lines if "warning" in line] == [
        {"run": "r", "leg": "l", "step": 10, "warning": "same", "text": run.board.texts[0][0]}
    ]


def test_sets_that_have_just_begun_or_are_equal_for_a_moment_are_not_warned_of(tmp_path: Path) -> None:
    run = Run(tmp_path, file_dtype=None)
    run.step(9, by=0.0)  # a learning rate that warms up
    run.step(30)
    assert run.warnings == []


def test_at_the_end_it_is_said_however_short_the_run_was(tmp_path: Path) -> None:
    run = Run(tmp_path, file_dtype=None)
    run.step(3, by=0.0)
    assert run.warnings == []
    run.step(1, by=0.0)
    run.end()
    assert run.warnings == []  # nothing new since the last look, which was too early to be sure
    run = Run(tmp_path, file_dtype=None, interval=3)
    run.step(4, by=0.0)
    run.end()
    assert len(run.warnings) == 1
    assert "in the weights' own precision, as in the files" in run.warnings[0]


def test_a_run_that_is_stopped_early_is_not_told_of_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path, decay=0.9)  # long enough to be left behind by the end, but not after three steps
    run.session.config.epochs = 100
    run.step(2)
    run.watch.age.start_share = 0.9
    run.end()
    assert run.warnings == []
    run = Run(tmp_path, decay=0.9)
    run.session.config.epochs = 100
    run.progress.global_step = EPOCH * 100
    run.watch.age.start_share = 0.9
    run.end()
    assert [text[:50] for text in run.warnings] == ["WARNING: At the end of this run the EMA is still t"]


def test_an_average_that_will_not_leave_the_start_is_warned_of_at_once(tmp_path: Path) -> None:
    # the warm-up is over long ago, as in a run that is resumed with a new average near its end
    run = Run(tmp_path, decay=0.9935, first=0)
    run.session.config.epochs = 100  # the last 50 of 5,000 steps
    run.progress.global_step = 4950
    run.watch = DriftWatch(run.session, run.session.ema, None, clock=lambda: run.now)
    run.step()
    assert run.warnings == [
        "WARNING: At the end of this run the EMA will still be to 72% what it began with: its decay is too long for "
        "this run, and it hardly leaves the start. Set ema_select.ema_half_life, for example to 1 epochs, or lower "
        "ema_decay or ema_update_step_interval. Until then the non-EMA set is the one that holds what was learnt."
    ]
    run.step(49)
    assert run.watch.age.start_share == pytest.approx(0.9935**50)
    assert round(0.9935**50, 2) == 0.72
    run.end()
    assert len(run.warnings) == 1


def test_what_the_run_was_told_of_its_length_is_not_said_again_before_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path, decay=0.999, interval=50)  # half-life 34,657 steps of 100; two updates, at 0.85 and 0.92
    run.step(100)
    assert run.warnings == []
    run.end()
    assert len(run.warnings) == 1
    assert f"the EMA is still to {50 / 59 * 100 / 109:.0%} what it began with" in run.warnings[0]


def test_the_start_is_remembered_over_a_resume_and_not_guessed(tmp_path: Path) -> None:
    record = EmaRecord(
        file="", dtype="FLOAT_32", decay=0.999, update_step_interval=50, updates=1, step=50, start_share=0.8
    )
    run = Run(tmp_path, decay=0.999, interval=50, first=50, starts=False, record=record)
    run.step(50)
    assert run.watch.age.start_share == pytest.approx(0.8 * 100 / 109)
    run = Run(tmp_path, decay=0.999, interval=50, first=50, starts=False)
    run.step(50)
    run.end()
    assert run.watch.age.start_share is None
    assert "start_share" not in run.lines[-1]
    assert run.warnings == []


def test_weights_that_swing_are_warned_of_once(tmp_path: Path) -> None:
    run = Run(tmp_path, decay=0.97)
    for step in range(EPOCH * EPOCHS):
        run.step(by=0.1 * (-1) ** step + 1e-5)
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith("WARNING: The non-EMA weights swing: of late, up to step ")
    assert "prefer the EMA set, or lower the learning rate" in run.warnings[0]
