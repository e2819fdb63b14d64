"""Trains the models of the worlds."""
