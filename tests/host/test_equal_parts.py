from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from onetrainer_ema_select.host.equal_parts import EqualParts, correct_parts
from onetrainer_ema_select.store import read_metadata


def save(parts: EqualParts, first: list[str], second: list[str]) -> tuple[list[bool], list[bool]]:
    """One save of both sets: what each part says."""
    parts.begin()
    return (
        [parts.is_equal(part, second=False) for part in first],
        [parts.is_equal(part, second=True) for part in second],
    )


def test_parts_that_both_sets_of_a_save_have_are_known_from_then_on() -> None:
    parts = EqualParts()
    assert save(parts, ["0xvae", "0xema"], ["0xvae", "0xlive"]) == ([False, False], [True, False])
    assert save(parts, ["0xvae", "0xema2"], ["0xvae", "0xlive2"]) == ([True, False], [True, False])
    assert parts.wrong() == frozenset()


def test_a_part_that_is_not_the_same_any_more_is_named_and_forgotten() -> None:
    parts = EqualParts()
    save(parts, ["0xa"], ["0xa"])
    assert save(parts, ["0xa"], ["0xb"]) == ([True], [False])
    assert parts.wrong() == {"0xa"}
    assert save(parts, ["0xa"], ["0xb"]) == ([False], [False])


def test_what_the_first_set_says_is_a_guess_until_the_second_is_written() -> None:
    parts = EqualParts()
    parts.begin()
    assert not parts.is_equal("0xa", second=False)
    assert not parts.guessed
    parts.is_equal("0xa", second=True)
    parts.begin()
    assert parts.is_equal("0xa", second=False)
    assert parts.guessed


def test_a_second_set_that_was_not_written_confirms_nothing() -> None:
    parts = EqualParts()
    save(parts, ["0xa"], ["0xa"])
    save(parts, ["0xa"], [])
    assert parts.wrong() == {"0xa"}


def test_a_part_of_another_save_is_not_the_same() -> None:
    parts = EqualParts()
    save(parts, ["0xa"], ["0xb"])
    assert save(parts, ["0xb"], ["0xa"]) == ([False], [False])


def test_without_a_hash_nothing_is_equal() -> None:
    parts = EqualParts()
    for second in (False, True):
        assert not parts.is_equal(None, second=second)
        assert not parts.is_equal("", second=second)


def test_what_a_part_says_is_put_right(tmp_path: Path) -> None:
    common = {"ema_select.set": "EMA, NON_EMA", "modelspec.title": "x (EMA and NON_EMA)"}
    for name in ("a", "b"):
        save_file(
            {name: torch.ones(2)}, tmp_path / f"{name}.safetensors", {**common, "modelspec.hash_sha256": f"0x{name}"}
        )
    (tmp_path / "notes.safetensors").write_text("no model", encoding="utf-8")
    correct_parts(tmp_path, {"0xa"}, marks={"ema_select.set": "EMA"}, title="x (EMA)")
    assert read_metadata(tmp_path / "a.safetensors") == {
        "ema_select.set": "EMA", "modelspec.title": "x (EMA)", "modelspec.hash_sha256": "0xa",
    }  # fmt: skip
    assert read_metadata(tmp_path / "b.safetensors")["ema_select.set"] == "EMA, NON_EMA"
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(2))
