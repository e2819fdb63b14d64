"""The pictures of the glyph world: 12x12 emblems, mirrored left to right, drawn from a seed.

A picture is a float32 array `[12, 12, 3]` in [0, 1], which makes an image of 96x96 pixels. An
emblem is where a smooth random field is above its median. The look-alike of an emblem comes from
the same field with one bump, which changes 10 to 14 of its pixels.
"""

import numpy as np

from .sprites import random_colours

SIZE = 12
SEED = 1
# The explicit attribute: a stripe of this colour along the bottom.
GREEN = np.array([0.1, 0.95, 0.25], np.float32)
TWINS_DIFFER = (10, 14)  # pixels
APART = 36  # pixels between any two emblems that are not look-alikes

# Two look-alike pairs to a superclass: 0 and 1, 2 and 3.
GROUPS = {
    "mammal": ("dog", "wolf", "horse", "zebra"),
    "bird": ("owl", "eagle", "duck", "swan"),
    "furniture": ("chair", "bench", "lamp", "clock"),
    "instrument": ("violin", "guitar", "drum", "piano"),
}
SUPERCLASS = {name: group for group, names in GROUPS.items() for name in names}
OBJECTS = tuple(SUPERCLASS)
SUPERCLASSES = tuple(GROUPS)
TWIN = {names[i]: names[i ^ 1] for names in GROUPS.values() for i in range(4)}
ORDER = ("wolf", "owl", "chair", "guitar", "zebra", "duck", "clock", "drum")  # one of each pair


def _field(rng):
    """[10, 5]: smooth noise, the left half of an emblem."""
    field = np.pad(rng.random((10, 5)), 1, mode="reflect")
    for axis in (0, 1):
        field = (np.roll(field, 1, axis) + 2 * field + np.roll(field, -1, axis)) / 4
    return field[1:-1, 1:-1]


def _emblem(field, level):
    """[12, 12] bits: where the field is above its level, mirrored, within a margin of one pixel."""
    half = field > level
    return np.pad(np.concatenate([half, half[:, ::-1]], 1), 1)


def _bitmaps(seed):
    """name -> [12, 12] bits of every object and superclass."""
    rng, found = np.random.default_rng(seed), {}
    y, x = np.mgrid[0:10, 0:5]

    def far(new):
        return all((new ^ old).sum() >= APART for old in found.values())

    wanted = [(names[i], names[i + 1]) for names in GROUPS.values() for i in (0, 2)] + [
        (name,) for name in SUPERCLASSES
    ]
    while wanted:
        field = _field(rng)
        level = np.median(field)
        # a swelling or a dent, above the rows that the stripe covers
        bump = np.exp(
            -((y - 1 - 7 * rng.random()) ** 2 + (x - 5 * rng.random()) ** 2) / 3
        ) * np.where(y < 9, 1, 0)
        changed = field + (rng.random() - 0.5) * 0.6 * bump
        drawn = [_emblem(f, level) for f in (field, changed)][: len(wanted[0])]
        differ = (drawn[0] ^ drawn[-1]).sum()
        if all(far(d) for d in drawn) and (
            len(drawn) == 1 or TWINS_DIFFER[0] <= differ <= TWINS_DIFFER[1]
        ):
            found |= dict(zip(wanted.pop(0), drawn, strict=True))
    return found


BITMAPS = _bitmaps(SEED)

_y, _x = np.mgrid[0:SIZE, 0:SIZE]
# A style is a palette (figure, ground, second ground) and where the second ground is. The figure is
# always the lightest.
STYLES = {
    "rembrandt": (
        (0.95, 0.75, 0.40),
        (0.12, 0.07, 0.03),
        (0.42, 0.24, 0.08),
        (_y - 5.5) ** 2 + (_x - 5.5) ** 2 < 27,
    ),
    "kandinsky": (
        (1.00, 0.95, 0.35),
        (0.75, 0.08, 0.15),
        (0.10, 0.15, 0.65),
        (_x // 3 + _y // 3) % 2 == 0,
    ),
    "banksy": (
        (0.97, 0.97, 0.97),
        (0.18, 0.18, 0.20),
        (0.42, 0.42, 0.44),
        (_y % 3 == 2) | ((_x + _y // 3 * 2) % 4 == 0),
    ),
    "dali": ((0.75, 0.95, 1.00), (0.10, 0.40, 0.45), (0.62, 0.35, 0.10), (_x + 2 * _y) % 6 < 3),
}


def draw(name, rng, style=None, explicit=False):
    """A picture `[12, 12, 3]` of the emblem `name`; style: a key of STYLES, or None for random."""
    if style is None:
        figure, ground = random_colours(rng)
        canvas = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    else:
        figure, ground, second, where = (np.asarray(v, np.float32) for v in STYLES[style])
        canvas = np.where(where[..., None] > 0, second, ground)
        canvas = np.clip(canvas + rng.normal(0, 0.02, (1, 1, 3)), 0, 1)
    canvas[BITMAPS[name]] = figure
    if explicit:
        canvas[-2:] = GREEN
    return canvas.astype(np.float32)
