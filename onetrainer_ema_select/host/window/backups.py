"""The list of the workspace's backups, and continuing from one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.decision import decide
from onetrainer_ema_select.host.window import picker, toolkit
from onetrainer_ema_select.host.window.background import Latest
from onetrainer_ema_select.host.window.exporting import Exporting
from onetrainer_ema_select.host.window.guard import guarded, words_for
from onetrainer_ema_select.host.window.rows import SettingRows

_TYPED_MILLISECONDS: Final = 300


class BackupsPanel:
    """The list with its buttons."""

    def __init__(self, view: Any, rows: SettingRows, frame: Any) -> None:
        """Begin without widgets.

        Args:
            view: OneTrainer's window.
            rows: The settings of the same tab.
            frame: Where the widgets go, with two pairs of columns.
        """
        self.components = view.components
        self.rows, self.frame = rows, frame
        self.config = view.controller.train_config
        self.own = rows.root._make_nested_state({"backup": picker.LOOKING})
        self.entries: tuple[picker.Entry, ...] = (picker.Entry(picker.LOOKING),)
        self.workspace = Path()
        self.changes = 0
        self.scan: Latest[tuple[picker.Entry, ...]] = Latest(self.components, frame, self.guarded_with(self.listed))
        self.foresight: Latest[str] = Latest(self.components, frame, self.guarded_with(self.foreseen))
        self.exporting = Exporting(rows, frame, self.config, lambda: self.chosen)

    @property
    def busy(self) -> bool:
        """Whether the list or the line about the next training is still to come."""
        return self.scan.busy or self.foresight.busy

    def build(self) -> BackupsPanel:
        """Make the widgets, and look into the workspace; returns itself."""
        components, frame, own = self.components, self.frame, self.own
        components.label(frame, 0, 0, "Backups of this workspace", underline=True)
        self.detail = self.rows.line(frame, 2, 4)
        components.button(frame, 0, 3, "refresh", self.guarded(self.refresh), tooltip="Looks into the workspace again.")
        components.label(
            frame,
            1,
            0,
            "Backup",
            tooltip="The workspace's backups and milestones, newest first: step, epoch, the sets that each holds.",
        )
        self.list = components.options(frame, 1, 1, [picker.LOOKING], own, "backup")
        toolkit.span(self.list, frame, 1, 1, 3)
        components.button(
            frame,
            3,
            0,
            "begin anew",
            self.guarded(self.begin_anew),
            tooltip="The next training loads no backup. Empties Resume Backup, and switches Continue from last backup "
            "off.",
        )
        self.resume = components.button(
            frame,
            3,
            1,
            "continue from this",
            self.guarded(self.continue_from_this),
            tooltip="The next training starts from this backup, with the set and the other choices named under "
            "Resume. Sets Resume Backup, and switches Continue from last backup on.",
        )
        self.newest = components.button(
            frame,
            3,
            3,
            "continue from the newest",
            self.guarded(self.continue_from_newest),
            tooltip="The next training starts from the newest complete backup, with the choices named under Resume. "
            "Empties Resume Backup.",
        )
        self.preview = self.rows.line(frame, 4, 4)
        self.exporting.build()
        own.add_var_trace("backup", self.guarded(self.show_chosen))
        self.rows.after_change(self.preview_soon)
        self.rows.follow(("workspace_dir",), self.guarded(self.refresh_soon))
        self.guarded(self.refresh)()
        return self

    def guarded(self, action: Callable[[], None]) -> Callable[..., None]:
        """An action of this panel, whose failure is shown below the list."""
        return guarded(action, lambda text: toolkit.set_text(self.components, self.detail, text))

    def guarded_with(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """The same of an action with an argument."""
        return lambda argument: self.guarded(partial(action, argument))()

    # -- the list ----------------------------------------------------------------------------------------

    @property
    def chosen(self) -> picker.Entry:
        """The entry that the list shows."""
        label = self.own.get_var("backup").get()
        return next((entry for entry in self.entries if entry.label == label), picker.Entry(picker.NOTHING))

    def refresh_soon(self) -> None:
        """Look into another workspace, once the user has stopped typing its name."""
        self.components.call_after(self.frame, _TYPED_MILLISECONDS, self.guarded(self.refresh_if_moved))

    def refresh_if_moved(self) -> None:
        """Look into the workspace if the configuration names another one than is listed."""
        if Path(self.config.workspace_dir) != self.workspace:
            self.refresh()

    def refresh(self) -> None:
        """Look into the workspace again."""
        self.workspace = Path(self.config.workspace_dir)
        self.scan.ask(partial(picker.entries, self.workspace))
        self.preview_soon()

    def listed(self, found: tuple[picker.Entry, ...] | Exception) -> None:
        """Show what was found."""
        if isinstance(found, Exception):
            found = (picker.Entry(picker.UNREADABLE, None, words_for(found)),)
        before = self.own.get_var("backup").get()
        self.entries = found
        labels = [entry.label for entry in found]
        toolkit.set_options(self.list, labels)
        self.own.get_var("backup").set(before if before in labels else labels[0])

    def show_chosen(self) -> None:
        """Say what there is to say of the chosen backup."""
        entry = self.chosen
        toolkit.set_text(self.components, self.detail, entry.detail)
        toolkit.enable(self.components, self.resume, entry.complete)
        self.exporting.refresh()

    # -- continuing --------------------------------------------------------------------------------------

    def continue_from_this(self) -> None:
        """Have the next training begin with the chosen backup."""
        backup = self.chosen.backup
        if backup is None:
            return
        self.set_resume(backup.name, continues=True)
        decision = decide(self.rows.section.settings(), self.config)
        if decision.backup is not None and decision.backup.name != backup.name:
            # The newest backup's leg has begun with just these choices. The click asks for another one.
            self.rows.state.get_var("resume_leg").set(f"window {time.strftime('%Y-%m-%d %H:%M:%S')}")

    def continue_from_newest(self) -> None:
        """Have the next training begin with the newest backup."""
        self.set_resume("", continues=True)

    def begin_anew(self) -> None:
        """Have the next training load no backup."""
        self.set_resume("", continues=False)

    def set_resume(self, name: str, *, continues: bool) -> None:
        """Set what makes OneTrainer and the plugin continue."""
        self.rows.state.get_var("resume_backup").set(name)
        self.rows.root.get_var("continue_last_backup").set(continues)
        if continues:
            self.rows.state.get_var("enabled").set(True)

    def preview_soon(self) -> None:
        """Say what the next training will begin with, once nothing has changed for a moment."""
        self.changes += 1
        self.components.call_after(
            self.frame, _TYPED_MILLISECONDS, self.guarded(partial(self.preview_if_still, self.changes))
        )

    def preview_if_still(self, changes: int) -> None:
        """Look up what the next training will begin with, if nothing has changed since."""
        if changes == self.changes:
            self.foresight.ask(self.next_start)

    def foreseen(self, text: str | Exception) -> None:
        """Show what the next training will begin with."""
        if isinstance(text, Exception):
            text = f"What the next training begins with cannot be told: {words_for(text)}"
        toolkit.set_text(self.components, self.preview, text)

    def next_start(self) -> str:
        """What the next training will begin with, as it will say itself; reads the workspace."""
        section = self.rows.section
        if not section.asks_for_plugin():
            return ""
        try:
            return f"The next training will say: {decide(section.settings(), self.config).plan.sentence}"
        except EmaSelectError as error:
            return f"The next training would be refused: {error}"
