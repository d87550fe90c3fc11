from __future__ import annotations

import pytest

from onetrainer_ema_select.host.window import layout
from onetrainer_ema_select.settings import EmaSelectSettings, allowed_values

VALUES = {key: field.default for key, field in EmaSelectSettings.model_fields.items()}
ON = VALUES | {"enabled": True}


def test_every_setting_stands_on_one_tab() -> None:
    assert sorted(layout.KEYS) == sorted(EmaSelectSettings.model_fields)


def test_only_what_can_be_set_is_shown() -> None:
    assert "ema_half_life" in layout.shown(layout.KEYS)
    assert {"post_hoc_sigma_rels", "post_hoc_every", "resume_sigma_rel"} < set(layout.shown(layout.KEYS))
    for key in layout.shown(layout.KEYS):
        assert allowed_values(key) is None or len(allowed_values(key)) > 1


def usable(values: dict[str, object], *, ema_on: bool = True, continues: bool = True) -> frozenset[str]:
    return layout.usable(values, ema_on=ema_on, continues=continues)


def test_off_only_the_switch_can_be_used() -> None:
    assert usable(VALUES) == {"enabled"}


@pytest.mark.parametrize(
    ("values", "more", "keys"),
    [
        (ON, {}, {"milestone_backups", "milestone_keep", "resume_sigma_rel", "post_hoc_every"}),
        (
            ON,
            {"ema_on": False},
            {
                "save_sets",
                "primary_set",
                "ema_dtype",
                "ema_half_life",
                "resume_ema",
                "post_hoc_sigma_rels",
                "post_hoc_every",
                "milestone_backups",
                "milestone_keep",
                "resume_sigma_rel",
            },
        ),
        (
            ON | {"milestones": "every 2 epochs", "milestone_backups": "ALL", "post_hoc_sigma_rels": "0.05"},
            {"continues": False},
            set(layout.RESUME),
        ),
        (
            # it would be refused, and is to be emptied
            ON | {"resume_backup": "x", "milestones": "25%", "milestone_backups": "ALL", "post_hoc_sigma_rels": "0.05"},
            {"continues": False},
            set(layout.RESUME) - {"resume_backup"},
        ),
        (
            ON | {"milestones": "25%", "save_sets": "EMA", "post_hoc_sigma_rels": "0.05", "resume_weights": "POST_HOC"},
            {},
            {"primary_set", "milestone_keep"},
        ),
    ],
)
def test_what_has_no_meaning(values: dict[str, object], more: dict[str, bool], keys: set[str]) -> None:
    assert frozenset(layout.KEYS) - usable(values, **more) == keys


@pytest.mark.parametrize(
    ("values", "ema_on", "sentence"),
    [
        (VALUES, True, "Off: OneTrainer works exactly as without the plugin."),
        (ON, True, "On: every save writes both sets, EMA and non-EMA, side by side."),
        (
            ON | {"save_sets": "EMA"},
            True,
            "On: both sets are kept in backups, and every save writes the EMA set alone.",
        ),
        (
            ON,
            False,
            "On, but EMA is OFF (training tab): this run has one set, the non-EMA weights. Set EMA to GPU or CPU to "
            "keep both.",
        ),
    ],
)
def test_what_the_plugin_will_do(values: dict[str, object], ema_on: bool, sentence: str) -> None:
    assert layout.state_sentence(values, ema_on=ema_on) == sentence


def test_a_wrong_text_is_described_in_a_few_words() -> None:
    assert layout.value_problem("milestones", "25%") is None
    assert layout.value_problem("milestone_keep", "many") == '"many"; allowed: a whole number, 0 or more'


def test_tooltips_name_the_key_and_show_an_example() -> None:
    assert layout.tooltip("milestones").endswith(
        " For example: 10 epochs, 25%, every 500 steps. (ema_select.milestones)"
    )
    assert "For example" not in layout.tooltip("save_sets")
