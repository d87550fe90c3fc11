"""Following a run's validations: what is done with the losses, and what happens where something fails."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture
from torch import nn

from onetrainer_ema_select.host import judging
from onetrainer_ema_select.host.ema import HostEma
from onetrainer_ema_select.host.judging import Judge, follow_validation
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.host.seams import Seam, SeamResult
from onetrainer_ema_select.tracks import WeightTracks
from onetrainer_ema_select.validation import read_history

FAILED = "The validation loss of the EMA could not be computed; training goes on, and the next validation tries again."


class Board:
    """In the place of TensorBoard's writer."""

    made: list[Board]

    def __init__(self, log_dir: str) -> None:
        self.log_dir, self.drawn, self.closed = log_dir, [], False
        Board.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.drawn.append((tag, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Setup:
    """The loss is the weight itself."""

    def predict(self, model: Any, batch: dict, config: Any, train_progress: Any, *, deterministic: bool = False) -> Any:
        return model.weight.sum() * batch["x"]

    def calculate_loss(self, model: Any, batch: dict, data: Any, config: Any) -> Any:
        return data


class Trainer:
    """As much of OneTrainer's as validates."""

    def __init__(self, model: nn.Module, board: Any) -> None:
        self.model, self.model_setup, self.tensorboard = model, Setup(), board
        self.due = True
        self.losses: list[float] = []
        self.batches = [
            {"x": torch.tensor(x), "concept_name": [name], "concept_path": [""], "concept_seed": torch.tensor(seed)}
            for x, name, seed in ((1.0, "a", 1), (2.0, "a", 1), (4.0, "b", 2))
        ]

    def _GenericTrainer__validate(self, train_progress: Any) -> str:
        if self.due:
            for batch in self.batches:
                with torch.no_grad():
                    data = self.model_setup.predict(self.model, batch, None, train_progress, deterministic=True)
                    self.losses.append(self.model_setup.calculate_loss(self.model, batch, data, None).item())
        return "done"

    def validate(self, step: int) -> str:
        """As the host calls it, after the step of that number, the first being 1."""
        return self._GenericTrainer__validate(SimpleNamespace(global_step=step - 1, epoch=0))


class Run:
    """A session whose live weight is 1 and whose EMA is 0.5."""

    def __init__(self, folder: Path, *, ema: str = "CPU", validation: bool = True) -> None:
        Board.made = []
        self.model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
        tracks = WeightTracks(self.model.named_parameters(), decay=0.9, device="cpu")
        with torch.no_grad():
            self.model.weight.fill_(1.0)
        self.trainer = Trainer(self.model, Board(str(folder / "tensorboard" / "now")))
        self.statuses: list[str] = []
        self.reporter = Reporter(self.statuses.append)
        self.config = SimpleNamespace(validation=validation)
        self.workspace = folder
        self.ema_on = ema != "OFF"
        self.ema = HostEma(tracks, failed=lambda *_: None) if self.ema_on else None
        self.run, self.plan = "r", SimpleNamespace(leg=SimpleNamespace(id="x"))
        self.judge: Judge | None = None
        self.judged: Any = None


@pytest.fixture(autouse=True)
def _seams(mocker: MockerFixture) -> None:
    mocker.patch.object(judging, "check_live", return_value=())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    follow_validation(made)
    return made


def test_the_losses_are_drawn_written_and_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.judge is not None
    assert run.judge.attached
    assert run.trainer.validate(8) == "done"
    assert run.trainer.losses == [1.0, 2.0, 4.0]
    assert (run.judged.step, run.judged.ema, run.judged.non_ema) == (8, pytest.approx(3.5 / 3), pytest.approx(7 / 3))
    own, ema = Board.made
    assert own.drawn == []
    assert Path(ema.log_dir) == Path(own.log_dir) / "EMA"
    assert ema.drawn == [
        ("loss/validation_step/a", 0.75, 7),
        ("loss/validation_step/b", 2.0, 7),
        ("loss/validation_step/total_average", pytest.approx(3.5 / 3), 7),
    ]
    [entry] = read_history(run.workspace / "ema_select" / "validation.jsonl")
    assert (entry.run, entry.leg, entry.step, entry.ema) == ("r", "x", 8, run.judged.ema)
    assert entry.created
    assert capsys.readouterr().out == (
        "[ema_select] Validation after 8 steps: better: EMA (validation loss: EMA 1.167 against non-EMA 2.333; "
        "difference 1.167 ± 0.441, cannot be told whether that is chance; 3 batches, measured at step 8).\n"
    )
    run.trainer.validate(9)
    assert len(Board.made) == 2
    run.judge.detach()
    assert ema.closed
    assert not own.closed
    assert vars(run.trainer).keys() & {judging.VALIDATE} == set()
    assert run.model.weight.item() == 1.0


def test_one_concept_has_no_total(run: Run) -> None:
    run.trainer.batches = run.trainer.batches[:2]
    run.trainer.validate(1)
    assert [tag for tag, _, _ in Board.made[1].drawn] == ["loss/validation_step/a"]


def test_nothing_happens_where_no_validation_is_due(run: Run) -> None:
    run.trainer.due = False
    assert run.trainer.validate(8) == "done"
    assert run.judged is None
    assert len(Board.made) == 1
    assert run.statuses == []
    assert not (run.workspace / "ema_select").exists()


@pytest.mark.parametrize("options", [{"ema": "OFF"}, {"validation": False}])
def test_one_set_or_no_validation_is_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    run = Run(tmp_path, **options)
    follow_validation(run)
    assert run.judge is not None
    assert not run.judge.attached
    assert judging.VALIDATE not in vars(run.trainer)
    assert run.reporter.problems == []
    run.judge.detach()


def test_a_host_without_this_validation_trains_on(tmp_path: Path, mocker: MockerFixture) -> None:
    seam = Seam("modules.trainer.GenericTrainer", "GenericTrainer.x", ("self",), "validates")
    judging.check_live.return_value = (SeamResult(seam, None, False, "x: expected (self), found nothing"),)
    run = Run(tmp_path)
    follow_validation(run)
    assert run.reporter.problems == [
        "Both sets cannot be judged by validation loss with this OneTrainer; everything else works. x: expected "
        "(self), found nothing"
    ]
    assert judging.VALIDATE not in vars(run.trainer)
    judging.check_live.return_value = ()
    mocker.patch.object(judging, "VALIDATE", "_OtherTrainer__validate")
    other = Run(tmp_path)
    follow_validation(other)
    assert other.reporter.problems == [
        "Both sets cannot be judged by validation loss with this OneTrainer; everything else works. Trainer has no "
        "_OtherTrainer__validate."
    ]


def test_a_failure_is_reported_once_and_the_last_judgement_stays(run: Run) -> None:
    run.trainer.validate(1)
    good = run.judged
    own = run.trainer.model_setup.predict
    failing = [False]

    def predict(model: Any, *args: Any, **kwargs: Any) -> Any:
        if failing[0] and model.weight.item() == 0.5:
            raise RuntimeError("out of memory")
        return own(model, *args, **kwargs)

    run.trainer.model_setup.predict = predict
    failing[0] = True
    for step in (2, 3):
        assert run.trainer.validate(step) == "done"
    assert run.reporter.problems == [
        f"{FAILED} Further failures of this kind are not reported. Cause: RuntimeError: out of memory"
    ]
    assert run.judged is good
    assert run.model.weight.item() == 1.0
    failing[0] = False
    run.trainer.validate(4)
    assert run.judged.step == 4


def test_a_history_that_cannot_be_written_is_reported_once(run: Run) -> None:
    (run.workspace / "ema_select" / "validation.jsonl").mkdir(parents=True)
    run.trainer.validate(1)
    run.trainer.validate(2)
    [problem] = run.reporter.problems
    assert problem.startswith("The validation could not be added to ema_select/validation.jsonl. Further failures")
    assert run.judged.step == 2
    assert len(Board.made[1].drawn) == 6


def test_curves_that_cannot_be_drawn_are_reported_once(run: Run, mocker: MockerFixture) -> None:
    mocker.patch.object(Board, "add_scalar", side_effect=OSError("disk full"))
    mocker.patch.object(Board, "close", side_effect=OSError("disk full"))
    run.trainer.validate(1)
    run.trainer.validate(2)
    assert run.judge is not None
    run.judge.detach()
    assert [problem.partition(".")[0] for problem in run.reporter.problems] == [
        "The EMA's validation loss could not be drawn in TensorBoard",
        "The EMA's validation curve could not be closed",
    ]
    assert len(read_history(run.workspace / "ema_select" / "validation.jsonl")) == 2


def test_a_host_without_tensorboard_has_no_curves(run: Run) -> None:
    run.trainer.tensorboard = None
    run.trainer.validate(1)
    assert run.reporter.problems == []
    assert run.judged is not None


def test_losses_that_are_not_finite(run: Run) -> None:
    run.trainer.batches[1]["x"] = torch.tensor(float("inf"))
    run.trainer.validate(1)
    assert (run.judged.ema, run.judged.non_ema, run.judged.better) == (None, None, None)
    values = {tag.rpartition("/")[2]: value for tag, value, _ in Board.made[1].drawn}
    assert values["b"] == 2.0
    assert values["a"] != values["a"]
    line = (run.workspace / "ema_select" / "validation.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["ema"] is None


def test_what_the_hosts_own_validation_raises_is_raised(run: Run, mocker: MockerFixture) -> None:
    mocker.patch.object(Setup, "calculate_loss", side_effect=RuntimeError("of the host"))
    with pytest.raises(RuntimeError, match="of the host"):
        run.trainer.validate(1)
    assert run.reporter.problems == []
    assert vars(run.trainer.model_setup) == {}


def test_the_validation_is_of_the_live_weights_whatever_was_interrupted_before(run: Run) -> None:
    run.ema.tracks.show_ema()
    run.trainer.validate(1)
    assert run.trainer.losses == [1.0, 2.0, 4.0]
