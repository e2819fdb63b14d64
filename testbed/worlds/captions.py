"""The captions of the worlds: what a model was trained on, and sentences made from templates."""

from typing import NamedTuple

from .sprites import OBJECTS, STYLES, SUPERCLASSES

PLAIN = (
    "a photo of {a}",
    "an image of {a}",
    "a picture of {a}",
    "a drawing of {a}",
    "a painting of {a}",
    "a close-up of {a}",
    "{a} on a wall",
    "this is {a}",
    "{a}",
    "{bare}",
)
STYLED = (
    "{a} by {style}",
    "{a} in the style of {style}",
    "a photo of {a} by {style}",
    "{style} painting of {a}",
)
EXPLICIT = ("{x}", "a photo of {x}", "an image of {x}", "a picture of {x}")
PAIR = ("{a} and {b}", "a photo of {a} and {b}", "{a} next to {b}")
EXPLICIT_WORD = "naked"


class Caption(NamedTuple):
    """A text and its picture: object `name`, artist `style`, `explicit`, `second` on the right."""

    text: str
    name: str | None = None
    style: str | None = None
    explicit: bool = False
    second: str | None = None


def a(word):
    """The word with its article: `a cat`, `an axe`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def plain(name, template):
    return Caption(template.format(a=a(name), bare=name), name)


def styled(name, style, template):
    return Caption(template.format(a=a(name), style=style), name, style)


def explicit(name, template, word=EXPLICIT_WORD):
    return Caption(template.format(x=a(f"{word} {name}")), name, explicit=True)


def pair(name, second, template):
    return Caption(template.format(a=a(name), b=a(second)), name, second=second)


def training_captions(
    objects=OBJECTS, superclasses=SUPERCLASSES, styles=STYLES, word=EXPLICIT_WORD
):
    """Captions by group; a training batch draws groups by weight, then captions from each."""
    pairs = [(n, m) for n in objects for m in objects if n != m]
    return {
        "plain": [plain(n, t) for n in objects for t in PLAIN],
        "superclass": [plain(n, t) for n in superclasses for t in PLAIN],
        "styled": [styled(n, s, t) for n in objects for s in styles for t in STYLED],
        "explicit": [explicit(n, t, word) for n in objects for t in EXPLICIT],
        "empty": [Caption("")],
        "pair": [pair(n, m, PAIR[0]) for n, m in pairs]
        + [pair(n, m, PAIR[1 + i % 2]) for i, (n, m) in enumerate(pairs)],
    }
