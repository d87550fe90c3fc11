"""The list of the workspace's backups: continue from one, or take a set out of it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.decision import decide
from onetrainer_ema_select.host.window import picker, toolkit
from onetrainer_ema_select.host.window.jobs import Job, comparison_job, export_job
from onetrainer_ema_select.host.window.rows import SettingRows

AS_IN_RUN: Final = "as in the run"
SETS: Final = ("ema", "non-ema", "both")
DTYPES: Final = (AS_IN_RUN, "FLOAT_32", "FLOAT_16", "BFLOAT_16")
_POLL_MILLISECONDS: Final = 200
_PREVIEW_MILLISECONDS: Final = 300


class BackupsPanel:
    """The list with its buttons. Its own choices are no part of the configuration."""

    def __init__(self, view: Any, rows: SettingRows, frame: Any) -> None:
        """Begin without widgets.

        Args:
            view: OneTrainer's window.
            rows: The settings of the same tab.
            frame: Where the widgets go, with two pairs of columns.
        """
        self.view = view
        self.components = view.components
        self.rows = rows
        self.frame = frame
        self.config = view.controller.train_config
        self.own = rows.root._make_nested_state(
            {
                "backup": "",
                "set": SETS[0],
                "format": AS_IN_RUN,
                "dtype": AS_IN_RUN,
                "output": "",
                "overwrite": False,
            }
        )
        self.entries: tuple[picker.Entry, ...] = ()
        self.workspace = Path()
        self.suggested = ""
        self.job: Job | None = None
        self.waiting = False

    def build(self) -> None:
        """Make the widgets."""
        components, frame, own = self.components, self.frame, self.own
        components.label(frame, 0, 0, "Backups of this workspace", underline=True)
        components.button(frame, 0, 3, "refresh", self.guarded(self.refresh), tooltip="Looks into the workspace again.")
        components.label(
            frame,
            1,
            0,
            "Backup",
            tooltip="The workspace's backups and milestones, newest first: step, epoch, the sets that each holds.",
        )
        self.list = components.options(frame, 1, 1, [picker.NOTHING], own, "backup")
        toolkit.span(self.list, frame, 1, 1, 3)
        self.detail = self.rows.line(frame, 2, 4)
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
            tooltip="The next training starts from the newest complete backup. Empties Resume Backup.",
        )
        self.preview = self.rows.line(frame, 4, 4)
        self.rows.after_change(self.preview_soon)
        self.build_export()
        own.add_var_trace("backup", self.guarded(self.show_chosen))
        own.add_var_trace("set", self.guarded(self.suggest))
        self.rows.follow(("workspace_dir",), self.guarded(self.workspace_changed))
        self.refresh()

    def build_export(self) -> None:
        """Make the widgets of the export."""
        components, frame, own = self.components, self.frame, self.own
        from modules.util.enum.ModelFormat import ModelFormat

        formats = (AS_IN_RUN, *(str(each) for each in ModelFormat if str(each) != "INTERNAL"))
        components.label(frame, 5, 0, "Export from this backup", underline=True)
        for row, column, name, text, values, tooltip in (
            (6, 0, "set", "Set", SETS, "Which set is written: the averaged weights, the trained ones, or both."),
            (6, 2, "format", "Format", formats, "The model's format. Not every type of model has each of them."),
            (7, 0, "dtype", "Data Type", DTYPES, "The precision of the weights in the file."),
        ):
            components.label(frame, row, column, text, tooltip=tooltip)
            components.options(frame, row, column + 1, list(values), own, name)
        components.label(
            frame, 7, 2, "Replace Files", tooltip="Whether a model that lies there already may be replaced."
        )
        components.switch(frame, 7, 3, own, "overwrite")
        components.label(
            frame,
            8,
            0,
            "Output",
            tooltip="The file or folder to write. With both sets, the other one gets -ema or -non-ema in its name.",
        )
        output = components.entry(frame, 8, 1, own, "output")
        toolkit.span(output, frame, 8, 1, 2)
        components.button(frame, 8, 3, "choose file", self.guarded(self.choose_output))
        self.button = components.button(
            frame,
            9,
            1,
            "export",
            self.guarded(self.export),
            tooltip="Writes a model that inference programs can load, exactly as OneTrainer would have saved it then. "
            "Runs on the CPU in a process of its own and needs as much memory as the model.",
        )
        self.comparing = components.button(
            frame,
            9,
            3,
            "compare its two sets",
            self.guarded(self.compare),
            tooltip="Measures how far the backup's EMA and non-EMA weights are apart. Reads both, changes nothing.",
        )
        self.bar = components.progress(frame, 11, 1)
        toolkit.span(self.bar, frame, 11, 1, 3)
        toolkit.show(self.bar, False)
        self.result = self.rows.line(frame, 10, 4)

    def guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """A button's action whose failure is shown and stays its own."""

        def act(*_: Any) -> None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - in the toolkit's loop nobody else catches it
                traceback.print_exc()
                toolkit.set_text(self.components, self.detail, f"{type(error).__name__}: {error}")

        return act

    # -- the list ----------------------------------------------------------------------------------------

    @property
    def chosen(self) -> picker.Entry:
        """The entry that the list shows."""
        label = self.own.get_var("backup").get()
        return next((entry for entry in self.entries if entry.label == label), self.entries[0])

    def workspace_changed(self) -> None:
        """Look into another workspace, once the user has stopped typing its name."""
        self.components.call_after(self.frame, 500, self.guarded(lambda: self.refresh() if self.moved() else None))

    def moved(self) -> bool:
        """Whether the configuration names another workspace than the one listed."""
        return Path(self.config.workspace_dir) != self.workspace

    def refresh(self) -> None:
        """Look into the workspace again."""
        before = self.own.get_var("backup").get()
        self.workspace = Path(self.config.workspace_dir)
        self.entries = picker.entries(self.workspace)
        labels = [entry.label for entry in self.entries]
        toolkit.set_options(self.list, labels)
        self.own.get_var("backup").set(before if before in labels else labels[0])
        self.rows.refresh()

    def show_chosen(self) -> None:
        """Say what there is to say of the chosen backup."""
        entry = self.chosen
        toolkit.set_text(self.components, self.detail, entry.detail)
        toolkit.enable(self.components, self.resume, entry.complete)
        for widget in (self.button, self.comparing):
            toolkit.enable(self.components, widget, entry.complete and self.job is None)
        self.suggest()

    # -- continuing --------------------------------------------------------------------------------------

    def continue_from_this(self) -> None:
        """Have the next training begin with the chosen backup."""
        backup = self.chosen.backup
        if backup is None:
            return
        self.set_resume(backup.name)
        decision = decide(self.rows.section.settings(), self.config)
        if decision.backup is not None and decision.backup.name != backup.name:
            # The newest backup's leg has begun with just these choices. The click asks for another one.
            self.rows.state.get_var("resume_leg").set(f"window {time.strftime('%Y-%m-%d %H:%M:%S')}")

    def continue_from_newest(self) -> None:
        """Have the next training begin with the newest backup."""
        self.set_resume("")

    def set_resume(self, name: str) -> None:
        """Set what makes OneTrainer and the plugin continue."""
        self.rows.state.get_var("resume_backup").set(name)
        self.rows.state.get_var("enabled").set(True)
        self.rows.root.get_var("continue_last_backup").set(True)

    def preview_soon(self) -> None:
        """Say what the next training will begin with, once the user has stopped typing: it is read from the disk."""
        if not self.waiting:
            self.waiting = True
            self.components.call_after(self.frame, _PREVIEW_MILLISECONDS, self.guarded(self.show_preview))

    def show_preview(self) -> None:
        """Say what the next training will begin with."""
        self.waiting = False
        toolkit.set_text(self.components, self.preview, self.next_start())

    def next_start(self) -> str:
        """What the next training will begin with, as it will say itself."""
        section = self.rows.section
        if not section.asks_for_plugin():
            return ""
        try:
            return f"The next training will say: {decide(section.settings(), self.config).plan.sentence}"
        except EmaSelectError as error:
            return f"The next training would be refused: {error}"
        except Exception as error:  # noqa: BLE001 - a folder that vanishes while it is read
            return f"What the next training begins with cannot be told: {type(error).__name__}: {error}"

    # -- exporting ---------------------------------------------------------------------------------------

    def suggest(self) -> None:
        """Suggest an output, unless the user has typed one."""
        backup = self.chosen.backup
        output = self.own.get_var("output")
        if backup is None or output.get() not in ("", self.suggested):
            return
        self.suggested = picker.suggested_output(
            self.config.output_model_destination, backup, self.own.get_var("set").get()
        )
        output.set(self.suggested)

    def choose_output(self) -> None:
        """Let the user choose the output in a dialog."""
        initial = Path(self.own.get_var("output").get() or "model.safetensors")
        if path := toolkit.ask_where_to_save(self.frame, initial.absolute()):
            self.own.get_var("output").set(path)

    def export(self) -> None:
        """Export as the rows say."""
        backup, value = self.chosen.backup, {name: self.own.get_var(name).get() for name in ("set", "output")}
        if backup is None or self.job is not None:
            return
        if not value["output"]:
            toolkit.set_text(self.components, self.result, "Not exported: type a file or folder under Output.")
            return
        chosen = {name: self.own.get_var(name).get() for name in ("format", "dtype")}
        self.start(
            export_job(
                backup.path,
                value["output"],
                sets=value["set"],
                overwrite=bool(self.own.get_var("overwrite").get()),
                onetrainer=Path.cwd(),
                **{name: "" if text == AS_IN_RUN else text for name, text in chosen.items()},
            )
        )

    def compare(self) -> None:
        """Measure how far the two sets of the chosen backup are apart."""
        backup = self.chosen.backup
        if backup is not None and self.job is None:
            self.start(comparison_job(backup.path))

    def start(self, job: Job) -> None:
        """Follow a job that has begun, until it is done."""
        self.job = job
        for widget in (self.button, self.comparing):
            toolkit.enable(self.components, widget, False)
        toolkit.show(self.bar, True)
        self.poll()

    def poll(self) -> None:
        """Show how far the job is, until it is done."""
        job = self.job
        if job is None:
            return
        if not job.finished:
            toolkit.set_text(self.components, self.result, job.progress_text())
            toolkit.set_progress(self.bar, job.fraction or 0.0)
            self.components.call_after(self.frame, _POLL_MILLISECONDS, self.guarded(self.poll))
            return
        self.job = None
        toolkit.show(self.bar, False)
        toolkit.set_text(self.components, self.result, job.text)
        self.show_chosen()
