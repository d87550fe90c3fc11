from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from onetrainer_ema_select import errors
from onetrainer_ema_select.errors import (
    BackupError,
    CloudError,
    EmaSelectError,
    ExportError,
    HostMismatchError,
    HostNotFoundError,
    InstallError,
    ManifestError,
    NamesError,
    PostHocError,
    ReportError,
    ResumeError,
    SettingProblem,
    SettingsError,
    StoreError,
    TrackError,
    UsageError,
)

PLAIN = [
    EmaSelectError,
    HostNotFoundError,
    InstallError,
    ResumeError,
    NamesError,
    TrackError,
    ManifestError,
    StoreError,
    BackupError,
    ExportError,
    UsageError,
    PostHocError,
    CloudError,
    ReportError,
]
PROBLEM = SettingProblem("save_sets", '"BOHT"', "allowed: BOTH", "type --config-value ema_select.save_sets=BOTH")
OTHER = SettingProblem("", "true", "allowed: a section", "type something")


def test_every_error_of_the_module_has_the_one_base() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == {*PLAIN, SettingsError, HostMismatchError}
    assert all(issubclass(error, EmaSelectError) for error in defined)


@pytest.mark.parametrize("error_type", PLAIN)
def test_the_message_is_the_text_and_the_fields_are_kept(error_type: type[EmaSelectError]) -> None:
    error = error_type("It is gone. Put it back.", path=Path("a") / "b", key="k", expected="one", found="none")
    assert str(error) == "It is gone. Put it back."
    assert error.path == str(Path("a") / "b")
    assert (error.key, error.expected, error.found) == ("k", "one", "none")


def test_fields_that_do_not_apply_are_none() -> None:
    error = EmaSelectError("Do it again.")
    assert (error.path, error.key, error.expected, error.found) == (None, None, None, None)


def test_one_wrong_setting_is_spoken_of_in_the_singular_and_fills_the_fields() -> None:
    error = SettingsError((PROBLEM,))
    assert str(error) == (
        "1 setting in `ema_select` is wrong, so no model was loaded:\n"
        '- ema_select.save_sets: found "BOHT"; allowed: BOTH; type --config-value ema_select.save_sets=BOTH'
    )
    assert (error.key, error.found, error.expected) == ("ema_select.save_sets", '"BOHT"', "allowed: BOTH")


def test_several_wrong_settings_are_a_line_each() -> None:
    error = SettingsError((PROBLEM, OTHER))
    assert str(error) == (
        "2 settings in `ema_select` are wrong, so no model was loaded:\n"
        '- ema_select.save_sets: found "BOHT"; allowed: BOTH; type --config-value ema_select.save_sets=BOTH\n'
        "- ema_select: found true; allowed: a section; type something"
    )
    assert error.problems == (PROBLEM, OTHER)
    assert error.key is None


def test_host_mismatches_are_a_line_each_and_it_ends_with_what_to_do() -> None:
    error = HostMismatchError(("create_ema has no config.", "GenericTrainer is missing."))
    assert str(error) == (
        "This OneTrainer differs in 2 places from those this plugin knows; nothing was patched:\n"
        "- create_ema has no config.\n"
        "- GenericTrainer is missing.\n"
        "Update onetrainer-ema-select to a version that knows this OneTrainer (`onetrainer-ema-select "
        "doctor` shows each place), or train without the plugin: set ema_select.enabled=false."
    )
    assert "differs in 1 place from" in str(HostMismatchError(("One.",)))


@pytest.mark.parametrize(
    "error",
    [
        StoreError("The disk is full. Make room.", path="x", key="k", expected="e", found="f"),
        SettingsError((PROBLEM, OTHER)),
        SettingsError((PROBLEM,)),
        HostMismatchError(("One.", "Two.")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: EmaSelectError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
