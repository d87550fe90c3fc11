"""Drives OneTrainer's Qt window by clicks and keys, offscreen."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import matplotlib.pyplot  # noqa: F401 - before PySide6, as OneTrainer's own script does
import pydantic._internal._validators  # noqa: F401
from modules.ui.PySide6TrainUIView import PySide6TrainView
from modules.util.ui.pyside6_util import create_application
from PySide6.QtCore import QEvent, QPoint, Qt, QTimer
from PySide6.QtGui import QColor, QPalette
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QComboBox, QMessageBox, QPushButton


class Window:
    """The window and the user in front of it."""

    def __init__(self, *, dark=False):
        self.app = QApplication.instance() or create_application()
        self.app.setQuitOnLastWindowClosed(False)
        if dark:  # OneTrainer itself asks Qt for light colours
            palette = QPalette(QColor("#353535"))
            palette.setColor(QPalette.ColorRole.Base, QColor("#252525"))
            self.app.setPalette(palette)
        self.dialogs = []
        for name in ("critical", "warning", "information"):
            setattr(QMessageBox, name, lambda _parent, title, text, *_: self.dialogs.append((title, text)))
        self.view = None

    def open(self):
        self.view = PySide6TrainView()
        self.view.resize(1100, 740)
        self.view.show()
        self.pump()

    def run(self, step, done):
        """Call ``step`` again and again in the toolkit's own loop until ``done``."""
        timer = QTimer()

        def tick():
            step()
            if done():
                timer.stop()
                self.app.quit()

        timer.timeout.connect(tick)
        timer.start(20)
        self.app.exec()

    def pump(self):
        for _ in range(3):
            self.app.processEvents()
            self.app.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)

    def close(self):
        self.view.close()
        self.pump()

    def on_screen(self):
        return self.view.isVisible()

    def tab(self, name):
        self.view.tabview.setCurrentWidget(self.view._tab_widgets[name])
        self.pump()

    def click(self, widget):
        widget.setFocus()
        place = widget.rect().center() if isinstance(widget, QPushButton) else QPoint(8, widget.height() // 2)
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton, pos=place)
        self.pump()

    def choose(self, widget, text):
        missing = widget.findText(text) - widget.currentIndex()
        for _ in range(abs(missing)):
            QTest.keyClick(widget, Qt.Key.Key_Down if missing > 0 else Qt.Key.Key_Up)
        self.pump()

    def type(self, widget, text):
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton)
        QTest.keyClick(widget, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        QTest.keyClick(widget, Qt.Key.Key_Delete)
        QTest.keyClicks(widget, text)
        QTest.keyClick(widget, Qt.Key.Key_Return)
        self.pump()

    def enabled(self, widget):
        return widget.isEnabled()

    def visible(self, widget):
        return not widget.isHidden()

    def text(self, widget):
        return widget.currentText() if isinstance(widget, QComboBox) else widget.text()

    def checked(self, widget):
        return widget.isChecked()

    def choices(self, widget):
        return [widget.itemText(index) for index in range(widget.count())]

    def button(self, text):
        return next(each for each in self.view.findChildren(QPushButton) if each.text() == text)

    def model_types(self):
        return self.view.top_bar_component.frame.findChildren(QComboBox)[0]

    def shot(self, path, *, height):
        self.view.resize(1100, height)
        self.pump()
        self.view.grab().save(str(path))
        self.view.resize(1100, 740)
