"""Measurements that runs leave: the line that led to the newest, whatever is broken beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onetrainer_ema_select.report.sources import (
    line_of,
    read_curves,
    read_drift,
    read_snapshots,
    read_validations,
)

from .runs import add_drift, add_snapshots, add_validation


def write_lines(path: Path, *lines: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def test_a_run_that_was_taken_back_leaves_what_it_left_behind() -> None:
    entries = [(10, "a"), (20, "b"), (30, "c"), (20, "d"), (25, "e")]
    assert line_of(entries) == ("a", "d", "e")
    assert line_of([]) == ()


def test_validations_are_read_as_they_were_written(tmp_path: Path) -> None:
    add_validation(tmp_path, [100, 200, 300, 400])
    found = read_validations(tmp_path)
    assert [one.step for one in found] == [100, 200, 300, 400]
    assert found[-1].better == "ema"
    assert found[-1].sure == "clear"
    assert found[0].sure == ""
    assert [label for label, _, _ in found[-1].concepts] == ["portraits", "landscapes"]


def test_lines_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ema_select" / "validation.jsonl"
    good = {"step": 4, "ema": 1.0, "non_ema": 2, "better": "EMA", "sure": "no such word", "concepts": "none"}
    nested = "[" * 100_000
    write_lines(path, '{"step": 1, "em', nested, [1], "null", {"step": -1}, {"step": "3"}, {"step": True}, good)
    (found,) = read_validations(tmp_path)
    assert (found.step, found.ema, found.non_ema, found.sure, found.concepts) == (4, 1.0, 2.0, "", ())
    write_lines(path, {"step": 5, "ema": float("nan"), "non_ema": 10**400, "standard_error": "x"})
    (found,) = read_validations(tmp_path)
    assert (found.ema, found.non_ema, found.error) == (None, None, None)


def test_drift_has_values_and_warnings(tmp_path: Path) -> None:
    add_drift(tmp_path, [5, 10])
    path = tmp_path / "ema_select" / "drift.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(
            '{"run": "r", "leg": "", "step": 10, "warning": "swing"}\n'
            '{"run": "r", "leg": "", "step": 15, "distance": Infinity}\n'
        )
    looks, warnings = read_drift(tmp_path)
    assert [one.step for one in looks] == [5, 10, 15]
    assert looks[0].values["half_life_steps/EMA"] == pytest.approx(1.4)
    assert looks[2].values == {}
    assert warnings == {"swing"}


def test_snapshots_by_step(tmp_path: Path) -> None:
    add_snapshots(tmp_path, [200, 100])
    folder = tmp_path / "ema_select" / "post_hoc" / "backup"
    (folder / "broken").mkdir()
    (folder / "broken" / "manifest.json").write_text('{"step": 7, "post_hoc": {"tracks": [3, {}]}}', encoding="utf-8")
    (folder / "stray.txt").touch()
    found, problems = read_snapshots(tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith("The snapshot broken was left out: ")
    assert [(one.step, one.sigma_rels) for one in found] == [
        (100, (0.05, 0.1)),
        (200, (0.05, 0.1)),
    ]


def test_curves_of_two_starts_are_one_line(tmp_path: Path) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard")
    for start, first, last in (("2026-01-01_10-00-00", 0, 20), ("2026-01-01_11-00-00", 10, 15)):
        board = writer.SummaryWriter(str(tmp_path / "tensorboard" / start))
        for step in range(first, last):
            board.add_scalar("loss/train_step", first + step, step)
        board.add_scalar("loss/validation_step/total_average", 0.5, last - 1)
        board.add_scalar("lr/unet", 0.5, last - 1)
        board.close()
        ema = writer.SummaryWriter(str(tmp_path / "tensorboard" / start / "EMA"))
        ema.add_scalar("loss/validation_step/total_average", 0.25, last - 1)
        ema.close()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.x").write_bytes(b"no events at all, but some bytes")
    curves = read_curves(tmp_path)
    assert curves.training == {
        "loss/train_step": [(s, float(s)) for s in range(10)] + [(s, s + 10.0) for s in range(10, 15)]
    }
    assert curves.validation == {"total_average": [(14, 0.5)]}
    assert curves.ema_validation == {"total_average": [(14, 0.25)]}


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert read_validations(tmp_path) == ()
    assert read_drift(tmp_path) == ((), frozenset())
    assert read_snapshots(tmp_path) == ((), ())
    assert read_curves(tmp_path).training == {}


def test_warnings_are_those_of_the_last_look_and_its_leg(tmp_path: Path) -> None:
    path = tmp_path / "ema_select" / "drift.jsonl"
    now = {"run": "b", "leg": "2"}
    write_lines(
        path,
        {"run": "a", "leg": "", "step": 900, "distance": 0.5},
        {"run": "a", "leg": "", "step": 900, "warning": "swing"},
        {"run": "b", "leg": "", "step": 5, "warning": "same"},
        {**now, "step": 1000, "distance": 0.1, "start_share": 0.7},
        {**now, "step": 1000, "warning": "start"},
    )
    looks, warnings = read_drift(tmp_path)
    assert ([one.step for one in looks], warnings) == ([1000], {"start"})
    write_lines(path, {**now, "step": 1000, "warning": "start"}, {**now, "step": 1100, "start_share": 0.4})
    assert read_drift(tmp_path)[1] == frozenset()
