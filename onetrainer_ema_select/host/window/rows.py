"""Rows of settings: a label and a widget each, bound to the section as OneTrainer binds its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from onetrainer_ema_select.errors import SECTION
from onetrainer_ema_select.host.window import layout, toolkit
from onetrainer_ema_select.host.window.guard import guarded
from onetrainer_ema_select.settings import EmaSelectSettings, allowed_values

#: Pixels of a text over a whole tab of OneTrainer's window as it opens, and over one of three columns.
WIDE, NARROW = 760, 290
#: Of the host's configuration, what decides whether a setting of ours has a meaning.
WATCHED = ("ema", "continue_last_backup")


class SettingRows:
    """The rows of one tab, which grey out what has no meaning as things stand.

    OneTrainer builds a tab anew whenever another model type is chosen: :meth:`close` the old rows then, so that
    nothing refers to widgets that are gone.
    """

    def __init__(self, components: Any, ui_state: Any, frame: Any) -> None:
        """Begin without rows.

        Args:
            components: OneTrainer's module of components, of one toolkit or the other.
            ui_state: OneTrainer's variables of the whole configuration.
            frame: What holds all rows; timers belong to it.
        """
        self.frame = frame
        self.components = components
        self.root = ui_state
        self.state = ui_state.get_var(SECTION)
        self.widgets: dict[str, list[Any]] = {}
        self._notes: list[Callable[[], None]] = []
        self._traces: list[tuple[Any, str, int]] = []
        self._meaningful: frozenset[str] = frozenset()
        self._waiting = False

    @property
    def section(self) -> Any:
        """The section of the window's configuration."""
        return self.state.obj

    @property
    def ema_on(self) -> bool:
        """Whether OneTrainer's own EMA is on."""
        return str(self.root.get_var("ema").get()) != "OFF"

    @property
    def continues(self) -> bool:
        """Whether OneTrainer is to continue from a backup."""
        return bool(self.root.get_var("continue_last_backup").get())

    def values(self) -> dict[str, Any]:
        """The section's values as they are."""
        return {key: getattr(self.section, key) for key in EmaSelectSettings.model_fields}

    def add(self, frame: Any, row: int, key: str, *, column: int = 0, columns: int = 1) -> None:
        """Put a setting into a frame's grid: its label into a column, its widget into the next one.

        Args:
            frame: The frame.
            row: The grid's row.
            key: The setting.
            column: The label's column.
            columns: How many columns the widget takes.
        """
        label = self.components.label(frame, row, column, layout.title(key), tooltip=layout.tooltip(key))
        allowed = allowed_values(key)
        default = EmaSelectSettings.model_fields[key].default
        if isinstance(default, bool):
            widget = self.components.switch(frame, row, column + 1, self.state, key)
        elif allowed is not None:
            widget = self.components.options(frame, row, column + 1, list(allowed), self.state, key)
        else:
            widget = self.components.entry(
                frame,
                row,
                column + 1,
                self.state,
                key,
                extra_validate=self._validator(key),
            )
        if columns > 1:
            toolkit.span(widget, frame, row, column + 1, columns)
        self.widgets.setdefault(key, []).extend([label, widget])

    def note(self, frame: Any, row: int, columns: int, text: Callable[[], str], *, width: int = WIDE) -> Any:
        """Put a text that follows the settings into a frame.

        Args:
            frame: The frame.
            row: The grid's row.
            columns: How many columns it takes, from the first.
            text: Makes the text, whenever a setting changes.
            width: In pixels; what is longer is wrapped.

        Returns:
            Its label.
        """
        label = self.line(frame, row, columns, width=width)
        self._notes.append(lambda: toolkit.set_text(self.components, label, text()))
        return label

    def line(self, frame: Any, row: int, columns: int, *, width: int = WIDE) -> Any:
        """Put an empty text into a frame, with the arguments of :meth:`note`; returns its label."""
        label = self.components.label(frame, row, 0, "", wraplength=width)
        toolkit.wrap(label, width)
        toolkit.span(label, frame, row, 0, columns)
        return label

    def after_change(self, command: Callable[[], None]) -> None:
        """Have something called whenever a setting has changed."""
        self._notes.append(command)

    def show_if(self, wanted: Callable[[], bool], *widgets: Any) -> None:
        """Have widgets shown only while they are of use."""

        def update() -> None:
            for widget in widgets:
                toolkit.show(widget, wanted())

        self._notes.append(update)

    def watch(self) -> SettingRows:
        """Follow the settings from now on, once what was added before is up to date; returns itself."""
        self._bring_up_to_date()
        for state, names in ((self.state, EmaSelectSettings.model_fields), (self.root, WATCHED)):
            self._trace(state, names)
        return self

    def follow(self, names: Iterable[str], command: Callable[[], None]) -> None:
        """Call something when values of OneTrainer's own configuration change."""
        for name in names:
            self._traces.append((self.root, name, self.root.add_var_trace(name, command)))

    def _trace(self, state: Any, names: Iterable[str]) -> None:
        for name in names:
            self._traces.append((state, name, state.add_var_trace(name, self.refresh_soon)))

    def refresh_soon(self) -> None:
        """Bring all up to date when OneTrainer has done what it is at: a config that is loaded sets every value."""
        if not self._waiting and self._traces:
            self._waiting = True
            self.components.call_after(self.frame, 0, guarded(self.refresh))

    def refresh(self) -> None:
        """Grey out what has no meaning, and bring the notes up to date."""
        self._waiting = False
        if self._traces:  # not closed meanwhile
            self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        meaningful = layout.usable(self.values(), ema_on=self.ema_on, continues=self.continues)
        for key, widgets in self.widgets.items():
            if key in self._meaningful - meaningful:
                # A wrong text in a field that is grey would keep OneTrainer from starting a training.
                self.show_value(key)
            for widget in widgets:
                toolkit.enable(self.components, widget, key in meaningful)
        self._meaningful = meaningful
        for update in self._notes:
            update()

    def show_value(self, key: str) -> None:
        """Have a setting's widget show the value that counts."""
        value = getattr(self.section, key)
        self.state.get_var(key).set(value if isinstance(value, bool) else str(value))

    def close(self) -> None:
        """Follow nothing any more."""
        for state, name, trace in self._traces:
            state.remove_var_trace(name, trace)
        self._traces.clear()
        self._notes.clear()
        self.widgets.clear()

    def _validator(self, key: str) -> Callable[[str], str | None]:
        def validate(text: str) -> str | None:
            # Mistakes in a section that is off must not keep a run from starting.
            return layout.value_problem(key, text) if self.section.asks_for_plugin() else None

        return validate
