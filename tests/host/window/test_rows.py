"""The rows without a toolkit: components and variables that only remember what they are told.

The real window is driven in ``tests/onetrainer/test_window.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from onetrainer_ema_select.host.window import layout, toolkit
from onetrainer_ema_select.host.window.rows import SettingRows
from onetrainer_ema_select.settings import EmaSelectSettings


class Variable:
    def __init__(self, value: Any) -> None:
        self.value = value

    def set(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value


class State:
    """OneTrainer's variables, of which somebody else may change the value."""

    def __init__(self, obj: Any, variables: dict[str, Any]) -> None:
        self.obj, self.variables = obj, variables
        self.traces: dict[int, tuple[str, Callable[[], None]]] = {}
        self.given = 0

    def get_var(self, name: str) -> Any:
        return self.variables[name]

    def add_var_trace(self, name: str, command: Callable[[], None]) -> int:
        self.given += 1
        self.traces[self.given] = (name, command)
        return self.given

    def remove_var_trace(self, name: str, trace: int) -> None:
        assert self.traces.pop(trace)[0] == name

    def changed(self, name: str) -> None:
        for traced, command in list(self.traces.values()):
            if traced == name:
                command()


class Components:
    """Widgets are dicts."""

    def __getattr__(self, kind: str) -> Any:
        return lambda *args, **kwargs: {"kind": kind, "args": args, **kwargs}

    def call_after(self, widget: Any, delay_ms: int, func: Callable[[], None]) -> None:
        func()

    def set_widget_enabled(self, widget: dict[str, Any], enabled: bool) -> None:
        widget["enabled"] = enabled

    def set_label_text(self, widget: dict[str, Any], text: str) -> None:
        widget["text"] = text


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> SettingRows:
    values = {key: field.default for key, field in EmaSelectSettings.model_fields.items()}
    section = SimpleNamespace(**values, asks_for_plugin=lambda: section.enabled)
    own = State(section, {key: Variable(str(value)) for key, value in values.items()})
    root = State(None, {"ema_select": own, "ema": Variable("CPU"), "continue_last_backup": Variable(False)})
    for name in ("span", "wrap"):
        monkeypatch.setattr(toolkit, name, lambda *_: None)
    monkeypatch.setattr(toolkit, "set_text", lambda components, label, text: components.set_label_text(label, text))
    rows = SettingRows(Components(), root, None)
    for place, key in enumerate(layout.shown(layout.KEYS)):
        rows.add(None, place, key)
    return rows


def enabled(rows: SettingRows) -> set[str]:
    return {key for key, widgets in rows.widgets.items() if all(widget["enabled"] for widget in widgets)}


def test_each_kind_of_value_has_its_widget(rows: SettingRows) -> None:
    kinds = {key: widgets[1]["kind"] for key, widgets in rows.widgets.items()}
    assert kinds["enabled"] == "switch"
    assert kinds["save_sets"] == "options"
    assert rows.widgets["resume_weights"][1]["args"][3] == ["NON_EMA", "EMA", "BEST", "POST_HOC"]
    assert kinds["milestones"] == "entry"
    assert kinds["milestone_keep"] == "entry"


def test_widgets_follow_the_settings_and_onetrainers_own(rows: SettingRows) -> None:
    rows.watch()
    assert enabled(rows) == {"enabled"}
    rows.section.enabled = True
    rows.state.changed("enabled")
    assert {"save_sets", "ema_dtype"} < enabled(rows)
    assert "resume_weights" not in enabled(rows)
    rows.root.get_var("continue_last_backup").value = True
    rows.root.changed("continue_last_backup")
    assert "resume_weights" in enabled(rows)
    rows.root.get_var("ema").value = "OFF"
    rows.root.changed("ema")
    assert "save_sets" not in enabled(rows)


def test_a_field_that_turns_grey_shows_what_counts_again(rows: SettingRows) -> None:
    rows.section.enabled = True
    rows.watch()
    rows.state.get_var("milestones").value = "10 eop"  # being typed, and not in the config yet
    rows.section.enabled = False
    rows.state.changed("enabled")
    assert rows.state.get_var("milestones").value == ""


def test_notes_follow_the_settings(rows: SettingRows) -> None:
    label = rows.note(None, 0, 2, lambda: f"enabled: {rows.section.enabled}")
    rows.watch()
    rows.section.enabled = True
    rows.state.changed("enabled")
    assert label["text"] == "enabled: True"


def test_mistakes_in_a_section_that_is_off_keep_no_run_from_starting(rows: SettingRows) -> None:
    validate = rows.widgets["milestones"][1]["extra_validate"]
    assert validate("10 eopchs") is None
    rows.section.enabled = True
    assert validate("10 eopchs").startswith('"10 eopchs", in which')
    assert validate("10 epochs") is None


def test_closed_rows_follow_nothing(rows: SettingRows) -> None:
    rows.follow(["ema"], lambda: pytest.fail("called after it was closed"))
    rows.watch()
    assert rows.state.traces
    rows.close()
    assert not rows.state.traces
    assert not rows.root.traces
    rows.root.changed("ema")


def test_a_failure_while_the_user_types_is_printed_and_no_more(
    rows: SettingRows, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise RuntimeError("broken")

    rows.watch()
    rows.note(None, 0, 2, fail)
    rows.state.changed("enabled")
    assert "RuntimeError: broken" in capsys.readouterr().out
