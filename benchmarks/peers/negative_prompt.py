"""The names of the concepts as the negative prompt. It edits nothing, and it needs guidance."""

from . import Erased

NAME = "negative prompt"


def names(concepts):
    """Every name of a ConceptSet, side by side."""
    return ", ".join(name for c in concepts.concepts for name in c.names)


def erase(model, clip, concepts, seed=0, size=64):
    return Erased(model, 0, negative=names(concepts))
