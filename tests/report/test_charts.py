"""Curves of numbers that nobody can draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onetrainer_ema_select.report import curves, make_report

from .runs import add_drift


def test_a_number_that_no_axis_reaches_costs_nothing_else(tmp_path: Path) -> None:
    add_drift(tmp_path, [5, 10])
    line = {"run": "r", "leg": "", "step": 15, "distance": 1.7e308, "half_life_steps/EMA": -1.7e308}
    with (tmp_path / "ema_select" / "drift.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    made = make_report(tmp_path)
    assert made.charts == ("distance", "decay", "length")
    assert "e+308" not in made.path.read_text(encoding="utf-8")


def test_a_curve_that_cannot_be_drawn_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_drift(tmp_path, [5, 10])
    draw = curves.draw

    def fail(chart: object) -> object:
        if chart.key == "decay":
            raise OverflowError("too large")
        return draw(chart)

    monkeypatch.setattr(curves, "draw", fail)
    made = make_report(tmp_path)
    assert made.charts == ("distance", "length")
    said = "The curve “Effective decay” could not be drawn, though there are numbers for it (OverflowError: too large)."
    assert any(said in text for text in made.missing)
    assert "曲线“有效衰减”有数据，但无法画出" in made.path.read_text(encoding="utf-8")
