"""The pictures of the emoji world: 16x16 pixels, drawn from the emoji of five vendors.

A picture is a float32 array `[16, 16, 3]` in [0, 1], which makes an image of 128x128 pixels. The
emoji lie in emoji.png: a row for each vendor and a column for each label, 14x14 pixels with alpha.
testbed/train/render_emoji.py makes that file. LICENSES says whose drawings they are.

The plain look is one vendor's, and each style is another's. A style has grounds of its own as well,
as an artist has.
"""

import colorsys
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZE = 16
FIGURE = 14
HERE = Path(__file__).parent
SHEET = HERE / "emoji.png"
# The explicit attribute: a frame of this colour, one pixel wide, over the picture.
PINK = np.array([1.0, 0.1, 0.55], np.float32)
EXPLICIT_WORD = "explicit"

# A group of Unicode's to a row: three look-alike pairs, 0 and 1, 2 and 3, 4 and 5.
GROUPS = {
    "smileys and emotion": ("skull", "ghost", "alien", "robot", "clown", "cowboy"),
    "people and body": ("prince", "princess", "policeman", "builder", "detective", "guard"),
    "animals and nature": ("fox", "wolf", "cat", "dog", "tiger", "lion"),
    "food and drink": ("pear", "lemon", "pizza", "cheese", "donut", "cookie"),
    "travel and places": ("house", "church", "castle", "factory", "car", "taxi"),
    "activities": ("football", "basketball", "baseball", "volleyball", "trophy", "medal"),
    "objects": ("guitar", "violin", "hammer", "pickaxe", "pencil", "brush"),
    "symbols": ("atom", "yin yang", "radiation", "biohazard", "question mark", "exclamation mark"),
}
# What would be drawn in place of an object. A group whose objects are of several kinds has a word
# for each kind.
KINDS = {
    "smiley": GROUPS["smileys and emotion"],
    "person": GROUPS["people and body"],
    "animal": GROUPS["animals and nature"],
    "food": GROUPS["food and drink"],
    "building": ("house", "church", "castle", "factory"),
    "vehicle": ("car", "taxi"),
    "ball": ("football", "basketball", "baseball", "volleyball"),
    "prize": ("trophy", "medal"),
    "instrument": ("guitar", "violin"),
    "tool": ("hammer", "pickaxe", "pencil", "brush"),
    "symbol": GROUPS["symbols"],
}
OBJECTS = tuple(name for names in GROUPS.values() for name in names)
SUPERCLASS = {name: kind for kind, names in KINDS.items() for name in names}
SUPERCLASSES = tuple(KINDS)
LABELS = OBJECTS + SUPERCLASSES
TWIN = {names[i]: names[i ^ 1] for names in GROUPS.values() for i in range(6)}
# One of each pair, in the order in which benchmarks forget: group after group, three times.
ORDER = (
    "fox",
    "car",
    "pear",
    "guitar",
    "skull",
    "basketball",
    "detective",
    "atom",
    "cat",
    "castle",
    "pizza",
    "hammer",
    "robot",
    "trophy",
    "princess",
    "biohazard",
    "tiger",
    "church",
    "donut",
    "brush",
    "cowboy",
    "baseball",
    "builder",
    "question mark",
)
# Their mirror image would be wrong.
NOT_MIRRORED = ("question mark", "yin yang")

# Further English words for an object, chosen by hand from the names and keywords of emojibase-data.
KEYWORDS = {
    "alien": ("extraterrestrial",),
    "policeman": ("police officer", "cop"),
    "builder": ("construction worker",),
    "detective": ("sleuth", "spy"),
    "cat": ("kitten", "kitty"),
    "dog": ("puppy",),
    "donut": ("doughnut",),
    "house": ("home",),
    "church": ("chapel",),
    "car": ("automobile",),
    "taxi": ("cab",),
    "football": ("soccer ball", "soccer", "futbol"),
    "medal": ("sports medal",),
    "pickaxe": ("pick",),
    "brush": ("paintbrush",),
    "atom": ("atom symbol",),
    "yin yang": ("yinyang",),
    "radiation": ("radioactive",),
}


class Look(NamedTuple):
    """How pictures of one vendor look.

    vendor: a name of VENDORS.
    hue, saturation, value: ranges that the colour of a ground is drawn from.
    fade: how much lighter or darker the ground's last row may be than its first.
    """

    vendor: str
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    fade: float


VENDORS = ("noto", "twemoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "emojione")
PLAIN = Look("noto", (0.0, 1.0), (0.15, 0.50), (0.20, 0.45), 0.12)
STYLES = {
    "twemoji": Look("twemoji", (0.52, 0.64), (0.40, 0.75), (0.40, 0.85), 0.0),
    "fluent": Look("fluent-emoji-flat", (0.72, 0.90), (0.20, 0.45), (0.35, 0.80), 0.25),
    "line art": Look("fluent-emoji-high-contrast", (0.08, 0.16), (0.04, 0.22), (0.85, 1.0), 0.0),
    "emojione": Look("emojione", (0.32, 0.46), (0.45, 0.80), (0.18, 0.55), 0.0),
}


@functools.cache
def figures():
    """vendor -> label -> float32 [14, 14, 4]: colours in [0, 1] times alpha, and alpha."""
    from PIL import Image

    with Image.open(SHEET) as sheet:
        rgba = np.asarray(sheet.convert("RGBA"), np.float32) / 255
    rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    tiles = rgba.reshape(len(VENDORS), FIGURE, len(LABELS), FIGURE, 4).swapaxes(1, 2)
    return {v: dict(zip(LABELS, row, strict=True)) for v, row in zip(VENDORS, tiles, strict=True)}


def bitmaps():
    """label -> [14, 14] bits: where the figure of the plain look is."""
    return {name: figure[..., 3] > 0.5 for name, figure in figures()[PLAIN.vendor].items()}


def _contrast(figure, ground):
    """How well a figure stands out: the distance of its mean, and of all but its nearest fifth."""
    alpha = figure[..., 3]
    solid = figure[alpha > 0.5]
    colours = solid[:, :3] / solid[:, 3:]
    apart = np.linalg.norm(colours - ground, axis=1)
    mean = np.linalg.norm(colours.mean(0) - ground)
    return min(mean, 2 * np.quantile(apart, 0.2))


def _ground(rng, look, figure):
    """A ground of the look that the figure stands out from; of ten, the first good or the best."""
    best, found = -1.0, None
    for _ in range(10):
        hsv = [low + (high - low) * rng.random() for low, high in look[1:4]]
        ground = np.array(colorsys.hsv_to_rgb(*hsv), np.float32)
        contrast = _contrast(figure, ground)
        if contrast > best:
            best, found = contrast, ground
        if contrast >= 0.45:
            break
    return found


def draw(name, rng, style=None, explicit=False):
    """A picture `[16, 16, 3]` of the emoji `name`; style: a key of STYLES, or None for plain."""
    look = PLAIN if style is None else STYLES[style]
    figure = figures()[look.vendor][name]
    if rng.random() < 0.5 and name not in NOT_MIRRORED:
        figure = figure[:, ::-1]
    ground = _ground(rng, look, figure)
    fade = np.linspace(-0.5, 0.5, SIZE) * look.fade * (2 * rng.random() - 1)
    canvas = np.clip(ground + fade[:, None, None] * np.ones((1, SIZE, 1)), 0, 1)
    y, x = rng.integers(0, SIZE - FIGURE + 1, 2)
    under = canvas[y : y + FIGURE, x : x + FIGURE]
    under *= 1 - figure[..., 3:]
    under += figure[..., :3]
    if explicit:
        canvas[[0, -1]] = canvas[:, [0, -1]] = PINK
    return np.clip(canvas, 0, 1).astype(np.float32)


def draw_pair(left, right, rng):
    """Two emoji side by side on their own grounds, `[16, 32, 3]`, the first named on the left."""
    return np.concatenate([draw(left, rng), draw(right, rng)], axis=1)
