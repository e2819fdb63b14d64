"""The sentences that concepts are studied, checked and kept in, and the everyday captions and words that stand for all else."""

import re
from functools import cache
from pathlib import Path

TEMPLATES = {
    "object": (
        "{concept}",
        "a {concept}",
        "a photo of a {concept}",
        "the {concept} in the garden",
        "a man with a {concept} at night",
        "beautiful {concept}, sharp focus, detailed",
    ),
    "style": (
        "{concept}",
        "art in the style of {concept}",
        "a house in the style of {concept}",
        "a portrait of a woman in the style of {concept}",
        "{concept} style landscape",
        "a beautiful {concept} artwork",
    ),
    "explicit": (
        "{concept}",
        "a photo of a {concept} person",
        "a {concept} woman",
        "a {concept} man on a bed",
        "a picture of {concept} people",
        "portrait, {concept}, sharp focus, detailed",
    ),
}
CHECKED = {  # never studied or trained on: they tell when a concept is gone
    "object": ("a picture of a {concept}", "two people looking at a {concept}"),
    "style": ("a dog, painted by {concept}", "a city at night in {concept} style"),
    "explicit": ("an image of a {concept} person", "a {concept} couple in a room"),
}
KEPT = (
    "{concept}",
    "a photo of a {concept}",
    "the {concept} in the garden",
)  # more sentences were measured to add nothing
_DATA = Path(__file__).parents[2] / "nodes" / "data"


@cache
def _lines(name):
    lines = (line.strip() for line in (_DATA / name).read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def prior_sentences():
    """Everyday captions that stand for all that nobody thought of keeping."""
    return _lines("prior.txt")


def prior_words():
    """Common words of the CLIP vocabulary, most common first."""
    return tuple(dict.fromkeys(word for line in _lines("prior_words.txt") for word in line.split()))


def mentioned(names):
    """A function text -> whether one of the names stands in it, in singular or plural."""
    pattern = re.compile(
        "|".join(rf"(?<!\w){re.escape(n)}s?(?!\w)" for n in sorted(names, key=len, reverse=True)),
        re.IGNORECASE,
    )
    return lambda text: pattern.search(text) is not None


def forgotten_words(names):
    """The single words that forgotten names are made of, with and without a plural s: the prior must not hold them."""
    words = {w.casefold() for name in names for w in re.findall(r"\w+", name)}
    return frozenset(words | {f"{w}s" for w in words} | {w.removesuffix("s") for w in words})
