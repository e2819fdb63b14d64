"""Sculpting Memory: a moving part of the attention weights is trained."""
