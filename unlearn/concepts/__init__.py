"""Forget and keep lists: their notation, files, presets and name variants, and the sentences."""

from pathlib import Path

DATA = Path(__file__).parents[2] / "nodes" / "data"
"""The folder of the presets and word lists that come with the pack."""
