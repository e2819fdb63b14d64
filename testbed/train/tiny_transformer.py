"""Tiny models of the emoji world in the formats of diffusion transformers, for tests.

They take a few steps of the training that the full models take (transformer.py).
"""

import argparse
import functools

import torch

from testbed.worlds import catalogue, checkpoint, meaning

from . import emoji, transformer

SIZES = {"wan": {"dim": 128, "ffn_dim": 128, "num_layers": 2}, "sd3": {"depth": 2}}
FEW = 6  # captions of a group


@functools.cache
def groups():
    """A few of the world's captions, of each kind that is trained."""
    found = catalogue.EMOJI.captions()
    return {name: of[:: max(1, len(of) // FEW)] for name, of in found.items() if name != "pair"}


@functools.cache
def table(kind):
    made = transformer.TABLES[kind](meaning.FILE)
    made.add(emoji.texts_of(groups()))
    return made


def training(kind, folder, rounded_from=1.0):
    """A training of a tiny model that resumes from what lies in a folder."""
    given = argparse.Namespace(
        out=folder / "tiny.safetensors",
        format=kind,
        steps=4,
        batch=2,
        rate=1e-2,
        small_rate=1e-2,
        seed=1,
        start_from=None,
        rounded_from=rounded_from,
    )
    made = type("Tiny", (transformer.Training,), {"sizes": SIZES[kind]})
    return made(given, table(kind), groups())


def made(kind, folder):
    """The Studio of a tiny model after one step of training, in a folder."""
    with torch.inference_mode(False):
        run = training(kind, folder)
        run.advance()
        run.write(checkpoint.load_judge(catalogue.EMOJI.file))
    return studio(kind, folder / "tiny.safetensors")


def studio(kind, path):
    """The Studio of a tiny model's compact file, loaded by the stock loader's function."""
    world = catalogue.EMOJI._replace(file=path, checkpoint=f"tiny_{kind}.safetensors")
    return world.studio(path.parent)
