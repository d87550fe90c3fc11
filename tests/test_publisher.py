"""Publishing on a thread: in order, told in the caller's thread, and nothing lost that goes wrong there."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_mock import MockerFixture

from onetrainer_ema_select.publisher import Publisher
from onetrainer_ema_select.store import Replaced, Staging


class Told:
    """Notes what the publisher tells, and in which thread."""

    def __init__(self) -> None:
        self.placed: list[tuple[str, tuple[Replaced, ...]]] = []
        self.heard: list[tuple[str, Exception | None]] = []
        self.threads: set[int] = set()

    def about(self, name: str) -> dict[str, Any]:
        def done(error: Exception | None) -> None:
            self.heard.append((name, error))
            self.threads.add(threading.get_ident())

        return {"placed": lambda beside: self.placed.append((name, beside)), "done": done}


def held(events: list[str], name: str, gate: threading.Event, error: BaseException | None = None) -> Any:
    """Stands in for a staging whose disk is slow until the gate opens."""

    def publish() -> tuple[Replaced, ...]:
        gate.wait(20)
        events.append(f"publish {name}")
        if error is not None:
            raise error
        return ()

    return SimpleNamespace(publish=publish, discard=lambda: events.append(f"discard {name}"))


def written(destination: Path, workspace: Path) -> Staging:
    staging = Staging(destination, workspace=workspace)
    staging.path.write_text("weights", encoding="utf-8")
    return staging


def test_files_take_their_places_and_nothing_private_stays(tmp_path: Path) -> None:
    publisher, told = Publisher(), Told()
    for name in ("a", "b"):
        publisher.submit(written(tmp_path / "save" / name, tmp_path), **told.about(name))
    publisher.collect(wait=True)
    assert told.heard == [("a", None), ("b", None)]
    assert told.placed == [("a", ()), ("b", ())]
    assert told.threads == {threading.get_ident()}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "ema_select",
        "save",
        "save/a",
        "save/b",
    ]
    publisher.collect(wait=True)  # told once
    assert len(told.heard) == 2


def test_the_caller_goes_on_while_the_disk_is_slow(tmp_path: Path) -> None:
    publisher, told, events, gate = Publisher(), Told(), [], threading.Event()
    publisher.submit(held(events, "a", gate), **told.about("a"))
    publisher.submit(held(events, "b", gate), **told.about("b"))
    publisher.collect(wait=False)
    assert (events, told.heard) == ([], [])
    gate.set()
    publisher.collect(wait=True)
    assert events == ["publish a", "discard a", "publish b", "discard b"]
    assert [name for name, _ in told.heard] == ["a", "b"]


def test_an_error_is_told_and_keeps_nothing_from_its_place(tmp_path: Path) -> None:
    publisher, told, events, gate = Publisher(), Told(), [], threading.Event()
    gate.set()
    full = OSError(28, "No space left on device")
    publisher.submit(held(events, "a", gate, full), **told.about("a"))
    publisher.submit(written(tmp_path / "b", tmp_path), **told.about("b"))
    publisher.collect(wait=True)
    assert told.heard == [("a", full), ("b", None)]
    assert events == ["publish a", "discard a"]
    assert (tmp_path / "b").is_file()


def test_an_interrupt_while_waiting_loses_nothing(tmp_path: Path, mocker: MockerFixture) -> None:
    publisher, told = Publisher(), Told()
    publisher.submit(written(tmp_path / "a", tmp_path), **told.about("a"))
    waiting = mocker.patch.object(concurrent.futures.Future, "exception", side_effect=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        publisher.collect(wait=True)
    mocker.stop(waiting)
    assert told.heard == []
    publisher.collect(wait=True)
    assert told.heard == [("a", None)]


@pytest.mark.parametrize("works", [True, False])
def test_without_a_thread_it_is_done_at_once(tmp_path: Path, mocker: MockerFixture, works: bool) -> None:
    mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
    publisher, told, gate = Publisher(), Told(), threading.Event()
    gate.set()
    error = None if works else OSError(28, "No space left on device")
    staging = written(tmp_path / "a", tmp_path) if works else held([], "a", gate, error)
    publisher.submit(staging, **told.about("a"))
    publisher.collect(wait=False)
    assert told.heard == [("a", error)]
    assert (tmp_path / "a").exists() == works


def test_what_is_at_its_place_is_noted_before_the_caller_asks(tmp_path: Path) -> None:
    publisher, told, noted = Publisher(), Told(), threading.Event()
    publisher.submit(written(tmp_path / "a", tmp_path), **{**told.about("a"), "placed": lambda beside: noted.set()})
    assert noted.wait(20)
    assert told.heard == []
    publisher.collect(wait=True)


def test_an_error_in_the_note_is_told(tmp_path: Path) -> None:
    publisher, told = Publisher(), Told()
    error = RuntimeError("no note")

    def placed(beside: tuple[Replaced, ...]) -> None:
        raise error

    publisher.submit(written(tmp_path / "a", tmp_path), **{**told.about("a"), "placed": placed})
    publisher.collect(wait=True)
    assert told.heard == [("a", error)]
    assert (tmp_path / "a").is_file()
