"""The little that OneTrainer's components cannot do alike in both of its toolkits, Qt (PySide6) and Tk.

Neither toolkit is imported here unless it is the one whose window is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_HIDES = "_ema_select_hides"
_USUAL = "_ema_select_text_color"
#: In Tk's light and dark appearance.
_GREY = ("gray60", "gray50")


def is_tk(widget: Any) -> bool:
    """Whether a widget is one of Tk's."""
    return hasattr(widget, "grid_columnconfigure")


def stretch(frame: Any, column: int, weight: int) -> None:
    """Have a column of a frame's grid take a share of the width that is left; 0 for none."""
    if is_tk(frame):
        frame.grid_columnconfigure(column, weight=weight)
    else:
        frame.layout().setColumnStretch(column, weight)


def span(widget: Any, frame: Any, row: int, column: int, columns: int) -> None:
    """Have a widget take several columns of its frame's grid."""
    if is_tk(widget):
        widget.grid_configure(columnspan=columns)
    else:
        frame.layout().addWidget(widget, row, column, 1, columns)


def enable(components: Any, widget: Any, enabled: bool) -> None:
    """Enable a widget, or grey it out, which Tk's labels and entries do not do by themselves."""
    kind = type(widget).__name__
    if kind != "CTkLabel":  # its disabled state has the usual colour, whatever it is told
        components.set_widget_enabled(widget, enabled)
    if kind not in ("CTkLabel", "CTkEntry"):
        return
    if not hasattr(widget, _USUAL):
        setattr(widget, _USUAL, widget.cget("text_color"))
    widget.configure(text_color=getattr(widget, _USUAL) if enabled else _GREY)


def wrap(label: Any, width: int, *, fixed: bool = True) -> None:
    """Have a label break its text into lines of at most so many pixels that begin at the same place.

    Args:
        label: The label.
        width: In pixels.
        fixed: Whether it takes that width also where its text is shorter, which Qt needs for :func:`set_text`.
    """
    if is_tk(label):
        label.configure(wraplength=width, justify="left")
    else:
        label.setWordWrap(True)
        label.setMaximumWidth(width)
        if fixed:
            label.setMinimumWidth(width)


def set_text(components: Any, label: Any, text: str) -> None:
    """Show a text in a label that was given to :func:`wrap`."""
    components.set_label_text(label, text)
    if not is_tk(label):
        # a grid of Qt's gives a label the height of its text at another width
        label.setMinimumHeight(max(0, label.heightForWidth(label.maximumWidth())))


def free_first_row(frame: Any) -> None:
    """Have nothing stand in the first row of a frame's grid; what does is moved down, with all below it."""
    if is_tk(frame):
        children = frame.grid_slaves()
        if any(int(child.grid_info()["row"]) == 0 for child in children):
            for child in children:
                child.grid_configure(row=int(child.grid_info()["row"]) + 1)
        return
    layout = frame.layout()
    if layout is None:
        return
    places = [(layout.itemAt(index).widget(), *layout.getItemPosition(index)) for index in range(layout.count())]
    if any(row == 0 for _, row, *_ in places):
        for widget, row, column, rows, columns in places:
            layout.removeWidget(widget)
            layout.addWidget(widget, row + 1, column, rows, columns)


def show(widget: Any, visible: bool) -> None:
    """Show a widget that stands in a grid, or hide it without losing its place."""
    if not is_tk(widget):
        widget.setVisible(visible)
    elif visible:
        widget.grid()
    else:
        widget.grid_remove()


def remove(widget: Any) -> None:
    """Take a widget out of the window."""
    if is_tk(widget):
        widget.destroy()
    else:
        widget.hide()
        widget.deleteLater()


def set_options(widget: Any, values: Sequence[str]) -> None:
    """Replace what a drop-down offers; it keeps its width, however long the texts are."""
    if is_tk(widget):
        widget.configure(values=list(values), dynamic_resizing=False)
        return
    widget.blockSignals(True)
    widget.setSizeAdjustPolicy(type(widget).SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    widget.setMinimumContentsLength(20)
    widget.clear()
    widget.addItems(list(values))
    widget.blockSignals(False)


def set_progress(widget: Any, fraction: float) -> None:
    """Show how much of something is done, from 0 to 1."""
    if is_tk(widget):
        widget.set(fraction)
    else:
        widget.setValue(round(fraction * widget.maximum()))


def ask_where_to_save(widget: Any, initial: Path) -> str:
    """Ask for the name of a file to write; empty if none was given."""
    folder = initial.parent if initial.parent.is_dir() else Path.cwd()
    if is_tk(widget):
        from tkinter import filedialog

        # whether what is there may be replaced is asked by the panel's own switch
        return str(
            filedialog.asksaveasfilename(
                initialdir=folder, initialfile=initial.name, confirmoverwrite=False, parent=widget.winfo_toplevel()
            )
            or ""
        )
    from PySide6.QtWidgets import QFileDialog

    chosen, _ = QFileDialog.getSaveFileName(
        widget, "", str(folder / initial.name), "", "", QFileDialog.Option.DontConfirmOverwrite
    )
    return str(chosen)


def hide_when_closed(widget: Any, busy: Callable[[], bool]) -> None:
    """Have the window vanish when it is closed although something is still being done in its process.

    OneTrainer's Tk window only ends its loop when it is closed, and stays on the screen until the process ends. To be
    called when that something begins: what closing does, OneTrainer says last of all when it builds the window.

    Args:
        widget: Any widget of the window.
        busy: Tells whether something is being done.
    """
    if not is_tk(widget):
        return
    window = widget.winfo_toplevel()
    original = window.protocol("WM_DELETE_WINDOW")
    if not original or hasattr(window, _HIDES):
        return

    def close() -> None:
        window.tk.call(original)
        if busy():
            window.withdraw()
            window.update_idletasks()

    window.protocol("WM_DELETE_WINDOW", close)
    setattr(window, _HIDES, True)


def warn(view: Any, heading: str, text: str) -> None:
    """Show a message until the user closes it."""
    if is_tk(view):
        from tkinter import messagebox

        messagebox.showwarning(heading, text, parent=view)
    else:
        from PySide6.QtWidgets import QMessageBox

        QMessageBox.warning(view, heading, text)
