"""The test worlds by name: what each one draws, in which words, and where its model lies.

Everything was first measured on "sprites". "glyphs" has other words, another size and other
pictures, so that a setting tuned on one world can be checked on the other. The shipped model of the
glyphs draws every object, superclass, style and the explicit attribute, but not pairs: it was
trained on pairs for too few steps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from . import captions, emoji, glyphs, sprites

HERE = Path(__file__).parent


class World(NamedTuple):
    """One test world.

    superclass, twin: object -> its superclass, its look-alike.
    order: one object of each look-alike pair, in the order in which benchmarks forget.
    labels: what the judge can name.
    draw: `draw(name, rng, style, explicit)` paints a picture [size, size, 3] in [0, 1].
    file, checkpoint: the compact file that ships, and the name of the checkpoint made from it.
    judge: width and hidden width of the judging network.
    keywords: object -> other words for it, where words mean something to the text encoder.
    draws_pairs: whether the model was trained on pairs of objects.
    """

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
    keywords: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    draws_pairs: bool = True

    def draw_pair(self, left, right, rng):
        """Two pictures side by side, each on its own ground: `[size, 2 size, 3]`."""
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

    def expand(self, folder):
        """Path of the shipped model's checkpoint in `folder`, made if it is not there."""
        from .checkpoint import expand

        return expand(folder, self.file, self.checkpoint)

    def studio(self, folder, clip_skip=None):
        """The shipped model, expanded into `folder` and loaded as ComfyUI does, with its judge.

        clip_skip: which of the text encoder's last layers is read; None is the model's usual one.
        """
        from .checkpoint import load_judge
        from .evaluate import Studio

        return Studio(self.expand(folder), load_judge(self.file), clip_skip)


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
EMOJI = World(
    name="emoji",
    size=emoji.SIZE,
    objects=emoji.OBJECTS,
    styles=tuple(emoji.STYLES),
    superclass=emoji.SUPERCLASS,
    superclasses=emoji.SUPERCLASSES,
    twin=emoji.TWIN,
    explicit_word=emoji.EXPLICIT_WORD,
    order=emoji.ORDER,
    labels=emoji.LABELS,
    bitmaps=emoji.bitmaps(),
    draw=emoji.draw,
    file=HERE / "emoji_world.safetensors",
    checkpoint="emoji_world.safetensors",
    judge=(40, 160),
    keywords=MappingProxyType(emoji.KEYWORDS),
)
EMOJI_XL = EMOJI._replace(
    name="emoji_xl",
    file=HERE / "emoji_xl_world.safetensors",
    checkpoint="emoji_xl_world.safetensors",
    draws_pairs=False,
)
EMOJI_WAN, EMOJI_SD3 = (
    EMOJI._replace(
        name=f"emoji_{family}",
        file=HERE / f"emoji_{family}_world.safetensors",
        checkpoint=f"emoji_{family}_world.safetensors",
    )
    for family in ("wan", "sd3")
)
TRANSFORMERS = (EMOJI_WAN, EMOJI_SD3)
"""The emoji world's models in the formats of diffusion transformers, trained or not."""
WORLDS = {w.name: w for w in (SPRITES, GLYPHS, EMOJI)}
UNETS = {**WORLDS, EMOJI_XL.name: EMOJI_XL}
MODELS = UNETS | {w.name: w for w in TRANSFORMERS if w.file.exists()}
"""Every model that ships: one for each world, and the emoji world's in other formats."""


def get(name):
    """The world of that model; KeyError names the models that exist."""
    if name not in MODELS:
        raise KeyError(f"there is no world {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
