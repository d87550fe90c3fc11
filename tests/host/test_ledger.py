from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.host.ledger import Ledger, SaveRecord

BOTH = (WeightSet.EMA, WeightSet.NON_EMA)


def record(*, step: int, weight_set: WeightSet = WeightSet.EMA, **more: Any) -> SaveRecord:
    return SaveRecord(**{"path": Path("save/x.safetensors"), "weight_set": weight_set, "step": step, "epoch": 1} | more)


def test_saves_are_listed_in_one_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []
    ledger.add(record(step=4, milestones=("1 epochs",), run="a"))
    ledger.add(record(step=8, weight_set=WeightSet.NON_EMA))
    Ledger(tmp_path).add(record(step=12, final=True))  # another start of the run goes on with the list
    written = json.loads((tmp_path / "ema_select" / "saves.json").read_text(encoding="utf-8"))
    common = {"path": str(Path("save/x.safetensors")), "epoch": 1}
    assert written == {
        "version": 1,
        "saves": [
            {**common, "set": "EMA", "step": 4, "milestones": ["1 epochs"], "run": "a", "leg": "", "final": False},
            {**common, "set": "NON_EMA", "step": 8, "milestones": [], "run": "", "leg": "", "final": False},
            {**common, "set": "EMA", "step": 12, "milestones": [], "run": "", "leg": "", "final": True},
        ],
    }


def test_a_milestone_is_pending_until_all_its_sets_were_written_at_that_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    owed = ("1 epochs", "every 4 steps")

    def pending(step: int = 4, run: str = "a", leg: str = "", sets: tuple[WeightSet, ...] = BOTH) -> tuple[str, ...]:
        return Ledger(tmp_path).still_pending(owed, step=step, run=run, leg=leg, sets=sets)

    assert pending() == owed
    ledger.add(record(step=4, milestones=("every 4 steps",), run="a"))
    assert pending() == owed
    assert pending(sets=(WeightSet.EMA,)) == ("1 epochs",)
    ledger.add(record(step=4, milestones=("every 4 steps",), run="a", weight_set=WeightSet.NON_EMA))
    assert pending() == ("1 epochs",)
    assert pending(step=8) == owed
    assert pending(run="b") == owed
    assert pending(leg="2") == owed  # one that was taken back and has come by again
    for weight_set in BOTH:
        ledger.add(record(step=4, milestones=("1 epochs",), run="a", weight_set=weight_set))
    assert pending() == ()


def test_a_final_output_counts_while_it_is_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    place = tmp_path / "model.safetensors"
    place.touch()
    ledger.add(record(step=8, path=place, run="a", final=True))
    ledger.add(record(step=8, path=place, run="a", weight_set=WeightSet.NON_EMA))  # a save, not the output
    assert Ledger(tmp_path).finals(step=8, run="a", leg="", folder=tmp_path) == {WeightSet.EMA}
    assert ledger.finals(step=8, run="a", leg="2", folder=tmp_path) == frozenset()
    assert ledger.finals(step=4, run="a", leg="", folder=tmp_path) == frozenset()
    assert ledger.finals(step=8, run="b", leg="", folder=tmp_path) == frozenset()
    place.unlink()
    assert ledger.finals(step=8, run="a", leg="", folder=tmp_path) == frozenset()


@pytest.mark.parametrize("there", ["/workspace/remote/out/model.safetensors", "D:\\out\\model.safetensors"])
def test_a_final_output_that_has_come_from_another_machine_counts_by_what_it_says(tmp_path: Path, there: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(record(step=8, path=Path(there), run="a", leg="2", final=True))

    def counts() -> bool:
        return bool(ledger.finals(step=8, run="a", leg="2", folder=tmp_path / "out"))

    assert not counts()
    (tmp_path / "out").mkdir()
    marks = {"run": "a", "leg": "2", "step": "8", "set": "EMA"}
    for wrong in ("run", "leg", "step", "set", None):
        metadata = {f"ema_select.{key}": "other" if key == wrong else value for key, value in marks.items()}
        save_file({"x": torch.zeros(1)}, tmp_path / "out" / "model.safetensors", metadata=metadata)
        assert counts() is (wrong is None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        '{"saves": 3}',
        '{"saves": [3, null, {}]}',
        '{"saves": [{"path": [], "set": "EMA", "step": 4, "epoch": 1}]}',
        '{"saves": [{"path": "x", "set": "BEST", "step": 4, "epoch": 1}]}',
        '{"saves": [{"path": "x", "set": "EMA", "step": 4, "epoch": 1, "milestones": 7}]}',
        "[" * 100_000,
    ],
)
def test_a_list_that_cannot_be_read_counts_as_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ema_select" / "saves.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    ledger = Ledger(tmp_path)
    assert ledger.still_pending(("1 epochs",), step=4, run="", leg="", sets=BOTH) == ("1 epochs",)
    ledger.add(record(step=4))
    assert len(json.loads(path.read_text(encoding="utf-8"))["saves"]) == 1


def test_what_is_on_the_disk_counts_as_written_though_it_was_not_noted(tmp_path: Path) -> None:
    owed = ("1 epochs", "every 4 steps")

    def pending() -> tuple[str, ...]:
        return Ledger(tmp_path).still_pending(owed, step=4, run="a", leg="l", sets=BOTH)

    def write(name: str, **marks: str) -> None:
        save_file(
            {"w": torch.zeros(1)},
            tmp_path / "save" / name,
            metadata={f"ema_select.{key}": value for key, value in marks.items()},
        )

    (tmp_path / "save").mkdir()
    marks = {"run": "a", "leg": "l", "step": "4", "milestone": "1 epochs, every 4 steps"}
    write("x.safetensors", set="EMA", **marks)
    write("y-non-ema.safetensors", set="NON_EMA", **{**marks, "step": "8"})
    write("z-non-ema.safetensors", set="NON_EMA", **{**marks, "run": "b"})
    write("l-non-ema.safetensors", set="NON_EMA", **{**marks, "leg": "other"})
    write("q-non-ema.safetensors", set="BEST", **marks)
    write("plain.safetensors")
    (tmp_path / "save" / "notes.txt").write_text("mine", encoding="utf-8")
    assert pending() == owed
    folder = tmp_path / "save" / "x-non-ema"
    folder.mkdir()
    (folder / "ema_select.json").write_text(
        json.dumps({f"ema_select.{key}": value for key, value in {**marks, "set": "NON_EMA"}.items()}), encoding="utf-8"
    )
    assert pending() == ()
