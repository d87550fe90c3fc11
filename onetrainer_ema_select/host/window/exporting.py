"""A set taken out of the backup that is chosen in the list, how far its two sets are apart, and the run's report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from onetrainer_ema_select.host.window import picker, toolkit
from onetrainer_ema_select.host.window.guard import guarded
from onetrainer_ema_select.host.window.jobs import Job, comparison_job, export_job, report_job
from onetrainer_ema_select.host.window.rows import SettingRows

AS_IN_RUN: Final = "as in the run"
FOLDER_FORMAT: Final = "DIFFUSERS"
SETS: Final = ("ema", "non-ema", "both")
DTYPES: Final = (AS_IN_RUN, "FLOAT_32", "FLOAT_16", "BFLOAT_16")
_POLL_MILLISECONDS: Final = 200


class Exporting:
    """Rows and buttons below the list. Their choices are no part of the configuration."""

    def __init__(self, rows: SettingRows, frame: Any, config: Any, chosen: Callable[[], picker.Entry]) -> None:
        """Begin without widgets.

        Args:
            rows: The settings of the same tab.
            frame: Where the widgets go, with two pairs of columns, from row 5 on.
            config: OneTrainer's configuration in the window.
            chosen: Tells what the list shows.
        """
        self.rows, self.frame, self.config, self.chosen = rows, frame, config, chosen
        self.components = rows.components
        self.own = rows.root._make_nested_state(
            {"set": SETS[0], "format": AS_IN_RUN, "dtype": AS_IN_RUN, "output": "", "overwrite": False}
        )
        self.suggested = ""
        self.job: Job | None = None

    def build(self) -> None:
        """Make the widgets."""
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
        toolkit.span(components.entry(frame, 8, 1, own, "output"), frame, 8, 1, 2)
        self.result = self.rows.line(frame, 10, 4)
        components.button(frame, 8, 3, "choose file", self.guarded(self.choose_output))
        self.export_button = components.button(
            frame,
            9,
            1,
            "export",
            self.guarded(self.export),
            tooltip="Writes a model that inference programs can load, exactly as OneTrainer would have saved it then. "
            "Runs on the CPU in a process of its own and needs as much memory as the model.",
        )
        self.compare_button = components.button(
            frame,
            9,
            3,
            "compare its two sets",
            self.guarded(self.compare),
            tooltip="Measures how far the backup's EMA and non-EMA weights are apart. Reads both, changes nothing.",
        )
        self.report_button = components.button(
            frame,
            9,
            0,
            "report of the run",
            self.guarded(self.report),
            tooltip="Makes a page of the whole workspace and opens it: samples of both sets side by side, curves, and "
            "which set is better. Changes nothing.",
        )
        self.bar = components.progress(frame, 11, 1)
        toolkit.span(self.bar, frame, 11, 1, 3)
        toolkit.show(self.bar, False)
        for name in ("set", "format"):
            own.add_var_trace(name, self.guarded(self.suggest))

    def guarded(self, action: Callable[[], None]) -> Callable[..., None]:
        """An action of these rows, whose failure is shown in their own line."""
        return guarded(action, lambda text: toolkit.set_text(self.components, self.result, text))

    def refresh(self) -> None:
        """Follow the list: another backup may have been chosen."""
        for button in (self.export_button, self.compare_button):
            toolkit.enable(self.components, button, self.chosen().complete and self.job is None)
        toolkit.enable(self.components, self.report_button, self.job is None)
        self.suggest()

    def suggest(self) -> None:
        """Suggest an output, unless the user has typed one."""
        backup, output = self.chosen().backup, self.own.get_var("output")
        if backup is None or output.get() not in ("", self.suggested):
            return
        self.suggested = picker.suggested_output(
            self.config.output_model_destination,
            backup,
            self.own.get_var("set").get(),
            folder=self.own.get_var("format").get() == FOLDER_FORMAT,
        )
        output.set(self.suggested)

    def choose_output(self) -> None:
        """Let the user choose the output in a dialog."""
        initial = Path(self.own.get_var("output").get() or "model.safetensors")
        if path := toolkit.ask_where_to_save(self.frame, initial.absolute()):
            self.own.get_var("output").set(path)

    def export(self) -> None:
        """Export as the rows say."""
        backup, value = self.chosen().backup, {name: self.own.get_var(name).get() for name in ("set", "output")}
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
        backup = self.chosen().backup
        if backup is not None and self.job is None:
            self.start(comparison_job(backup.path))

    def report(self) -> None:
        """Make the page of the workspace, and open it."""
        if self.job is None:
            self.start(report_job(Path(self.config.workspace_dir).absolute()))

    def start(self, job: Job) -> None:
        """Follow a job that has begun, until it is done."""
        self.job = job
        toolkit.hide_when_closed(self.frame, lambda: self.job is not None)
        self.refresh()
        toolkit.show(self.bar, True)
        self.poll()

    def poll(self) -> None:
        """Show how far the job is, until it is done."""
        job = self.job
        if job is None:
            return
        try:
            if not job.finished:
                toolkit.set_text(self.components, self.result, job.progress_text())
                toolkit.set_progress(self.bar, job.fraction or 0.0)
                self.components.call_after(self.frame, _POLL_MILLISECONDS, self.guarded(self.poll))
                return
        except Exception:
            self.job = None  # or nothing could be exported any more
            raise
        self.job = None
        toolkit.show(self.bar, False)
        toolkit.set_text(self.components, self.result, job.text)
        self.refresh()
