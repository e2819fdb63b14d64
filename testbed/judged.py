"""What the demo and benchmarks forget in the sprite world, and the captions they judge it on.

No solve is given these sentences: it uses "{a}", "a photo of {a}" and others of its own.
"""

from typing import NamedTuple

from testbed import pack
from testbed.worlds import captions
from testbed.worlds.captions import Caption
from testbed.worlds.evaluate import Look
from testbed.worlds.sprites import OBJECTS, STYLES, SUPERCLASS, TWIN

FORGET = ("fox", "house", "ice cream")
STYLE = "van gogh"
PLAIN = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
STYLED = ("{a} by {style}", "a photo of {a} by {style}")
PAIR = ("{a} next to {b}", "a photo of {a} and {b}")


class Shot(NamedTuple):
    """A caption, and whether what it shows is to be forgotten."""

    caption: Caption
    forgot: bool

    def labels(self, look: Look) -> list[tuple[bool, bool]]:
        """(is the label a forgotten one, did the judge see it) for each label that counts."""
        c = self.caption
        if c.second is not None:
            return [
                (name in FORGET, seen == name)
                for name, seen in zip((c.name, c.second), look.names, strict=True)
            ]
        if c.style == STYLE:  # without its style, the object may be drawn in any way
            return [(True, look.style == STYLE)]
        found = [(c.name in FORGET, look.names[0] == c.name)]
        if c.style is not None and c.name not in FORGET:
            found.append((False, look.style == c.style))
        return found


def concepts(forget=FORGET, style=STYLE, keep=True):
    """The ConceptSet of the demo. With `keep`, everything else is on the keep list."""
    notation = pack.module("unlearn.concepts.notation")
    kept = [n for n in OBJECTS if n not in forget] + [s for s in STYLES if s != style]
    lines = "\n".join(f"{n} -> {SUPERCLASS[n]}" for n in forget)
    objects = notation.parse(lines, "\n".join(kept) if keep else "")
    return notation.merge(objects, notation.parse(style, "", "style"))


def few_shots() -> list[Shot]:
    """What the demo draws, forgotten labels first.

    Forgotten objects: plain, styled, in a pair. The forgotten style. Kept: objects, styles, a pair.
    """
    kept = [n for n in OBJECTS if n not in FORGET]
    others = [s for s in STYLES if s != STYLE]
    out = []
    for i, name in enumerate(FORGET):
        out += [Shot(captions.plain(name, PLAIN[(i + j) % 4]), True) for j in range(2)]
        out.append(Shot(captions.styled(name, others[i], STYLED[i % 2]), True))
    out.append(Shot(captions.pair(FORGET[1], kept[7], PAIR[1]), True))
    for i in range(3):
        out.append(Shot(captions.styled(kept[6 * i + 1], STYLE, STYLED[i % 2]), True))
    near = []
    for name in FORGET:
        relatives = [k for k in kept if SUPERCLASS[k] == SUPERCLASS[name] and k != TWIN[name]]
        near += [TWIN[name], relatives[0]]
    for i, name in enumerate(dict.fromkeys([*near, *kept[1::8]])):
        out.append(Shot(captions.plain(name, PLAIN[i % 4]), False))
    for i, style in enumerate(others):
        out.append(Shot(captions.styled(kept[4 * i + 2], style, STYLED[i % 2]), False))
    return [*out, Shot(captions.pair(kept[4], kept[15], PAIR[0]), False)]


def many_shots(rounds: int) -> list[Shot]:
    """Every object plain `rounds` times (forgotten ones twice as often), some styled and in pairs.

    The forgotten style is drawn on kept objects.
    """
    out = []
    others = [s for s in STYLES if s != STYLE]
    for i, name in enumerate(OBJECTS):
        gone = name in FORGET
        for j in range(2 * rounds if gone else rounds):
            out.append(Shot(captions.plain(name, PLAIN[(i + j) % len(PLAIN)]), gone))
        if i % 2 == 0 or gone:
            out.append(Shot(captions.styled(name, others[i % 5], STYLED[i % 2]), gone))
        if i % 3 == 0 or gone:
            second = OBJECTS[(7 * i + 5) % len(OBJECTS)]
            out.append(Shot(captions.pair(name, second, PAIR[i % 2]), gone))
    kept = [n for n in OBJECTS if n not in FORGET]
    for i in range(3 * rounds):
        out.append(Shot(captions.styled(kept[3 * i % len(kept)], STYLE, STYLED[i % 2]), True))
    return out
