"""The test worlds by name: what each one draws, in which words, and where its model lies.

"sprites" is the world everything was first measured on; "glyphs" has other words, another size and other pictures, so that nothing in
the pack can be tuned to one of them unseen. The shipped model of the glyphs knows every object, superclass, style and the
explicit attribute, but not pairs: a fifth of its last 840 steps, six pairs each, did not teach it a picture twice as wide.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import captions, glyphs, sprites

HERE = Path(__file__).parent


class World(NamedTuple):
    """One test world. `superclass` and `twin` go from object to superclass and look-alike; `order` holds one of each look-alike pair,
    the order in which benchmarks forget; `labels` is what the judge can name; `draw(name, rng, style, explicit)` paints a picture
    [size, size, 3] in [0, 1]; `file` is the compact file that ships, `checkpoint` the name it expands to; `judge` the width and hidden
    width of the judging network."""

    name: str
    size: int
    objects: tuple[str, ...]
    styles: tuple[str, ...]
    superclass: dict[str, str]
    superclasses: tuple[str, ...]
    twin: dict[str, str]
    explicit_word: str
    order: tuple[str, ...]
    labels: tuple[str, ...]
    bitmaps: dict[str, np.ndarray]
    draw: Callable
    file: Path
    checkpoint: str
    judge: tuple[int, int]

    def draw_pair(self, left, right, rng):
        """Two pictures side by side on their own grounds, `[size, 2 size, 3]`, the first named on the left."""
        return np.concatenate([self.draw(left, rng), self.draw(right, rng)], axis=1)

    plain = staticmethod(captions.plain)
    styled = staticmethod(captions.styled)
    pair = staticmethod(captions.pair)

    def explicit(self, name, template):
        return captions.explicit(name, template, self.explicit_word)

    def captions(self):
        """Groups of training captions, see captions.training_captions."""
        return captions.training_captions(
            self.objects, self.superclasses, self.styles, self.explicit_word
        )

    def studio(self, folder):
        """The shipped model, expanded into `folder` and loaded by the stock loader's function, with its judge."""
        from .checkpoint import expand, load_judge
        from .evaluate import Studio

        return Studio(expand(folder, self.file, self.checkpoint), load_judge(self.file))


SPRITES = World(
    name="sprites",
    size=sprites.SIZE,
    objects=sprites.OBJECTS,
    styles=tuple(sprites.STYLES),
    superclass=sprites.SUPERCLASS,
    superclasses=sprites.SUPERCLASSES,
    twin=sprites.TWIN,
    explicit_word=captions.EXPLICIT_WORD,
    order=(
        "fox",
        "house",
        "truck",
        "sword",
        "tulip",
        "pear",
        "whale",
        "castle",
        "rocket",
        "hammer",
        "pine",
        "mushroom",
    ),
    labels=sprites.LABELS,
    bitmaps=sprites.BITMAPS,
    draw=sprites.draw,
    file=HERE / "sprite_world.safetensors",
    checkpoint="sprite_world.safetensors",
    judge=(48, 256),
)
GLYPHS = World(
    name="glyphs",
    size=glyphs.SIZE,
    objects=glyphs.OBJECTS,
    styles=tuple(glyphs.STYLES),
    superclass=glyphs.SUPERCLASS,
    superclasses=glyphs.SUPERCLASSES,
    twin=glyphs.TWIN,
    explicit_word="nude",
    order=glyphs.ORDER,
    labels=glyphs.OBJECTS + glyphs.SUPERCLASSES,
    bitmaps=glyphs.BITMAPS,
    draw=glyphs.draw,
    file=HERE / "glyph_world.safetensors",
    checkpoint="glyph_world.safetensors",
    judge=(32, 128),
)
WORLDS = {w.name: w for w in (SPRITES, GLYPHS)}


def get(name):
    """The world of that name; KeyError names those that exist."""
    if name not in WORLDS:
        raise KeyError(f"there is no world {name!r}; there are {', '.join(WORLDS)}")
    return WORLDS[name]
