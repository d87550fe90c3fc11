from __future__ import annotations

import json
from pathlib import Path

import pytest

from onetrainer_ema_select.host.ledger import Ledger


def add(ledger: Ledger, *, step: int, milestones: tuple[str, ...] = (), weight_set: str = "EMA") -> None:
    ledger.add(path=Path("save/x.safetensors"), weight_set=weight_set, step=step, epoch=1, milestones=milestones)


def test_saves_are_listed_in_one_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []
    add(ledger, step=4, milestones=("1 epochs",))
    add(ledger, step=8, weight_set="NON_EMA")
    add(Ledger(tmp_path), step=12)  # another start of the run goes on with the list
    written = json.loads((tmp_path / "ema_select" / "saves.json").read_text(encoding="utf-8"))
    path = str(Path("save/x.safetensors"))
    assert written == {
        "version": 1,
        "saves": [
            {"path": path, "set": "EMA", "step": 4, "epoch": 1, "milestones": ["1 epochs"]},
            {"path": path, "set": "NON_EMA", "step": 8, "epoch": 1, "milestones": []},
            {"path": path, "set": "EMA", "step": 12, "epoch": 1, "milestones": []},
        ],
    }


def test_a_milestone_is_pending_until_it_was_written_at_that_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    owed = ("1 epochs", "every 4 steps")
    assert ledger.still_pending(owed, step=4) == owed
    add(ledger, step=4, milestones=("every 4 steps",))
    assert ledger.still_pending(owed, step=4) == ("1 epochs",)
    assert ledger.still_pending(owed, step=8) == owed
    add(ledger, step=4, milestones=("1 epochs",))
    assert Ledger(tmp_path).still_pending(owed, step=4) == ()
    assert ledger.still_pending((), step=4) == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"saves": 3}',
        b'{"saves": "text"}',
        b'{"saves": {"a": 1}}',
        b'{"saves": [1, null, "x", []]}',
        b'{"saves": [{"step": 4}]}',
        b'{"saves": [{"step": 4, "milestones": "1 epochs"}]}',
        b'{"saves": [{"step": 4, "milestones": [[1], {}, null, 3]}]}',
        b"[" * 100_000,
    ],
)
def test_a_list_that_is_none_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ema_select" / "saves.json"
    path.parent.mkdir()
    path.write_bytes(content)
    ledger = Ledger(tmp_path)
    assert ledger.still_pending(("1 epochs",), step=4) == ("1 epochs",)
    add(ledger, step=4, milestones=("1 epochs",))
    assert Ledger(tmp_path).still_pending(("1 epochs",), step=4) == ()
