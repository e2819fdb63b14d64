"""Two attacks of `dev.py bench revival` on what a peer has made, with the object's pictures."""

from ..revival import attacks
from ..revival.subjects import Subject

BATCH = 16  # pictures in a step of textual inversion


def _given(world, name, pictures, steps):
    subject = Subject("object", name, (name,), world.superclass[name])
    return subject, attacks.Budget(pictures, steps, batch=BATCH)


def inversion(studio, world, name, erased, training, pictures, steps):
    """Hits among `pictures` drawn with the embedding learned in `training` steps.

    The embedding is read by the CLIP that belongs to the method.
    """
    subject, budget = _given(world, name, pictures, steps)
    return attacks.inversion(studio, world, subject, erased, budget, training=training)


def rece(studio, world, name, erased, pictures, steps):
    """Hits among `pictures` drawn with the reviving states of sentences with the object."""
    subject, budget = _given(world, name, pictures, steps)
    return attacks.rece(studio, world, subject, erased, budget)
