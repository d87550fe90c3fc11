from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrainer_ema_select.schedule import (
    DueMilestone,
    Milestone,
    Position,
    Unit,
    due_milestones,
    is_update_step,
    parse_milestones,
    warmup_decay,
)

# --- decay and interval ---


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [
        (0, 0.999, 0.1),
        (1, 0.999, 2 / 11),
        (8, 0.999, 0.5),
        (80, 0.9, 0.9),
        (79, 0.9, 80 / 89),
        (8990, 0.999, 0.999),
        (8980, 0.999, 8981 / 8990),
        (10**9, 0.999, 0.999),
        (0, 0.05, 0.05),
        (5, 0.0, 0.0),
    ],
)
def test_decay_of_known_updates(step: int, decay: float, expected: float) -> None:
    assert warmup_decay(step, decay) == expected


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_decay_is_the_lower_of_warm_up_and_limit(step: int, decay: float) -> None:
    # 1 - 9 / (10 + k) is the same curve; computed exactly, then rounded.
    curve = float(1 - Fraction(9, 10 + step))
    expected = min(curve, decay)
    assert warmup_decay(step, decay) == expected
    assert warmup_decay(step, decay) <= warmup_decay(step + 1, decay)


@given(st.integers(1, 50), st.integers(0, 200))
def test_updates_come_at_the_end_of_each_interval(interval: int, steps: int) -> None:
    updates = [step for step in range(steps) if is_update_step(step, interval)]
    waited, expected = 0, []
    for step in range(steps):
        waited += 1
        if waited == interval:
            expected.append(step)
            waited = 0
    assert updates == expected


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_below_one_is_refused(interval: int) -> None:
    with pytest.raises(ValueError, match=rf"^the EMA update interval must be 1 or more, found {interval}$"):
        is_update_step(3, interval)


# --- reading milestones ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  ,, ", ()),
        ("10 epochs", (Milestone(Unit.EPOCHS, 10),)),
        ("4000 steps", (Milestone(Unit.STEPS, 4000),)),
        ("25%", (Milestone(Unit.PERCENT, 25),)),
        ("every 5 epochs", (Milestone(Unit.EPOCHS, 5, True),)),
        ("every 500 steps", (Milestone(Unit.STEPS, 500, True),)),
        ("every epoch", (Milestone(Unit.EPOCHS, 1, True),)),
        ("1 Epoch,\tEVERY  1 Step ,", (Milestone(Unit.EPOCHS, 1), Milestone(Unit.STEPS, 1, True))),
        ("10epochs,every 5steps", (Milestone(Unit.EPOCHS, 10), Milestone(Unit.STEPS, 5, True))),
        ("12.5 %, 0.001%, 100%", tuple(Milestone(Unit.PERCENT, p) for p in (12.5, 0.001, 100))),
        ("25%, 25.0 %, 025%", (Milestone(Unit.PERCENT, 25),)),
        ("2 epochs, 1 epoch, 2 epochs", (Milestone(Unit.EPOCHS, 2), Milestone(Unit.EPOCHS, 1))),
        ("5 epochs, every 5 epochs", (Milestone(Unit.EPOCHS, 5), Milestone(Unit.EPOCHS, 5, True))),
        # As a Chinese keyboard types it: full-width comma, digits and percent sign.
        ("10 epochs，２５％", (Milestone(Unit.EPOCHS, 10), Milestone(Unit.PERCENT, 25))),  # noqa: RUF001
    ],
)
def test_what_can_be_read(text: str, expected: tuple[Milestone, ...]) -> None:
    assert parse_milestones(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", '"12" has no unit (epochs, steps or %)'),
        ("12.5", '"12.5" has no unit (epochs, steps or %)'),
        ("epochs", '"epochs" has no number'),
        ("%", '"%" has no number'),
        ("every %", '"every %" has no number'),
        ("10 epoks", '"10 epoks" is not a milestone'),
        ("every", '"every" is not a milestone'),
        ("every10steps", '"every10steps" is not a milestone'),
        ("10 epochs 20 steps", '"10 epochs 20 steps" is not a milestone'),
        ("1e3 steps", '"1e3 steps" is not a milestone'),
        ("0 steps", '"0 steps" is not a whole number of 1 or more'),
        ("-5 epochs", '"-5 epochs" is not a whole number of 1 or more'),
        ("every 2.5 epochs", '"every 2.5 epochs" is not a whole number of 1 or more'),
        ("0%", '"0%" is not more than 0% and at most 100%'),
        ("-1%", '"-1%" is not more than 0% and at most 100%'),
        ("100.5%", '"100.5%" is not more than 0% and at most 100%'),
        ("every 10%", '"every 10%" repeats a percentage (write out the points, as in 25%, 50%, 75%)'),
        ("1234567890123 steps", '"1234567890123 steps" has a number of more than 12 digits'),
        ("٣ steps", '"٣ steps" is not a milestone'),
        (
            "10 epochs, 7, x, 25%, every  3%",
            '"7" has no unit (epochs, steps or %), "x" is not a milestone, '
            '"every 3%" repeats a percentage (write out the points, as in 25%, 50%, 75%)',
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_reason(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_milestones(text)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("milestone", "name"),
    [
        (Milestone(Unit.EPOCHS, 10), "10 epochs"),
        (Milestone(Unit.EPOCHS, 1), "1 epoch"),
        (Milestone(Unit.STEPS, 4000), "4000 steps"),
        (Milestone(Unit.STEPS, 500, True), "every 500 steps"),
        (Milestone(Unit.STEPS, 1, True), "every step"),
        (Milestone(Unit.PERCENT, 25), "25%"),
        (Milestone(Unit.PERCENT, 12.5), "12.5%"),
        (Milestone(Unit.PERCENT, 0.00001), "0.00001%"),
        (Milestone(Unit.PERCENT, 100), "100%"),
    ],
)
def test_names(milestone: Milestone, name: str) -> None:
    assert milestone.name == name
    assert parse_milestones(name) == (milestone,)


PERCENTS = st.decimals(Decimal("0.001"), 100, places=3).map(
    lambda value: int(value) if value == int(value) else float(value)
)
MILESTONES = st.one_of(
    st.builds(Milestone, st.sampled_from([Unit.EPOCHS, Unit.STEPS]), st.integers(1, 40), st.booleans()),
    st.builds(Milestone, st.just(Unit.PERCENT), PERCENTS),
)


@given(st.lists(MILESTONES, unique=True))
def test_names_can_be_read_back(milestones: list[Milestone]) -> None:
    assert parse_milestones(", ".join(milestone.name for milestone in milestones)) == tuple(milestones)


@given(st.text(st.sampled_from("every 0123.%,epochstps-+") | st.characters()))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        milestones = parse_milestones(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parse_milestones(", ".join(milestone.name for milestone in milestones)) == milestones


# --- when milestones are due ---


def host_positions(epochs: int, epoch_length: int) -> list[Position]:
    """Return the positions OneTrainer reports in a run: after each step, and once more after each epoch."""
    positions = []
    global_step = 0
    for epoch in range(epochs):
        for epoch_step in range(1, epoch_length + 1):
            global_step += 1
            positions.append(Position(global_step, epoch, epoch_step))
        positions.append(Position(global_step, epoch + 1, 0))
    return positions


def slow_reference(
    milestones: list[Milestone], epochs: int, epoch_length: int
) -> list[tuple[int, int, set[tuple[Milestone, int | float]]]]:
    """Return what is due at each reported position, by looking at each step for itself, in whole numbers."""
    expected = []
    total = epochs * epoch_length
    for epoch in range(epochs):
        for step in range(1, epoch_length + 1):
            done = epoch * epoch_length + step
            due: set[tuple[Milestone, int | float]] = set()
            for milestone in milestones:
                amount = milestone.amount
                if milestone.unit is Unit.STEPS and (done % amount == 0 if milestone.repeating else done == amount):
                    due.add((milestone, done))
                if milestone.unit is Unit.PERCENT:
                    thousandths = round(amount * 1000)
                    # The first step at which done / total reaches thousandths / 100000.
                    if done * 100000 >= thousandths * total > (done - 1) * 100000:
                        due.add((milestone, amount))
            expected.append((epoch, step, due))
        due = set()
        for milestone in milestones:
            if milestone.unit is Unit.EPOCHS and (
                (epoch + 1) % milestone.amount == 0 if milestone.repeating else epoch + 1 == milestone.amount
            ):
                due.add((milestone, epoch + 1))
        expected.append((epoch + 1, 0, due))
    return expected


@given(st.lists(MILESTONES, unique=True, max_size=5), st.integers(1, 12), st.integers(1, 15), st.integers(0, 30))
def test_a_run_step_by_step_against_a_slow_reference(
    milestones: list[Milestone], epochs: int, epoch_length: int, resumed_after: int
) -> None:
    positions = host_positions(epochs, epoch_length)
    # A resumed run begins at the position it was resumed at: nothing twice, nothing missed.
    start = min(resumed_after, len(positions) - 1)
    previous = Position(0, 0, 0) if start == 0 else positions[start - 1]
    expected = slow_reference(milestones, epochs, epoch_length)[start:]
    for position, (epoch, epoch_step, due) in zip(positions[start:], expected, strict=True):
        assert (position.epoch, position.epoch_step) == (epoch, epoch_step)
        found = due_milestones(
            milestones, previous=previous, current=position, epoch_length=epoch_length, epochs=epochs
        )
        assert len(found) == len(due)
        assert {(one.milestone, one.occurrence) for one in found} == due
        previous = position


@given(st.lists(MILESTONES, unique=True, max_size=5), st.integers(1, 8), st.integers(1, 12), st.data())
def test_a_jump_is_due_for_all_it_jumps_over(
    milestones: list[Milestone], epochs: int, epoch_length: int, data: st.DataObject
) -> None:
    positions = [Position(0, 0, 0), *host_positions(epochs, epoch_length)]
    start = data.draw(st.integers(0, len(positions) - 1))
    end = data.draw(st.integers(start, len(positions) - 1))
    jumped = due_milestones(
        milestones,
        previous=positions[start],
        current=positions[end],
        epoch_length=epoch_length,
        epochs=epochs,
    )
    walked: list[DueMilestone] = []
    for index in range(start, end):
        walked += due_milestones(
            milestones,
            previous=positions[index],
            current=positions[index + 1],
            epoch_length=epoch_length,
            epochs=epochs,
        )
    assert sorted(map(repr, jumped)) == sorted(map(repr, walked))


def due_names(text: str, *, previous: Position, current: Position, epoch_length: int, epochs: int) -> list[str]:
    due = due_milestones(
        parse_milestones(text), previous=previous, current=current, epoch_length=epoch_length, epochs=epochs
    )
    return [milestone.name for milestone in due]


def test_names_and_order_of_what_is_due() -> None:
    assert due_names(
        "50%, every 500 steps, 1 epoch, every epoch, 1500 steps",
        previous=Position(400, 0, 400),
        current=Position(1500, 1, 500),
        epoch_length=1000,
        epochs=3,
    ) == [
        "50%",
        "every 500 steps @ 500 steps",
        "every 500 steps @ 1000 steps",
        "every 500 steps @ 1500 steps",
        "1 epoch",
        "every epoch @ 1 epoch",
        "1500 steps",
    ]


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 57, 58])
def test_a_percentage_of_a_hundred_steps_is_that_step(percent: int) -> None:
    # In floats some of these come out one step late: 7 / 100 * 100 is above 7.
    steps = [position for position in host_positions(1, 100) if position.epoch_step]
    previous = Position(0, 0, 0)
    due_at = []
    for position in steps:
        if due_names(f"{percent}%", previous=previous, current=position, epoch_length=100, epochs=1):
            due_at.append(position.global_step)
        previous = position
    assert due_at == [percent]
    assert math.ceil(7 / 100 * 100) == 8


@pytest.mark.parametrize(("percent", "step"), [("0.1", 1), ("0.3", 3), ("1.1", 11), ("1.15", 12)])
def test_a_percentage_with_decimals_is_taken_as_it_is_written(percent: str, step: int) -> None:
    # The float nearest to 0.1 is a little more than 0.1, which would be one step later.
    before, at = Position(step - 1, 0, step - 1), Position(step, 0, step)
    text = f"{percent}%"
    assert due_names(text, previous=before, current=at, epoch_length=1000, epochs=1) == [text]


def test_the_last_percent_is_due_once_at_the_last_step() -> None:
    before, last, after = Position(39, 3, 9), Position(40, 3, 10), Position(40, 4, 0)
    assert due_names("100%", previous=before, current=last, epoch_length=10, epochs=4) == ["100%"]
    assert due_names("100%", previous=last, current=after, epoch_length=10, epochs=4) == []


@pytest.mark.parametrize("estimate", [8, 10, 13])
def test_an_epoch_longer_or_shorter_than_estimated_makes_nothing_due_twice_or_never(estimate: int) -> None:
    text = ", ".join(f"{percent}%" for percent in range(5, 101, 5))
    previous, names = Position(0, 0, 0), []
    for position in host_positions(4, 10):
        names += due_names(text, previous=previous, current=position, epoch_length=estimate, epochs=4)
        previous = position
    assert names == text.split(", ")


def test_without_an_estimate_percentages_go_by_epochs() -> None:
    previous, current = Position(3, 0, 3), Position(3, 1, 0)
    assert due_names("50%", previous=Position(0, 0, 0), current=previous, epoch_length=0, epochs=2) == []
    assert due_names("50%", previous=previous, current=current, epoch_length=0, epochs=2) == ["50%"]


def test_nothing_is_due_where_nothing_moved() -> None:
    here = Position(500, 5, 0)
    text = "500 steps, every 5 epochs, 50%, every step"
    assert due_names(text, previous=here, current=here, epoch_length=100, epochs=10) == []
