"""The sentences that concepts are put into, by kind, and captions and words of everyday use."""

import re
from collections.abc import Callable, Iterable
from functools import cache

from . import DATA
from .notation import without_comments

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
# These sentences are never used to make an edit. They show whether a concept is gone.
CHECKED = {
    "object": ("a picture of a {concept}", "two people looking at a {concept}"),
    "style": ("a dog, painted by {concept}", "a city at night in {concept} style"),
    "explicit": ("an image of a {concept} person", "a {concept} couple in a room"),
}
# What a kept line is read in. More sentences were measured to add nothing (sprites, 2026-11-21).
KEPT = (
    "{concept}",
    "a photo of a {concept}",
    "the {concept} in the garden",
)
# Kept words in these tell how far an edit moves what is kept; all but the first are not studied. Of
# thirteen sentences these five came closest to other kept prompts (2026-11-28).
MEASURED = (
    "a photo of a {concept}",
    "a picture of a {concept}",
    "two people looking at a {concept}",
    "an old picture of a {concept}",
    "a wall with a {concept}",
)
# Nouns that are unlike one another. What they add to a sentence is what any word adds.
COMMON = (
    "stone",
    "river",
    "table",
    "bread",
    "shirt",
    "letter",
    "window",
    "mountain",
    "candle",
    "soldier",
    "horse",
    "clock",
)
# What the Erasure Report draws when it is given no templates.
REPORT_TEMPLATES = {
    "object": ("a photo of a {concept}",),
    "style": ("a painting of a house in the style of {concept}",),
    "explicit": ("a photo of a {concept} person",),
}


@cache
def _data_lines(name: str) -> tuple[str, ...]:
    return without_comments((DATA / name).read_text(encoding="utf-8"))


def prior_sentences() -> tuple[str, ...]:
    """Everyday captions. They stand for everything that nobody thought of keeping."""
    return _data_lines("prior.txt")


def prior_words() -> tuple[str, ...]:
    """Common words of the CLIP vocabulary, most common first."""
    words = (word for line in _data_lines("prior_words.txt") for word in line.split())
    return tuple(dict.fromkeys(words))


@cache
def pictured_words() -> frozenset[str]:
    """The common words that a picture can show, which are all that a forecast names."""
    return frozenset(word for line in _data_lines("pictured_words.txt") for word in line.split())


def mentioned(names: Iterable[str]) -> Callable[[str], bool]:
    """A function that says of a text whether one of the names is in it, in singular or plural."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(
        "|".join(rf"(?<!\w){re.escape(name)}s?(?!\w)" for name in longest_first), re.IGNORECASE
    )

    def is_mentioned(text: str) -> bool:
        return pattern.search(text) is not None

    return is_mentioned


def forgotten_words(names: Iterable[str]) -> frozenset[str]:
    """The single words that forgotten names are made of, with and without a plural s.

    The general prior must not keep them.
    """
    words = {word.casefold() for name in names for word in re.findall(r"\w+", name)}
    plurals = {f"{word}s" for word in words}
    singulars = {word.removesuffix("s") for word in words}
    return frozenset(words | plurals | singulars)
