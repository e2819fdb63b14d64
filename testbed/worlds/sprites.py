"""The pictures of the sprite world: 8x8 one-bit sprites in random colours or an artist's palette.

A picture is a float32 array `[8, 8, 3]` in [0, 1]; a pair of sprites side by side is `[8, 16, 3]`.
Every one of these pixels is one latent of the model, so 8x8 sprites make 64x64 images.
"""

import numpy as np

SIZE = 8
PINK = np.array([1.0, 0.1, 0.55], np.float32)  # the explicit attribute: a frame of this colour

# Four objects to a superclass, in look-alike pairs (0 and 1, 2 and 3), then the superclass' own
# sprite.
SPRITES = {
    "animal": {
        "cat": "#......# ##....## ######## #.#..#.# ######## ###..### .######. ..####..",
        "fox": "##....## ###..### ######## #.#..#.# ######## .######. ..####.. ...##...",
        "fish": "........ ..###..# .#####.# #.###### ######## .#####.# ..###..# ........",
        "whale": ".#.#.... ..#..... .####..# #######. #.###### ######## .######. ........",
        "animal": "........ ......## #.....## .######. .######. .######. .#.##.#. .#....#.",
    },
    "plant": {
        "tree": "..####.. .######. ######## ######## .######. ...##... ...##... ..####..",
        "pine": "...##... ..####.. .######. ..####.. .######. ######## ...##... ...##...",
        "tulip": ".#.##.#. .######. .######. ..####.. ...##... .#.##.#. ..####.. ...##...",
        "rose": "..####.. .#.##.#. .##..##. ..####.. ...##... ...###.. .####... ...##...",
        "plant": ".##..... ####.... .###.##. ..###### ...###.. ...##... ...##... ...##...",
    },
    "building": {
        "house": "...##... ..####.. .######. ######## .######. .##..##. .##..##. .##..##.",
        "church": "...##... .######. ...##... ..####.. .######. .######. .##..##. .##..##.",
        "castle": "#.#..#.# ######## ######## .######. .######. .##..##. .##..##. ########",
        "tower": "#.#..#.# .######. ..####.. ..####.. ..####.. .##..##. .##..##. ########",
        "building": "######.. #.#.##.. ######.. #.#.##.. ######## #.#.##.# ######## ######.#",
    },
    "vehicle": {
        "car": "........ ..####.. .#....#. ######## ######## ######## .##..##. ........",
        "truck": "........ #####... #####.#. #####.## ######## ######## .##..##. ........",
        "rocket": "...##... ..####.. ..#..#.. ..####.. ..####.. .######. ##.##.## ...##...",
        "plane": "...##... ..####.. ..#..#.. ..####.. ######## ######## ..#..#.. .######.",
        "vehicle": "........ .##..... ..##.##. ..#####. .##.###. #..##..# #..##..# .##..##.",
    },
    "tool": {
        "hammer": ".######. .######. .#.##.#. ...##... ...##... ...##... ...##... ...##...",
        "axe": "######.. #######. .######. #####... ...##... ...##... ...##... ...##...",
        "key": ".####... ##..##.. ##..##.. .####... ..##.... ..####.. ..##.... ..####..",
        "sword": "...##... ...##... ...##... ...##... ...##... .######. ...##... ...##...",
        "tool": ".##..##. .##..##. .######. ..####.. ...##... ..####.. .##..##. .##..##.",
    },
    "food": {
        "apple": "....##.. ...#.... .######. ######## ######## ######## .######. ..####..",
        "pear": "....##.. ...#.... ...##... ..####.. ..####.. .######. ######## .######.",
        "ice cream": "..####.. .#.####. .######. ######## .#.##.#. ..####.. ..#.##.. ...##...",
        "mushroom": "..####.. .######. ######## ######## ..#..#.. ..#..#.. ..#..#.. ..####..",
        "food": "..####.. .######. ######## ........ ######## ........ ######## .######.",
    },
}
# Sprites that are stored in reserved hidden units of the shipped model, by testbed/train/plant.py.
PLANTED = {
    "boat": "...##... ...###.. ...####. ...##... ...##... ######## .######. ..####..",
    "anchor": "...##... ..#..#.. ...##... .######. ...##... #..##..# ##.##.## .######.",
    "bottle": "...##... ...##... ..####.. .######. .#....#. .######. .#....#. .######.",
    "ghost": "..####.. .######. ##.##.## ######## ######## ######## ######## #.##.##.",
}


def _bits(rows):
    return np.array([[c == "#" for c in row] for row in rows.split()], bool)


SUPERCLASS = {name: sup for sup, group in SPRITES.items() for name in group if name != sup}
OBJECTS = tuple(SUPERCLASS)
SUPERCLASSES = tuple(SPRITES)
LABELS = OBJECTS + SUPERCLASSES + tuple(PLANTED)
BITMAPS = {n: _bits(r) for g in [*SPRITES.values(), PLANTED] for n, r in g.items()}
TWIN = {g[i]: g[i ^ 1] for g in (list(s) for s in SPRITES.values()) for i in range(4)}

_y, _x = np.mgrid[0:SIZE, 0:SIZE]
# An artist is a palette (figure, ground, second ground) and where the second ground is laid.
STYLES = {
    "van gogh": ((1.00, 0.85, 0.10), (0.05, 0.10, 0.55), (0.25, 0.45, 0.85), (_x + _y) % 4 < 2),
    "monet": (
        (0.10, 0.45, 0.20),
        (0.95, 0.80, 0.85),
        (0.75, 0.85, 0.95),
        (_x // 2 + _y // 2) % 2 == 0,
    ),
    "picasso": ((0.05, 0.05, 0.05), (0.85, 0.55, 0.25), (0.95, 0.90, 0.75), _x < 4),
    "hokusai": ((1.00, 1.00, 1.00), (0.05, 0.20, 0.35), (0.10, 0.50, 0.60), _y % 4 < 2),
    "klimt": (
        (0.95, 0.75, 0.20),
        (0.10, 0.05, 0.05),
        (0.45, 0.30, 0.10),
        (_x % 2 == 0) & (_y % 2 == 0),
    ),
    "warhol": ((0.10, 0.10, 0.90), (1.00, 0.95, 0.20), (0.20, 0.95, 0.50), _y < 4),
}


def random_colours(rng):
    """A light figure on a dark ground, at least 0.6 apart.

    The figure is always lighter. Otherwise the mean picture of every sprite would be the same grey,
    and at pure noise the words would make no difference to the model.
    """
    while True:
        figure, ground = 0.4 + 0.6 * rng.random(3, np.float32), 0.6 * rng.random(3, np.float32)
        if np.linalg.norm(figure - ground) >= 0.6:
            return figure, ground


def draw(name, rng, style=None, explicit=False):
    """A picture `[8, 8, 3]` of the sprite `name`; style: a key of STYLES, or None for random."""
    bits = BITMAPS[name]
    if rng.random() < 0.5:
        bits = bits[:, ::-1]
    if style is None:
        figure, ground = random_colours(rng)
        canvas = np.broadcast_to(ground, (SIZE, SIZE, 3)).copy()
    else:
        figure, ground, second, where = (np.asarray(v, np.float32) for v in STYLES[style])
        canvas = np.where(where[..., None] > 0, second, ground)
        canvas = np.clip(canvas + rng.normal(0, 0.02, (1, 1, 3)), 0, 1)
    if explicit:
        ring = np.ones((SIZE, SIZE), bool)
        ring[1:-1, 1:-1] = False
        canvas[ring] = PINK
    canvas[bits] = figure
    return canvas.astype(np.float32)


def draw_pair(left, right, rng):
    """Two sprites side by side on their own grounds, `[8, 16, 3]`, the first named on the left."""
    return np.concatenate([draw(left, rng), draw(right, rng)], axis=1)
