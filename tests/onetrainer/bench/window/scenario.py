"""What a user does in OneTrainer's window with the plugin; run by OneTrainer's own python in a copy of its checkout::

    python scenario.py qt|tk ORDER.json

The order names the configuration that the window finds from its last session, and where to write what was seen:
``seen.json``, which ``test_window.py`` judges. Every chapter is a generator; it yields conditions to wait for.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import webbrowser
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
sys.path.insert(1, str(Path.cwd() / "scripts"))
sys.path.insert(2, str(Path(__file__).parent))

from modules.util.ui.validation import flush_and_validate_all

from onetrainer_ema_select.host import install
from onetrainer_ema_select.host.window import layout
from onetrainer_ema_select.settings import EmaSelectSettings, allowed_values

WAIT_SECONDS = 30
TRAINING_SECONDS = 150
TYPED = {
    "milestones": "2 epochs, 25%",
    "milestone_keep": "3",
    "ema_half_life": "2 epochs",
    "post_hoc_sigma_rels": "0.05, 0.10",
    "post_hoc_every": "200 steps",
    "resume_sigma_rel": "0.10",
    "resume_leg": "second try",
    "resume_backup": "some-backup",
}


class Story:
    """The chapters, in the order in which a user meets them."""

    def __init__(self, window, order):
        self.window, self.order = window, order
        self.folder = Path(order["folder"])
        self.seen = {"toolkit": order["toolkit"]}
        self.chapter = ""

    # -- what the user sees ------------------------------------------------------------------------------

    @property
    def view(self):
        return self.window.view

    @property
    def config(self):
        return self.view.controller.train_config

    @property
    def section(self):
        return self.config.ema_select

    @property
    def panel(self):
        return self.view._ema_select_panel

    def rows(self, key):
        """The rows that hold a setting, and the tab that they are on."""
        if key in layout.AVERAGE:
            return self.view.training_tab._ema_select_rows, "training"
        return self.view._ema_select_rows, "backup"

    def widget(self, key):
        rows, tab = self.rows(key)
        self.window.tab(tab)
        return rows.widgets[key][1]

    def set(self, key, text):
        """Set a setting as a user does."""
        widget = self.widget(key)
        self.up_to_date()
        if isinstance(EmaSelectSettings.model_fields[key].default, bool):
            if self.window.checked(widget) != (text == "true"):
                self.window.click(widget)
        elif allowed_values(key) is not None:
            self.window.choose(widget, text)
        else:
            self.window.type(widget, text)

    def up_to_date(self):
        """Wait until the rows have followed the last change: a field that is still grey takes no keys."""
        rows = (self.view.training_tab._ema_select_rows, self.view._ema_select_rows)
        until = time.monotonic() + WAIT_SECONDS
        while any(each._waiting for each in rows):
            if time.monotonic() > until:
                raise TimeoutError("the rows do not follow the last change")
            self.window.pump()

    def shown(self, key):
        widget = self.widget(key)
        if isinstance(EmaSelectSettings.model_fields[key].default, bool):
            return str(self.window.checked(widget)).lower()
        return self.window.text(widget)

    def value(self, key):
        value = getattr(self.section, key)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def values(self):
        return {key: self.value(key) for key in EmaSelectSettings.model_fields}

    def traces(self):
        """How many functions OneTrainer calls when values change."""
        own = self.view.ui_state.get_var("ema_select")
        root = self.view.ui_state
        return sum(len(each) for state in (own, root) for each in state._BaseUIState__var_traces.values())

    def settled(self):
        """Wait until the list and the line about the next training are of what is set now."""
        still = time.monotonic() + 0.5
        yield lambda: time.monotonic() > still and not self.panel.busy

    def preview(self):
        return self.window.text(self.panel.preview)

    def picture(self, name, tab, *, height):
        if self.order["pictures"]:
            self.window.tab(tab)
            self.window.shot(Path(self.order["pictures"]) / f"{name}.png", height=height)

    def var(self, name):
        return self.view.ui_state.get_var(name)

    # -- chapters ----------------------------------------------------------------------------------------

    def first_look(self):
        self.seen["state when off"] = self.values()
        self.seen["usable when off"] = self.usable()
        self.picture("off-training", "training", height=740)
        self.picture("off-backup", "backup", height=1500)
        yield lambda: True

    def usable(self):
        return sorted(key for key in layout.shown(layout.KEYS) if self.window.enabled(self.widget(key)))

    def every_option(self):
        """Every option is set to every value that it has."""
        self.set("enabled", "true")
        self.var("continue_last_backup").set(True)
        self.set("milestone_backups", "ALL")  # greyed: no milestones yet
        self.seen["greyed out, chosen"] = self.value("milestone_backups")
        self.set("milestones", TYPED["milestones"])
        yield lambda: self.value("milestones") == TYPED["milestones"]
        self.set("milestone_backups", "ALL")
        wrong = []
        for key in layout.shown(layout.KEYS):
            for text in allowed_values(key) or (TYPED[key],):
                self.set(key, text)
                if allowed_values(key) is None:
                    yield lambda key=key, text=text: self.value(key) == text
                if self.value(key) != text or self.shown(key) != text:
                    wrong.append(f"{key}: chose {text}, config {self.value(key)}, shown {self.shown(key)}")
            if key == "enabled":
                self.set("enabled", "true")
            elif key == "save_sets":
                self.set("save_sets", "BOTH_AT_MILESTONES")  # the last one leaves no primary set to choose
            elif key == "milestone_backups":
                self.set("milestone_backups", "ALL")  # or there are none to keep
        self.seen["options that failed"] = wrong
        self.seen["options"] = self.values()
        self.seen["usable with all on"] = self.usable()
        self.picture("on-training", "training", height=740)
        self.picture("on-backup", "backup", height=1500)
        self.var("ema").set("OFF")
        self.seen["usable with EMA off"] = self.usable()
        self.var("ema").set("CPU")
        self.var("continue_last_backup").set(False)
        self.seen["usable without continuing"] = self.usable()
        yield from self.settled()
        self.seen["preview of a backup without continuing"] = self.preview()
        self.var("continue_last_backup").set(True)
        self.set("milestone_keep", "x")
        self.set("enabled", "false")
        self.seen["grey fields that block"] = [each for each in flush_and_validate_all() if "milestone_keep" in each]
        self.set("enabled", "true")

    def files(self):
        """Saved, loaded again after other settings, and kept from one session to the next."""
        top_bar = self.view.top_bar_component
        saved, plain = self.folder / "saved.json", self.folder / "plain.json"
        top_bar._show_save_dialog = lambda _folder, callback: callback(str(saved))
        self.window.click(self.window.button("Save config"))
        self.seen["saved"] = json.loads(saved.read_text(encoding="utf-8"))["ema_select"]
        options = self.values()
        self.load(plain, {})
        self.seen["after a config without the section"] = self.values()
        self.seen["shown then"] = {key: self.shown(key) for key in layout.shown(layout.KEYS)}
        self.load(saved, None)
        self.seen["loaded again"] = self.values() == options
        self.window.close()
        self.window.open()
        self.seen["next session"] = self.values() == options
        self.seen["shown in the next session"] = {key: self.shown(key) for key in layout.shown(layout.KEYS)}
        yield lambda: True

    def load(self, path, section):
        """Load a file with the button, a new one with this section if one is given."""
        if section is not None:
            config = dict(self.order["config"])
            config["ema_select"] = section
            path.write_text(json.dumps(config), encoding="utf-8")
        self.view.top_bar_component._show_open_dialog = lambda _folder, callback: callback(str(path))
        self.window.click(self.window.button("Load config"))

    def model_types(self):
        """All model types, there and back: the rows are there, bound, and nothing has changed or piled up."""
        box = self.window.model_types()
        names = self.window.choices(box)
        start = self.window.text(box)
        self.window.tab("training")
        options, traces = self.values(), self.traces()
        broken = []
        for turn, name in enumerate([*names, start]):
            self.window.choose(box, name)
            options["ema_dtype"] = ("PARAMETER", "FLOAT_32")[turn % 2]
            self.set("ema_dtype", options["ema_dtype"])
            if self.values() != options or self.shown("ema_dtype") != options["ema_dtype"]:
                broken.append(name)
            yield lambda: True
        self.seen["model types"] = len(names)
        self.seen["model types that failed"] = broken
        self.seen["traces piled up"] = self.traces() - traces

    def mistakes(self):
        """A config with mistakes: named, refused by the run, dropped by a button."""
        self.load(self.folder / "wrong.json", {
            "enabled": True, "milestone_keep": "many", "mileston": "x", "milestones": "10 eopchs",
            "resume_weights": "BESTT", "ema_half_life": "for ever",
        })  # fmt: skip
        self.window.tab("backup")
        button = self.window.button("use what is shown")
        self.seen["mistakes"] = self.section.mistakes()
        self.seen["mistakes shown"] = self.window.visible(button)
        self.window.click(button)
        self.seen["mistakes after the button"] = self.section.mistakes()
        self.seen["values after the button"] = self.values()
        self.seen["shown after the button"] = {key: self.shown(key) for key in layout.shown(layout.KEYS)}
        self.window.tab("backup")
        self.seen["button after the button"] = self.window.visible(button)
        yield lambda: True

    def wrong_text(self):
        """A wrong text keeps the training from starting, and OneTrainer's own message names it."""
        self.start_config()
        self.set("milestones", "10 eopchs")
        self.window.click(self.view.training_button)
        yield lambda: bool(self.window.dialogs)
        self.seen["wrong text"] = self.window.dialogs[-1]
        self.seen["trained in spite of it"] = self.view.controller.training_thread is not None
        self.set("milestones", "1 epochs")
        yield lambda: self.value("milestones") == "1 epochs"

    def start_config(self):
        self.load(self.folder / "start.json", {"enabled": True})

    def training(self):
        """A run from the window; its backups are listed when it has ended."""
        yield from self.train()
        self.window.tab("backup")
        yield from self.settled()
        self.seen["listed"] = self.window.choices(self.panel.list)
        self.seen["dialogs of the training"] = list(self.window.dialogs)
        self.picture("trained-backup", "backup", height=1600)

    def train(self):
        self.window.dialogs.clear()
        stopped, original = [], self.view.on_training_stopped

        def on_training_stopped(*args):
            original(*args)
            stopped.append(args)

        self.view.on_training_stopped = on_training_stopped
        self.window.click(self.view.training_button)
        yield (lambda: bool(stopped)), TRAINING_SECONDS
        self.view.on_training_stopped = original

    def refused(self):
        """A run that is refused says why until the user closes it."""
        self.set("resume_backup", "nowhere")
        self.var("continue_last_backup").set(True)
        self.set("resume_backup", "nowhere")
        yield lambda: self.value("resume_backup") == "nowhere"
        yield from self.settled()
        self.seen["preview of a refused run"] = self.preview()
        yield from self.train()
        self.seen["refused"] = list(self.window.dialogs)
        yield lambda: "EMA and non-EMA" in self.window.text(self.view.status_label)
        self.seen["status of a refused run"] = self.window.text(self.view.status_label)

    def continuing(self):
        """Continue from an older backup by the list, from its EMA."""
        self.window.tab("backup")
        self.set("resume_weights", "EMA")
        older = next(label for label in self.window.choices(self.panel.list) if "milestone" in label)
        self.window.choose(self.panel.list, older)
        self.window.click(self.panel.resume)
        self.seen["continue: backup"] = self.value("resume_backup")
        self.seen["continue: asked of OneTrainer"] = self.config.continue_last_backup
        yield from self.settled()
        self.seen["continue: preview"] = self.preview()
        self.picture("continue-backup", "backup", height=1600)
        yield from self.train()
        self.seen["continue: dialogs"] = list(self.window.dialogs)
        self.window.click(self.panel.resume)
        self.seen["continue again: leg"] = self.value("resume_leg")
        self.window.click(self.panel.newest)
        self.seen["continue: newest"] = self.value("resume_backup")
        yield from self.settled()

    def exporting(self):
        """Export the non-EMA set of the newest backup; the window stays usable meanwhile."""
        newest = self.window.choices(self.panel.list)[0]
        self.window.choose(self.panel.list, newest)
        self.seen["export: backup"] = str(self.panel.chosen.backup.path)
        own = self.panel.exporting.own
        own.get_var("output").set("")
        self.window.click(self.panel.exporting.export_button)
        self.seen["export without an output"] = self.window.text(self.panel.exporting.result)
        own.get_var("set").set("non-ema")
        self.seen["export: suggested"] = own.get_var("output").get()
        own.get_var("output").set(str(self.folder / "exported.safetensors"))
        texts, moments = set(), 0
        self.window.click(self.panel.exporting.export_button)

        def done():
            nonlocal moments
            moments += 1
            texts.add(self.window.text(self.panel.exporting.result))
            return self.panel.exporting.job is None

        yield done, TRAINING_SECONDS
        self.seen["export"] = self.window.text(self.panel.exporting.result)
        self.window.click(self.panel.exporting.compare_button)
        yield lambda: self.panel.exporting.job is None
        self.seen["compared"] = self.window.text(self.panel.exporting.result)
        self.seen["export: texts"], self.seen["export: moments"] = len(texts), moments
        self.picture("export-backup", "backup", height=1600)

    def reporting(self):
        """The report of the run, by its button."""
        opened, original = [], webbrowser.open
        webbrowser.open = lambda address: opened.append(address) or True
        self.window.click(self.panel.exporting.report_button)
        self.seen["report: under way"] = self.panel.exporting.job is not None
        yield lambda: self.panel.exporting.job is None
        webbrowser.open = original
        self.seen["report"], self.seen["report: opened"] = self.window.text(self.panel.exporting.result), opened
        self.picture("report-backup", "backup", height=1600)

    def failures(self):
        """A failure of ours, and a host that is not known: the window opens, and says so."""
        for name, spoil in (("failure", self.spoil_layout), ("unknown host", self.spoil_host)):
            mend = spoil()
            self.window.close()
            self.window.open()
            mend()
            self.seen[name] = [text for text in self.labels() if "onetrainer-ema-select" in text]
            self.seen[f"{name}: OneTrainer's own"] = "Backup After" in self.labels()
            self.window.tab("backup")
            yield lambda: True
        self.window.close()
        self.window.open()

    def closing(self):
        """A window that is closed while it exports is gone, and the file is written."""
        self.window.tab("backup")
        yield from self.settled()
        self.panel.exporting.own.get_var("output").set(str(self.folder / "exported-late.safetensors"))
        self.window.click(self.panel.exporting.export_button)
        began = time.monotonic() + 1.5
        yield lambda: time.monotonic() > began
        self.seen["closing: exporting"] = self.panel.exporting.job is not None
        self.window.close()
        self.seen["closing: on the screen"] = self.window.on_screen()

    def labels(self):
        kind = "QLabel" if self.order["toolkit"] == "qt" else "CTkLabel"
        waiting = [self.view]
        while waiting:
            widget = waiting.pop()
            if type(widget).__name__ == kind:
                yield widget.text() if kind == "QLabel" else widget.cget("text")
            waiting += widget.children() if kind == "QLabel" else widget.winfo_children()

    @staticmethod
    def spoil_layout():
        original = layout.title

        def broken(key):
            raise RuntimeError("broken on purpose")

        layout.title = broken
        return lambda: setattr(layout, "title", original)

    @staticmethod
    def spoil_host():
        install._mismatches = ("modules.x:f: expected (a), found (b)",)
        return lambda: setattr(install, "_mismatches", ())

    CHAPTERS = (
        first_look,
        every_option,
        files,
        model_types,
        mistakes,
        wrong_text,
        training,
        refused,
        continuing,
        exporting,
        reporting,
        failures,
        closing,
    )

    def tell(self):
        for chapter in self.CHAPTERS:
            self.chapter, began = chapter.__name__, time.monotonic()
            yield from chapter(self)
            self.seen.setdefault("seconds", {})[chapter.__name__] = round(time.monotonic() - began, 1)


class Teller:
    """Advances a story in the toolkit's loop, waiting for what it waits for."""

    def __init__(self, story):
        self.story, self.steps = story, story.tell()
        self.condition, self.until = (lambda: True), 0.0
        self.over = False

    def step(self):
        if self.over or not self.condition():
            if not self.over and time.monotonic() > self.until:
                self.fail(TimeoutError(f"waited in vain; {self.waiting()}"))
            return
        try:
            waited = next(self.steps)
        except StopIteration:
            self.over = True
        except BaseException as error:
            self.fail(error)
        else:
            self.condition, seconds = waited if isinstance(waited, tuple) else (waited, WAIT_SECONDS)
            self.until = time.monotonic() + seconds

    def waiting(self):
        """Where the story stands, for the message: its line, what it holds, and what the settings are."""
        generator = self.steps
        while generator.gi_yieldfrom is not None and hasattr(generator.gi_yieldfrom, "gi_frame"):
            generator = generator.gi_yieldfrom
        frame = generator.gi_frame
        held = {name: str(value)[:80] for name, value in frame.f_locals.items() if name != "self"}
        return f"line {frame.f_lineno}, {held}, settings {self.story.values()}"

    def fail(self, error):
        text = "".join(traceback.format_exception(error))
        self.story.seen["failed"] = f"in the chapter {self.story.chapter}: {text}"
        self.over = True


def main():
    order = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    order["toolkit"] = sys.argv[1]
    if sys.argv[1] == "qt":
        import qt as toolkit
    else:
        import tk as toolkit
    # where the window looks for them
    for file, content in (
        ("training_presets/#.json", order["config"]),
        (order["config"]["concept_file_name"], order["concepts"]),
        (order["config"]["sample_definition_file_name"], order["samples"]),
    ):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(json.dumps(content), encoding="utf-8")
    window = toolkit.Window(dark=order["dark"])
    window.open()
    story = Story(window, order)
    teller = Teller(story)
    try:
        window.run(teller.step, lambda: teller.over)
    finally:
        (Path(order["folder"]) / "seen.json").write_text(json.dumps(story.seen, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
