"""OneTrainer's training and backup tab with the plugin's rows on them, and what a run has left to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from onetrainer_ema_select import __version__
from onetrainer_ema_select.errors import HostMismatchError
from onetrainer_ema_select.host import notices
from onetrainer_ema_select.host.install import mismatches_found
from onetrainer_ema_select.host.report import write_line
from onetrainer_ema_select.host.window import layout, toolkit
from onetrainer_ema_select.host.window.backups import BackupsPanel
from onetrainer_ema_select.host.window.guard import guarded, print_error, words_for
from onetrainer_ema_select.host.window.rows import NARROW, SettingRows

T = TypeVar("T")

HEADING = "EMA and non-EMA"
NOT_CONTINUING = (
    "The next training begins anew: Continue from last backup (general tab) is off. A button below switches it on."
)
#: Below the rows of OneTrainer's backup tab, with room for those that it will get.
_ROW = 20
#: Pixels: a sentence of the plugin in the status line is not to push OneTrainer's buttons out of the window.
_STATUS_WIDTH = 420
#: Where the rows and the list are kept on OneTrainer's views.
ROWS, PANEL = "_ema_select_rows", "_ema_select_panel"


def build_backup_tab(original: Callable[..., Any], view: Any, frame: Any, controller: Any, ui_state: Any) -> Any:
    """Stand in for ``BaseTrainUIView.build_backup_tab_content``."""
    result = original(view, frame, controller, ui_state)
    guarded(lambda: _add_to_backup_tab(view, frame, ui_state))()
    return result


def _add_to_backup_tab(view: Any, frame: Any, ui_state: Any) -> None:
    _follow_end(view)
    outer = view.components.inline_frame(frame, _ROW, 0, 5)
    toolkit.stretch(outer, 0, 1)
    rows = _filled(
        view,
        lambda: _wide_frame(view.components, outer, 0),
        lambda frame: _fill_backup_tab(SettingRows(view.components, ui_state, frame)),
    )
    if rows is None:
        return
    say_active()
    setattr(view, ROWS, rows)
    # Apart: a list that cannot be shown takes no setting away.
    panel = _filled(
        view, lambda: _section(view.components, outer, 1), lambda frame: BackupsPanel(view, rows, frame).build()
    )
    setattr(view, PANEL, panel)
    # Tk has no status line yet.
    view.components.call_after(frame, 0, guarded(lambda: _use_status_line(view)))


def _use_status_line(view: Any) -> None:
    toolkit.wrap(view.status_label, _STATUS_WIDTH, fixed=False)
    view.components.set_label_text(view.status_label, f"onetrainer-ema-select {__version__} is active")


def build_training_tab(
    original: Callable[..., Any], view: Any, column_0: Any, column_1: Any, column_2: Any, *rest: Any
) -> Any:
    """Stand in for ``BaseTrainingTabView.build``, which OneTrainer calls for every model type that is chosen.

    The rows go to the top of the last column, which is empty for most types of models.
    """
    guarded(lambda: _close_rows(view))()
    result = original(view, column_0, column_1, column_2, *rest)
    guarded(lambda: _add_to_training_tab(view, column_2, rest[1]))()
    return result


def _close_rows(view: Any) -> None:
    if (old := view.__dict__.pop(ROWS, None)) is not None:
        old.close()


def _add_to_training_tab(view: Any, column: Any, ui_state: Any) -> None:
    rows = _filled(
        view,
        lambda: _first_frame(view, column),
        lambda frame: _fill_training_tab(SettingRows(view.components, ui_state, frame)),
    )
    if rows is not None:
        setattr(view, ROWS, rows)


def _first_frame(view: Any, column: Any) -> Any:
    toolkit.free_first_row(column)
    return view.components.section_frame(column, 0)


def _fill_training_tab(rows: SettingRows) -> SettingRows:
    frame = rows.frame
    for place, key in enumerate(layout.shown(layout.AVERAGE)):
        rows.add(frame, place, key)
    rows.note(frame, 20, 2, lambda: layout.state_sentence(rows.values(), ema_on=rows.ema_on), width=NARROW)
    return rows.watch()


def _fill_backup_tab(rows: SettingRows) -> SettingRows:
    components, outer = rows.components, rows.frame
    frame = _section(components, outer, 0)
    components.label(frame, 0, 0, f"{HEADING} (onetrainer-ema-select {__version__})", underline=True)
    rows.add(frame, 1, "enabled")
    rows.note(frame, 2, 4, lambda: layout.state_sentence(rows.values(), ema_on=rows.ema_on))
    _mistakes(rows, frame, 3)

    frame = _section(components, outer, 1)
    _heading(components, frame, "Saves and milestones")
    rows.add(frame, 1, "save_sets")
    rows.add(frame, 1, "primary_set", column=2)
    rows.add(frame, 2, "save_rounding")
    rows.add(frame, 3, "milestones", columns=3)
    rows.add(frame, 4, "milestone_backups")
    rows.add(frame, 4, "milestone_keep", column=2)

    frame = _section(components, outer, 2)
    _heading(components, frame, "Resume")
    *keys, backup = layout.shown(layout.RESUME)
    for place, key in enumerate(keys):
        rows.add(frame, 1 + place // 2, key, column=2 * (place % 2))
    rows.add(frame, 10, backup, columns=3)
    line = rows.note(frame, 11, 4, lambda: NOT_CONTINUING)
    rows.show_if(
        lambda: rows.section.asks_for_plugin() and not rows.continues and not rows.values()["resume_backup"], line
    )
    return rows.watch()


def _wide_frame(components: Any, outer: Any, row: int) -> Any:
    """A frame without a border, as wide as the tab."""
    frame = components.inline_frame(outer, row, 0, 1)
    toolkit.stretch(frame, 0, 1)
    return frame


def _section(components: Any, outer: Any, row: int) -> Any:
    """A frame with two pairs of columns, for labels and widgets."""
    frame = components.section_frame(outer, row)
    toolkit.stretch(frame, 0, 0)
    toolkit.stretch(frame, 1, 1)
    toolkit.stretch(frame, 3, 1)
    return frame


def _heading(components: Any, frame: Any, text: str) -> None:
    components.label(frame, 0, 0, text, underline=True)


def _mistakes(rows: SettingRows, frame: Any, row: int) -> None:
    """A line that names what is wrong in the configuration that was loaded, with a button that drops it."""

    def text() -> str:
        wrong = rows.section.mistakes()
        return f"Wrong in this config: {wrong}" if wrong else ""

    def drop() -> None:
        rows.section.drop_mistakes()
        for key in rows.values():
            rows.show_value(key)
        rows.refresh()

    line = rows.note(frame, row, 3, text)
    button = rows.components.button(
        frame,
        row,
        3,
        "use what is shown",
        guarded(drop),
        tooltip="Drops the wrong values that this config came with. What the rows show is used instead.",
    )
    rows.show_if(lambda: bool(text()), line, button)


def _filled(view: Any, make_frame: Callable[[], Any], fill: Callable[[Any], T]) -> T | None:
    """Fill a frame; if that fails, say so in its place. The window opens in any case.

    Returns:
        What fills it, None if that has failed.
    """
    frame = None
    try:
        if found := mismatches_found():
            raise HostMismatchError(found)
        frame = make_frame()
        return fill(frame)
    except Exception as error:  # noqa: BLE001 - OneTrainer's window must open
        print_error(error)
        if frame is not None:
            toolkit.remove(frame)
        view.components.label(make_frame(), 0, 0, _left_out(error), wraplength=500)
        return None


def _left_out(error: Exception) -> str:
    return (
        f"onetrainer-ema-select {__version__} cannot show its settings here. {words_for(error)} OneTrainer's own "
        "settings are not affected. For details run: onetrainer-ema-select doctor"
    )


def _follow_end(view: Any) -> None:
    """When a run has stopped, list its backups, and show what it has left to say.

    By then OneTrainer has written over its status line.
    """
    original = view.on_training_stopped

    def on_training_stopped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        guarded(lambda: _show_notices(view))()
        if (panel := getattr(view, PANEL, None)) is not None:
            guarded(panel.refresh)()
        return result

    view.on_training_stopped = on_training_stopped


def _show_notices(view: Any) -> None:
    if texts := notices.take():
        view.on_update_status(f"{HEADING}: {texts[-1]}")
        toolkit.warn(view, HEADING, "\n\n".join(texts))


def say_active() -> None:
    """Print that the plugin is there."""
    write_line(
        f"[ema_select] The plugin onetrainer-ema-select, version {__version__}, is active. Its settings are on the "
        "tabs training and backup."
    )
