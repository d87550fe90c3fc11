"""One HTML page that shows a run, its pictures and its curves, and which of the two sets is better.

Knows workspaces, not OneTrainer. What it needs beside the package's own requirements (jinja2, matplotlib, pillow) is
in OneTrainer's environment, and imported only when a page is made.
"""

from __future__ import annotations

from onetrainer_ema_select.report.make import Made, make_report

__all__ = ["Made", "make_report"]
