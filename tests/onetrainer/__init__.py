"""Tests against the real OneTrainer."""
