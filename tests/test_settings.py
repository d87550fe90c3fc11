from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from onetrainer_ema_select.errors import SettingsError
from onetrainer_ema_select.settings import (
    SECTION,
    Choice,
    EmaDtype,
    EmaSelectSettings,
    MilestoneBackups,
    ResumeEma,
    ResumeOptimizer,
    ResumeWeights,
    SaveRounding,
    SaveSets,
    WeightSet,
    allowed_values,
    parse_settings,
)

# The table of the design, by hand.
DEFAULTS: dict[str, object] = {
    "enabled": False,
    "save_sets": "BOTH",
    "primary_set": "EMA",
    "save_rounding": "NEAREST",
    "milestones": "",
    "milestone_backups": "NAMED",
    "milestone_keep": 0,
    "resume_weights": "NON_EMA",
    "resume_backup": "",
    "resume_sigma_rel": "",
    "resume_optimizer": "KEEP",
    "resume_ema": "CONTINUE",
    "resume_leg": "",
    "ema_dtype": "FLOAT_32",
    "ema_half_life": "",
    "post_hoc_sigma_rels": "",
    "post_hoc_every": "",
}
CHOICES: dict[type[Choice], list[str]] = {
    WeightSet: ["EMA", "NON_EMA"],
    SaveSets: ["BOTH", "BOTH_AT_MILESTONES", "EMA", "NON_EMA"],
    SaveRounding: ["NEAREST", "STOCHASTIC"],
    MilestoneBackups: ["NAMED", "ALL", "OFF"],
    ResumeWeights: ["NON_EMA", "EMA", "BEST", "POST_HOC"],
    ResumeOptimizer: ["KEEP", "RESET"],
    ResumeEma: ["CONTINUE", "RESTART"],
    EmaDtype: ["FLOAT_32", "PARAMETER"],
}

ONE = "1 setting in `ema_select` is wrong, so no model was loaded:\n- "
KEYS = ", ".join(DEFAULTS)
MILESTONES_TAIL = (
    "; allowed: 10 epochs, 4000 steps, 25%, every 5 epochs, every 500 steps and the like, "
    "separated by commas; "
    'type for example --config-value "ema_select.milestones=10 epochs, 25%, every 500 steps"'
)
LENGTHS_TAIL = (
    "; allowed: numbers from 0.005 to 0.28, separated by commas, or an empty text; "
    'type for example --config-value "ema_select.post_hoc_sigma_rels=0.05, 0.10"'
)
ONE_LENGTH_TAIL = (
    "; allowed: a number from 0.005 to 0.28, or an empty text; "
    "type for example --config-value ema_select.resume_sigma_rel=0.10"
)
INTERVAL_TAIL = (
    "; allowed: 200 steps, 1 epochs and the like, or an empty text; "
    'type for example --config-value "ema_select.post_hoc_every=200 steps"'
)
LENGTH_TAIL = (
    "; allowed: 2 epochs, 0.5 epochs, 5000 images, 800 steps and the like, or an empty text; "
    'type for example --config-value "ema_select.ema_half_life=2 epochs"'
)
HALF_LIFE_TAIL = f" (epochs, images or steps){LENGTH_TAIL}"
BACKUP_TAIL = (
    "; allowed: a text; type for example --config-value ema_select.resume_backup=2026-03-01_12-00-00-backup-4000-10-0"
)

# Key, value, and the whole line. The first of each key are also given all at once.
WRONG: list[tuple[str, object, str]] = [
    (
        "enabled",
        "maybe",
        'ema_select.enabled: found "maybe"; allowed: true, false; '
        "type for example --config-value ema_select.enabled=true",
    ),
    (
        "save_sets",
        "BOHT",
        'ema_select.save_sets: found "BOHT"; allowed: BOTH, BOTH_AT_MILESTONES, EMA, NON_EMA; '
        "type for example --config-value ema_select.save_sets=BOTH",
    ),
    (
        "primary_set",
        "non-ema",
        'ema_select.primary_set: found "non-ema"; allowed: EMA, NON_EMA; '
        "type for example --config-value ema_select.primary_set=NON_EMA",
    ),
    (
        "save_rounding",
        "RANDOM",
        'ema_select.save_rounding: found "RANDOM"; allowed: NEAREST, STOCHASTIC; '
        "type for example --config-value ema_select.save_rounding=NEAREST",
    ),
    (
        "milestones",
        "10 epoks, 25%, every 5%, 12",
        'ema_select.milestones: found "10 epoks, 25%, every 5%, 12", in which "10 epoks" is not a milestone, '
        '"every 5%" repeats a percentage (write out the points, as in 25%, 50%, 75%), '
        '"12" has no unit (epochs, steps or %)' + MILESTONES_TAIL,
    ),
    (
        "resume_weights",
        "BESTT",
        'ema_select.resume_weights: found "BESTT"; allowed: NON_EMA, EMA, BEST, POST_HOC; '
        "type for example --config-value ema_select.resume_weights=BEST",
    ),
    ("resume_backup", ["newest"], 'ema_select.resume_backup: found ["newest"]' + BACKUP_TAIL),
    (
        "resume_sigma_rel",
        0.5,
        f'ema_select.resume_sigma_rel: found 0.5, in which "0.5" is not from 0.005 to 0.28{ONE_LENGTH_TAIL}',
    ),
    (
        "resume_sigma_rel",
        "0.05, 0.1",
        f'ema_select.resume_sigma_rel: found "0.05, 0.1", in which there is more than one length{ONE_LENGTH_TAIL}',
    ),
    (
        "resume_optimizer",
        "reset",
        'ema_select.resume_optimizer: found "reset"; allowed: KEEP, RESET; '
        "type for example --config-value ema_select.resume_optimizer=RESET",
    ),
    (
        "resume_ema",
        True,
        "ema_select.resume_ema: found true; allowed: CONTINUE, RESTART; "
        "type for example --config-value ema_select.resume_ema=CONTINUE",
    ),
    (
        "resume_leg",
        None,
        "ema_select.resume_leg: found null; allowed: a text; "
        'type for example --config-value "ema_select.resume_leg=second try"',
    ),
    (
        "ema_dtype",
        "float32",
        'ema_select.ema_dtype: found "float32"; allowed: FLOAT_32, PARAMETER; '
        "type for example --config-value ema_select.ema_dtype=FLOAT_32",
    ),
    ("ema_half_life", "2", f'ema_select.ema_half_life: found "2", in which there is no unit{HALF_LIFE_TAIL}'),
    (
        "ema_half_life",
        "0 epochs",
        f'ema_select.ema_half_life: found "0 epochs", in which the number is not more than 0{LENGTH_TAIL}',
    ),
    (
        "ema_half_life",
        "-5 images",
        f'ema_select.ema_half_life: found "-5 images", in which the number is not more than 0{LENGTH_TAIL}',
    ),
    (
        "ema_half_life",
        "1.5 steps",
        f'ema_select.ema_half_life: found "1.5 steps", in which the number of steps is not whole{LENGTH_TAIL}',
    ),
    ("ema_half_life", "25%", f'ema_select.ema_half_life: found "25%", in which no length can be read{LENGTH_TAIL}'),
    ("ema_half_life", "epochs", f'ema_select.ema_half_life: found "epochs", in which there is no number{LENGTH_TAIL}'),
    (
        "ema_half_life",
        "1234567890123 steps",
        f'ema_select.ema_half_life: found "1234567890123 steps", in which there '
        f"is a number of more than 12 digits{LENGTH_TAIL}",
    ),
    (
        "post_hoc_sigma_rels",
        "0.05, long, 0.3",
        'ema_select.post_hoc_sigma_rels: found "0.05, long, 0.3", in which "long" is not a number such as 0.05, '
        f'"0.3" is not from 0.005 to 0.28{LENGTHS_TAIL}',
    ),
    (
        "post_hoc_every",
        "200",
        f'ema_select.post_hoc_every: found "200", in which "200" has no unit (epochs or steps){INTERVAL_TAIL}',
    ),
    (
        "post_hoc_every",
        "5%",
        'ema_select.post_hoc_every: found "5%", in which "5%" is a share of the run, not an interval (write epochs '
        f"or steps){INTERVAL_TAIL}",
    ),
    (
        "post_hoc_every",
        "0 steps",
        f'ema_select.post_hoc_every: found "0 steps", in which "0 steps" is not a whole number of 1 or more'
        f"{INTERVAL_TAIL}",
    ),
    (
        "post_hoc_every",
        "1 epochs, 5 steps",
        f'ema_select.post_hoc_every: found "1 epochs, 5 steps", in which there is more than one interval'
        f"{INTERVAL_TAIL}",
    ),
    (
        "save_set",
        "NON_EMA",
        "ema_select.save_set: found a key that does not exist; probably meant: save_sets; "
        "type for example --config-value ema_select.save_sets=NON_EMA",
    ),
    (
        "Primary-Set",
        WeightSet.NON_EMA,
        "ema_select.Primary-Set: found a key that does not exist; probably meant: primary_set; "
        "type for example --config-value ema_select.primary_set=NON_EMA",
    ),
    (
        "enable",
        True,
        "ema_select.enable: found a key that does not exist; probably meant: enabled; "
        "type for example --config-value ema_select.enabled=true",
    ),
    (
        "milestone",
        ["10 epochs"],
        "ema_select.milestone: found a key that does not exist; probably meant: milestones; "
        'type for example --config-value "ema_select.milestones=10 epochs, 25%, every 500 steps"',
    ),
    (
        "ema_select.resume_backups",
        "D:\\my runs\\$1",
        "ema_select.ema_select.resume_backups: found a key that does not exist; "
        "probably meant: resume_backup; "
        "type for example --config-value ema_select.resume_backup=2026-03-01_12-00-00-backup-4000-10-0",
    ),
    (
        "ema_select.enabled",
        "true",
        "ema_select.ema_select.enabled: found a key that does not exist; probably meant: enabled; "
        "type for example --config-value ema_select.enabled=true",
    ),
    (
        "RESUME_LEG",
        "second try",
        "ema_select.RESUME_LEG: found a key that does not exist; probably meant: resume_leg; "
        'type for example --config-value "ema_select.resume_leg=second try"',
    ),
    ("colour", 1, f"ema_select.colour: found a key that does not exist; allowed: {KEYS}; leave it out"),
    # From here on, further values of the same keys.
    (
        "enabled",
        2,
        "ema_select.enabled: found 2; allowed: true, false; type for example --config-value ema_select.enabled=true",
    ),
    (
        "enabled",
        "flase",
        'ema_select.enabled: found "flase"; allowed: true, false; '
        "type for example --config-value ema_select.enabled=false",
    ),
    (
        "save_sets",
        "",
        'ema_select.save_sets: found ""; allowed: BOTH, BOTH_AT_MILESTONES, EMA, NON_EMA; '
        "type for example --config-value ema_select.save_sets=BOTH",
    ),
    (
        "save_sets",
        "both at milestones",
        'ema_select.save_sets: found "both at milestones"; allowed: BOTH, BOTH_AT_MILESTONES, EMA, NON_EMA; '
        "type for example --config-value ema_select.save_sets=BOTH_AT_MILESTONES",
    ),
    (
        "primary_set",
        "两者",
        'ema_select.primary_set: found "两者"; allowed: EMA, NON_EMA; '
        "type for example --config-value ema_select.primary_set=EMA",
    ),
    (
        "milestones",
        10,
        'ema_select.milestones: found 10, in which "10" has no unit (epochs, steps or %)' + MILESTONES_TAIL,
    ),
    ("milestones", {"at": 10}, 'ema_select.milestones: found {"at": 10}' + MILESTONES_TAIL),
    (
        "milestone_backups",
        "NONE",
        'ema_select.milestone_backups: found "NONE"; allowed: NAMED, ALL, OFF; '
        "type for example --config-value ema_select.milestone_backups=NAMED",
    ),
    (
        "milestone_keep",
        -1,
        "ema_select.milestone_keep: found -1; allowed: a whole number, 0 or more; "
        "type for example --config-value ema_select.milestone_keep=3",
    ),
    (
        "milestone_keep",
        "all",
        'ema_select.milestone_keep: found "all"; allowed: a whole number, 0 or more; '
        "type for example --config-value ema_select.milestone_keep=3",
    ),
    (
        "milestone_keep",
        False,
        "ema_select.milestone_keep: found false; allowed: a whole number, 0 or more; "
        "type for example --config-value ema_select.milestone_keep=3",
    ),
    (
        "resume_weights",
        "POST-HOC",
        'ema_select.resume_weights: found "POST-HOC"; allowed: NON_EMA, EMA, BEST, POST_HOC; '
        "type for example --config-value ema_select.resume_weights=POST_HOC",
    ),
    (
        "resume_weights",
        "best",
        'ema_select.resume_weights: found "best"; allowed: NON_EMA, EMA, BEST, POST_HOC; '
        "type for example --config-value ema_select.resume_weights=BEST",
    ),
    (
        "resume_weights",
        "emma",
        'ema_select.resume_weights: found "emma"; allowed: NON_EMA, EMA, BEST, POST_HOC; '
        "type for example --config-value ema_select.resume_weights=EMA",
    ),
    ("resume_backup", True, "ema_select.resume_backup: found true" + BACKUP_TAIL),
    (
        "resume_backup",
        ["x" * 100],
        f'ema_select.resume_backup: found ["{"x" * 78}…' + BACKUP_TAIL,
    ),
    (
        "ema_half_life",
        None,
        f"ema_select.ema_half_life: found null{LENGTH_TAIL}",
    ),
]


def error_of(raw: object) -> SettingsError:
    with pytest.raises(SettingsError) as raised:
        parse_settings(raw)
    return raised.value


@pytest.mark.parametrize(("key", "value", "line"), WRONG)
def test_a_wrong_setting_is_refused_in_these_words(key: str, value: object, line: str) -> None:
    error = error_of({"save_sets": "BOTH", "__version": 0, key: value})
    assert str(error) == ONE + line
    assert [problem.key for problem in error.problems] == [key]


def test_all_wrong_settings_are_named_at_once_in_the_order_they_were_written() -> None:
    first: dict[str, tuple[object, str]] = {}
    for key, value, line in WRONG:
        first.setdefault(key, (value, line))
    assert len(first) >= 20
    assert set(DEFAULTS) <= set(first)
    for keys in (list(first), list(reversed(first))):
        lines = "".join(f"\n- {first[key][1]}" for key in keys)
        assert str(error_of({key: first[key][0] for key in keys})) == (
            f"{len(first)} settings in `ema_select` are wrong, so no model was loaded:{lines}"
        )


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (True, "true"),
        ("BOTH", '"BOTH"'),
        (["enabled"], '["enabled"]'),
        (None, "null"),
        (Decimal(1), "Decimal('1')"),
    ],
)
def test_what_is_no_section_is_refused(raw: object, found: str) -> None:
    assert str(error_of(raw)) == (
        f"{ONE}ema_select: found {found}; allowed: a section with keys and values; "
        "type for example --config-value ema_select.enabled=true"
    )


def test_a_key_that_is_no_text_is_refused() -> None:
    assert str(error_of({5: 1})).startswith(f"{ONE}ema_select.5: found a key that does not exist; allowed: ")


def test_the_message_can_be_printed_even_for_what_is_no_unicode() -> None:
    error = error_of({"resume_leg": "\udcff"})
    assert str(error).startswith(f'{ONE}ema_select.resume_leg: found "\\udcff"; allowed: a text; ')
    str(error).encode("utf-8")


def test_keys_defaults_and_order_are_those_of_the_design() -> None:
    assert parse_settings({}) == EmaSelectSettings()
    assert EmaSelectSettings().model_dump(mode="json") == DEFAULTS
    assert list(EmaSelectSettings.model_fields) == list(DEFAULTS)
    assert SECTION == "ema_select"


def test_choices_are_those_of_the_design_in_the_form_onetrainer_wants() -> None:
    assert set(Choice.__subclasses__()) == set(CHOICES)
    for choice, names in CHOICES.items():
        assert [member.name for member in choice] == names
        assert [member.value for member in choice] == names
        assert [str(member) for member in choice] == names


def test_what_the_host_writes_can_be_read_back() -> None:
    raw: dict[str, object] = {"__version": 0, **DEFAULTS, "enabled": True, "save_sets": "NON_EMA"}
    before = dict(raw)
    settings = parse_settings(raw)
    assert raw == before
    assert settings == EmaSelectSettings(enabled=True, save_sets=SaveSets.NON_EMA)
    assert parse_settings(settings.model_dump()) == settings
    assert parse_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(("enabled", value, True) for value in (True, 1, "true", "True", "TRUE", "1", "yes", "Yes", "on")),
        *(("enabled", value, False) for value in (False, 0, "false", "False", "0", "no", "NO", "off")),
        *(("milestone_keep", value, 0) for value in (0, "0", 0.0)),
        ("milestone_keep", "3", 3),
        ("milestone_backups", "ALL", MilestoneBackups.ALL),
        ("save_sets", "BOTH_AT_MILESTONES", SaveSets.BOTH_AT_MILESTONES),
        ("save_sets", SaveSets.EMA, SaveSets.EMA),
        ("primary_set", "NON_EMA", WeightSet.NON_EMA),
        ("milestone_backups", "OFF", MilestoneBackups.OFF),
        ("resume_weights", "EMA", ResumeWeights.EMA),
        ("resume_weights", "BEST", ResumeWeights.BEST),
        ("resume_optimizer", "RESET", ResumeOptimizer.RESET),
        ("resume_ema", "RESTART", ResumeEma.RESTART),
        ("ema_dtype", "PARAMETER", EmaDtype.PARAMETER),
        ("milestones", " 10 epochs,every 5 steps ", "10 epochs,every 5 steps"),
        ("resume_backup", "D:\\my runs\\备份 1", "D:\\my runs\\备份 1"),
        ("resume_leg", 2, "2"),
        ("resume_leg", "  second try ", "second try"),
        ("ema_half_life", "  ", ""),
        ("post_hoc_sigma_rels", " 0.10, 0.05 ", "0.10, 0.05"),
        ("post_hoc_sigma_rels", 0.05, "0.05"),
        ("post_hoc_every", "Every 2 Epochs", "Every 2 Epochs"),
        ("post_hoc_every", "epoch", "epoch"),
        ("resume_sigma_rel", 0.1, "0.1"),
        ("resume_weights", "POST_HOC", ResumeWeights.POST_HOC),
        ("ema_half_life", "0.5 Epochs", "0.5 Epochs"),
        ("ema_half_life", "\uff15\uff10\uff10\uff10 images", "\uff15\uff10\uff10\uff10 images"),
    ],
)
def test_values_from_files_and_from_the_command_line(key: str, value: object, expected: object) -> None:
    found = getattr(parse_settings({key: value}), key)
    assert found == expected
    assert type(found) is type(expected)


def test_lengths_as_numbers() -> None:
    settings = parse_settings({"post_hoc_sigma_rels": "0.10, 0.05, 0.1", "resume_sigma_rel": "0.10"})
    assert settings.post_hoc_lengths == (0.05, 0.1)
    assert settings.resume_length == 0.1
    assert parse_settings({}).post_hoc_lengths == ()
    assert parse_settings({}).resume_length is None


def test_settings_cannot_be_changed_and_the_model_checks_too() -> None:
    settings = EmaSelectSettings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "enabled", True)  # noqa: B010 - type checkers refuse it too
    with pytest.raises(ValidationError, match="extra"):
        EmaSelectSettings.model_validate({"colour": 1})
    with pytest.raises(ValidationError, match='"x" is not a milestone'):
        EmaSelectSettings(milestones="x")


def test_what_is_said_to_be_allowed_is() -> None:
    for key in DEFAULTS:
        values = allowed_values(key)
        for value in values or ():
            assert parse_settings({key: value}).model_dump(mode="json")[key] in (value, value == "true", 0)
        examples = EmaSelectSettings.model_fields[key].examples
        if values is None:
            assert examples
            assert getattr(parse_settings({key: examples[0]}), key) == examples[0]


def test_help_texts_are_for_people() -> None:
    titles = []
    for key, field in EmaSelectSettings.model_fields.items():
        assert field.title, key
        assert len(field.title) <= 30, key
        assert field.description, key
        assert 60 <= len(field.description) <= 400, key
        assert field.description.endswith("."), key
        titles.append(field.title)
    assert len(set(titles)) == len(titles)


def is_wrong(raw: Mapping[str, object]) -> bool:
    try:
        parse_settings(raw)
    except SettingsError:
        return True
    return False


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(DEFAULTS)) | st.text(), JSON_VALUES, max_size=6))
def test_any_section_is_accepted_whole_or_every_wrong_key_of_it_is_named(raw: Mapping[str, object]) -> None:
    wrong = [key for key, value in raw.items() if is_wrong({key: value})]
    try:
        parse_settings(raw)
    except SettingsError as error:
        assert [problem.key for problem in error.problems] == wrong
        assert len(str(error).split("\n- ")) == len(wrong) + 1
    else:
        assert not wrong
