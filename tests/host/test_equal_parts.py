from __future__ import annotations

from onetrainer_ema_select.host.equal_parts import EqualParts


def test_parts_that_both_sets_of_a_save_have_are_known_from_then_on() -> None:
    parts = EqualParts()
    parts.begin()
    assert not parts.is_equal("0xvae", second=False)  # nobody can know yet
    assert not parts.is_equal("0xunet-ema", second=False)
    assert parts.is_equal("0xvae", second=True)
    assert not parts.is_equal("0xunet", second=True)
    parts.begin()
    assert parts.is_equal("0xvae", second=False)
    assert parts.is_equal("0xvae", second=True)


def test_a_part_that_was_trained_meanwhile_is_not_taken_for_the_old_one() -> None:
    parts = EqualParts()
    parts.begin()
    parts.is_equal("0xa", second=False)
    parts.begin()
    assert not parts.is_equal("0xa", second=True)  # of another save


def test_without_a_hash_nothing_is_equal() -> None:
    parts = EqualParts()
    for second in (False, True):
        assert not parts.is_equal(None, second=second)
        assert not parts.is_equal("", second=second)
