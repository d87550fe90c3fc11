from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from onetrainer_ema_select.host.milestones import MilestoneWatch, position
from onetrainer_ema_select.schedule import Position

EPOCH_LENGTH, EPOCHS = 4, 5


def at(step: int, *, epoch: int | None = None) -> SimpleNamespace:
    """OneTrainer's progress after so many steps; `epoch` right after an epoch was counted."""
    done = step // EPOCH_LENGTH if epoch is None else epoch
    return SimpleNamespace(global_step=step, epoch=done, epoch_step=step - done * EPOCH_LENGTH, epoch_sample=0)


def advance(watch: MilestoneWatch, progress: SimpleNamespace) -> bool:
    return watch.advance(progress, epoch_length=EPOCH_LENGTH, epochs=EPOCHS)


def run(watch: MilestoneWatch, first: int, last: int) -> list[tuple[int, tuple[str, ...]]]:
    """Every step as OneTrainer reports it, a due save served before the next one: where which were served."""
    served = []
    for step in range(first, last + 1):
        epoch = (step - 1) // EPOCH_LENGTH
        due = advance(watch, at(step, epoch=epoch))
        if step % EPOCH_LENGTH == 0:
            due = advance(watch, at(step, epoch=epoch + 1)) or due
        assert due == bool(watch.pending)
        if due:
            served.append((step, watch.pending))
            watch.served(watch.pending)
    return served


def test_the_progress_of_the_host_is_a_position() -> None:
    assert position(at(9)) == Position(global_step=9, epoch=2, epoch_step=1)


def test_each_milestone_is_due_once() -> None:
    watch = MilestoneWatch("2 epochs, 6 steps, 50%, every 2 epochs")
    watch.begin(at(0))
    assert run(watch, 1, 20) == [
        (6, ("6 steps",)),
        (8, ("2 epochs", "every 2 epochs @ 2 epochs")),
        (10, ("50%",)),
        (16, ("every 2 epochs @ 4 epochs",)),
    ]


def test_a_resumed_run_repeats_nothing_and_misses_nothing() -> None:
    whole = MilestoneWatch("2 epochs, 6 steps, 50%, every 3 steps")
    whole.begin(at(0))
    straight = run(whole, 1, 20)
    for stop in range(1, 20):
        first = MilestoneWatch("2 epochs, 6 steps, 50%, every 3 steps")
        first.begin(at(0))
        parts = run(first, 1, stop)
        second = MilestoneWatch("2 epochs, 6 steps, 50%, every 3 steps")
        second.begin(at(stop))
        assert parts + run(second, stop + 1, 20) == straight


def test_what_was_not_served_waits_and_is_not_doubled() -> None:
    watch = MilestoneWatch("every 2 steps, 5 steps")
    watch.begin(at(0))
    assert [advance(watch, at(step)) for step in (1, 2, 2, 3, 4, 5)] == [False, True, False, False, True, True]
    assert watch.pending == ("every 2 steps @ 2 steps", "every 2 steps @ 4 steps", "5 steps")
    watch.served(("5 steps", "unknown"))
    assert watch.pending == ("every 2 steps @ 2 steps", "every 2 steps @ 4 steps")


def test_what_a_backup_was_still_owed_is_not_due_again() -> None:
    watch = MilestoneWatch("5 steps")
    watch.pending = ("5 steps",)
    watch.begin(at(4))
    assert not advance(watch, at(5))
    assert watch.pending == ("5 steps",)


def test_without_a_beginning_the_first_report_is_it() -> None:
    watch = MilestoneWatch("4 steps, 6 steps")
    assert not advance(watch, at(5))
    assert advance(watch, at(6))
    assert watch.pending == ("6 steps",)


def test_no_milestones() -> None:
    watch = MilestoneWatch("")
    watch.begin(at(0))
    assert run(watch, 1, 20) == []


# -- whole runs, crashes and resumes included -------------------------------------------------------------------

NAMES = st.lists(
    st.sampled_from(
        [
            *(f"{amount} steps" for amount in (1, 2, 5, 7, 12)),
            *(f"{amount} epochs" for amount in (1, 2, 3)),
            *(f"every {amount} steps" for amount in (2, 3, 5)),
            *(f"every {amount} epochs" for amount in (1, 2)),
            *(f"{amount}%" for amount in (10, 25, 33.3, 50, 100)),
        ]
    ),
    unique=True,
    min_size=1,
    max_size=5,
)
LEGS = st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1), st.booleans()), min_size=1, max_size=4)


def due_by_looking(names: list[str], step: int, *, length: int, epochs: int) -> set[str]:
    """What becomes due with this step, each rule worked out for itself in whole numbers."""
    due = set()
    for name in names:
        repeating = name.startswith("every ")
        text = name.removeprefix("every ")
        if text.endswith("%"):
            wanted, total = round(float(text[:-1]) * 10), epochs * length  # tenths of a percent
            if (step - 1) * 1000 < wanted * total <= step * 1000:
                due.add(name)
            continue
        amount = int(text.split()[0])
        if "epoch" in text:
            if step % length:
                continue
            count, unit = step // length, "epoch" if step == length else "epochs"
        else:
            count, unit = step, "step" if step == 1 else "steps"
        if repeating and count % amount == 0:
            plain = f"every {unit.rstrip('s')}" if amount == 1 else f"every {amount} {unit.rstrip('s')}s"
            due.add(f"{plain} @ {count} {unit}")
        elif not repeating and count == amount:
            due.add(f"{amount} {unit.rstrip('s')}{'' if amount == 1 else 's'}")
    return due


@settings(max_examples=400, deadline=None)
@given(names=NAMES, length=st.integers(1, 6), accumulation=st.integers(1, 4), legs=LEGS)
def test_runs_that_crash_and_resume_serve_each_milestone_once(
    names: list[str], length: int, accumulation: int, legs: list[tuple[int, float, bool]]
) -> None:
    """OneTrainer saves and backs up where no gradient is pending, the backup first; a crash goes back to it."""

    def progress(step: int, epoch: int) -> SimpleNamespace:
        return SimpleNamespace(global_step=step, epoch=epoch, epoch_step=step - epoch * length, epoch_sample=0)

    served: list[tuple[int, str]] = []
    expected: set[tuple[int, str]] = set()
    start, owed, epochs = 0, (), 0
    for number, (more, crash_at, between) in enumerate(legs):
        epochs = max(epochs, start // length) + more  # changed from leg to leg
        total = epochs * length
        last = number == len(legs) - 1
        crash = total if last else start + int(crash_at * (total - start))
        watch = MilestoneWatch(", ".join(names))
        watch.pending = owed
        watch.begin(progress(start, start // length))
        history: list[tuple[int, str]] = []
        backup = (start, owed, len(history))
        for step in range(start, crash + 1):
            if step % accumulation == 0 or step == total:
                backup = (step, watch.pending, len(history)) if step < total else backup
                history += [(step, name) for name in watch.pending]
                watch.served(watch.pending)
            if step < crash:
                epoch = step // length
                watch.advance(progress(step + 1, epoch), epoch_length=length, epochs=epochs)
                if (step + 1) % length == 0:
                    watch.advance(progress(step + 1, epoch + 1), epoch_length=length, epochs=epochs)
        until = total
        if not last:
            until, owed, kept = backup
            # What was served after the newest backup is trained once more; in the same pause it may be on the disk.
            history = history[: kept + (0 if between else len(owed))]
            owed = owed if between else ()
        served += history
        for step in range(start + 1, until + 1):
            moment = min(-(-step // accumulation) * accumulation, total)
            expected |= {(moment, name) for name in due_by_looking(names, step, length=length, epochs=epochs)}
        start = until
    assert len(served) == len(set(served))
    assert set(served) == expected
