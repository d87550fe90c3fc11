"""The records of validations: what they say is better, and how sure they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.validation import (
    HistoryEntry,
    Sureness,
    ValidationRecord,
    append_history,
    judge,
    read_history,
)

LABELS = ["a", "a", "b", "a"]
LIVE = [0.5, 0.7, 0.25, 0.9]


def record(ema: list[float], live: list[float] | None = None, labels: list[str] | None = None) -> ValidationRecord:
    live = LIVE if live is None else live
    return judge(step=8, epoch=1, labels=labels or LABELS[: len(ema)], ema=ema, non_ema=live)


def test_losses_are_summed_up_by_concept_and_in_total() -> None:
    found = record([0.4, 0.5, 0.25, 0.8])
    assert [(one.label, one.batches) for one in found.concepts] == [("a", 3), ("b", 1)]
    assert found.concepts[0].ema == pytest.approx(1.7 / 3)
    assert found.concepts[0].non_ema == pytest.approx(2.1 / 3)
    assert (found.concepts[1].ema, found.concepts[1].non_ema) == (0.25, 0.25)
    assert found.ema == pytest.approx(1.95 / 4)
    assert found.non_ema == pytest.approx(2.35 / 4)
    assert found.difference == pytest.approx(-0.1)
    # differences -0.1, -0.2, 0, -0.1: their spread is sqrt(0.02 / 3)
    assert found.standard_error == pytest.approx(math.sqrt(0.02 / 3) / 2)
    assert (found.step, found.epoch, found.batches) == (8, 1, 4)


# t of the paired differences, three degrees of freedom: p = 0.01 at 5.84, 0.1 at 2.35.
@pytest.mark.parametrize(
    ("differences", "better", "sure"),
    [
        ([-0.1, -0.11, -0.09, -0.1], WeightSet.EMA, Sureness.CLEAR),
        ([0.1, 0.11, 0.09, 0.1], WeightSet.NON_EMA, Sureness.CLEAR),
        ([-0.1, -0.2, 0.0, -0.1], WeightSet.EMA, Sureness.PROBABLE),
        ([-0.1, -0.3, 0.1, 0.2], WeightSet.EMA, Sureness.UNKNOWN),
        ([-0.5, -0.5, -0.5, -0.5], WeightSet.EMA, Sureness.CLEAR),
        ([0.0, 0.0, 0.0, 0.0], None, Sureness.UNKNOWN),
    ],
)
def test_the_better_one_and_how_sure(differences: list[float], better: WeightSet | None, sure: Sureness) -> None:
    live = [1.0, 2.0, 4.0, 8.0]
    found = record([one + other for one, other in zip(live, differences, strict=True)], live)
    assert (found.better, found.sure) == (better, sure)


def test_one_batch_says_which_but_not_how_sure() -> None:
    found = record([0.4], [0.5])
    assert (found.better, found.sure, found.standard_error) == (WeightSet.EMA, Sureness.UNKNOWN, None)
    assert found.text == (
        "better: EMA (validation loss: EMA 0.4 against non-EMA 0.5; difference 0.1, cannot be told whether that is "
        "chance; 1 batch, measured at step 8)"
    )


def test_what_is_said() -> None:
    assert record([0.6, 0.8, 0.35, 1.0]).text == (
        "better: non-EMA (validation loss: non-EMA 0.5875 against EMA 0.6875; difference 0.1 ± 1.602e-17, clear; "
        "4 batches, measured at step 8)"
    ).replace("1.602e-17", f"{record([0.6, 0.8, 0.35, 1.0]).standard_error:.4g}")
    assert record(LIVE).text == (
        "better: neither (validation loss: EMA 0.5875 against non-EMA 0.5875; no difference; 4 batches, measured at "
        "step 8)"
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_the_worse_one(broken: float) -> None:
    found = record([0.4, broken, 0.25, 0.8])
    assert (found.ema, found.difference, found.standard_error) == (None, None, None)
    assert [one.ema for one in found.concepts] == [None, 0.25]
    assert (found.better, found.sure) == (WeightSet.NON_EMA, Sureness.CLEAR)
    assert "non-EMA 0.5875 against EMA not finite; not a finite number; 4 batches" in found.text
    other = record(LIVE, [0.4, broken, 0.25, 0.8])
    assert (other.better, other.sure) == (WeightSet.EMA, Sureness.CLEAR)
    neither = record([broken] * 4, [broken] * 4)
    assert (neither.better, neither.sure) == (None, Sureness.UNKNOWN)


def test_losses_too_large_to_compare_are_kept_all_the_same() -> None:
    found = record([1e308, 1.0], [0.0, 1e308], ["a", "b"])
    assert ValidationRecord.model_validate_json(found.model_dump_json()) == found


def test_a_record_survives_json_and_says_what_it_comes_to() -> None:
    found = record([0.4, math.nan, 0.25, 0.8])
    raw = json.loads(found.model_dump_json())
    assert (raw["better"], raw["sure"], raw["ema"]) == ("NON_EMA", "clear", None)
    assert ValidationRecord.model_validate(raw) == found


def test_a_validation_without_a_batch_is_none() -> None:
    with pytest.raises(ValueError, match="without a batch"):
        judge(step=1, epoch=0, labels=[], ema=[], non_ema=[])
    with pytest.raises(ValueError, match="zip"):
        judge(step=1, epoch=0, labels=["a"], ema=[1.0], non_ema=[])


# -- the history ---------------------------------------------------------------------------------------------


def entry(step: int, *, ema: float = 0.4, run: str = "r", leg: str = "") -> HistoryEntry:
    judged = judge(step=step, epoch=0, labels=["a"], ema=[ema], non_ema=[0.5])
    return HistoryEntry(**judged.model_dump(), run=run, leg=leg)


def test_the_history_grows_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "ema_select" / "validation.jsonl"
    assert read_history(path) == ()
    entries = [entry(1), entry(2), entry(2, leg="x"), entry(2, run="other")]
    for one in entries:
        append_history(path, one)
    assert list(read_history(path)) == entries
    assert len(path.read_bytes().splitlines()) == 4


def test_a_validation_that_is_done_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    for one in (entry(1), entry(2), entry(2, ema=0.3), entry(3)):
        append_history(path, one)
    assert [(one.step, one.ema) for one in read_history(path)] == [(1, 0.4), (2, 0.3), (3, 0.4)]


def test_half_a_line_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    append_history(path, entry(1))
    with path.open("ab") as file:
        file.write(b'{"run": "r", "st\xff')
    append_history(path, entry(2))
    with path.open("ab") as file:
        file.write(b'null\n["x"]\n\n')
    assert [one.step for one in read_history(path)] == [1, 2]


def test_a_folder_in_its_place_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").mkdir()
    with pytest.raises(OSError):
        append_history(tmp_path / "validation.jsonl", entry(1))
