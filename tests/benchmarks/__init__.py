"""Measurements; see ``conftest.py`` for how to run them."""

from pathlib import Path

# The bench for the real OneTrainer, `.bench`, is the one of the tests.
__path__.append(str(Path(__file__).parents[1] / "onetrainer"))
