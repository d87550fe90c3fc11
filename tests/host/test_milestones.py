from __future__ import annotations

from types import SimpleNamespace

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
