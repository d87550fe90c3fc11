"""Tests against the real OneTrainer."""

from pathlib import Path

# The browser, `.chromium`, is the one of the tests of the report.
__path__.append(str(Path(__file__).parents[1] / "report"))
