"""Drives OneTrainer's Tk window by clicks and keys, on the display that DISPLAY names."""

from __future__ import annotations

import subprocess
import time
from tkinter import messagebox

import customtkinter
from modules.ui.CtkTrainUIView import CtkTrainUIView

KEYSYMS = {" ": "space", ",": "comma", "%": "percent", ".": "period", "-": "minus", "_": "underscore", "/": "slash"}

TRIES = 5


class Window:
    """The window and the user in front of it."""

    def __init__(self, *, dark=False):
        if dark:
            customtkinter.AppearanceModeTracker.detect_appearance_mode = staticmethod(lambda: 1)
        self.dialogs = []
        for name in ("showerror", "showwarning", "showinfo"):
            setattr(messagebox, name, lambda title, text, **_: self.dialogs.append((title, text)))
        self.view = None

    def open(self):
        if self.view is not None:
            self.view.destroy()
        self.view = CtkTrainUIView()
        self.view.geometry("1100x1500")
        self.pump()

    def run(self, step, done):
        """Call ``step`` again and again in the toolkit's own loop until ``done``."""

        def tick():
            step()
            if done():
                self.view.quit()
            else:
                self.view.after(20, tick)

        self.view.after(20, tick)
        while not done():  # closing the window ends the loop too
            self.view.mainloop()

    def pump(self):
        for _ in range(3):
            self.view.update()

    def close(self):
        self.view.tk.call(self.view.protocol("WM_DELETE_WINDOW"))  # what the window manager calls

    def on_screen(self):
        return self.view.state() != "withdrawn"

    def tab(self, name):
        self.view.tabview.set(name)
        self.pump()

    def click(self, widget):
        # what the user sees of customtkinter's widgets is a canvas
        widget._canvas.event_generate("<Button-1>", x=5, y=5)
        self.pump()

    def choose(self, widget, text):
        if widget.cget("state") != "disabled":
            widget._dropdown_menu.invoke(self.choices(widget).index(text))
        self.pump()

    def type(self, widget, text):
        entry = widget._entry
        entry.event_generate("<Button-1>", x=2, y=2)
        for _ in range(TRIES):
            self.focus(entry)
            entry.event_generate("<<SelectAll>>")
            entry.event_generate("<KeyPress>", keysym="Delete")
            for letter in text:
                entry.event_generate("<KeyPress>", keysym=KEYSYMS.get(letter, letter))
            if entry.get() == text or entry.cget("state") == "disabled":
                break
        entry.event_generate("<KeyPress>", keysym="Return")
        self.pump()

    def focus(self, entry):
        """Give a field the keys. There is no window manager, and the display may be slow to hand them over."""
        until = time.monotonic() + 5
        entry.focus_force()
        while self.view.focus_get() is not entry and time.monotonic() < until:
            time.sleep(0.01)
            self.pump()

    def enabled(self, widget):
        if type(widget).__name__ == "CTkLabel":
            grey = getattr(widget, "_ema_select_text_color", None)
            return grey is None or widget.cget("text_color") == grey
        return widget.cget("state") != "disabled"

    def visible(self, widget):
        return bool(widget.winfo_manager())

    def text(self, widget):
        return widget.get() if hasattr(widget, "get") else widget.cget("text")

    def checked(self, widget):
        return bool(widget.get())

    def choices(self, widget):
        return list(widget.cget("values"))

    def button(self, text):
        return next(each for each in self.widgets(customtkinter.CTkButton) if each.cget("text") == text)

    def widgets(self, kind):
        waiting = [self.view]
        while waiting:
            widget = waiting.pop()
            if isinstance(widget, kind):
                yield widget
            waiting += widget.winfo_children()

    def model_types(self):
        frame = self.view.top_bar_component.frame
        return next(each for each in frame.winfo_children() if isinstance(each, customtkinter.CTkOptionMenu))

    def shot(self, path, *, height):
        self.view.geometry(f"1100x{height}")
        for _ in range(10):
            self.view.update()
            time.sleep(0.03)
        subprocess.run(["import", "-window", "root", "-crop", f"1100x{height}+0+0", str(path)], check=True)
