"""Measurements; see ``conftest.py`` for how to run them."""
