"""The artist's list of concepts as text, and back.

A line is `[kind:] name [-> superclass] [| alias, alias] [* weight]`; lines that start with # are
comments.
"""

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

from ..errors import UnlearnError
from ..types import KINDS, Concept, ConceptSet

MAX_NAME_LENGTH = 400
"""Letters of a name or a kept line. A text encoder reads 75 tokens, and takes minutes over a word
of a million letters."""

MAX_WEIGHT = 100
SHORT_LENGTH = 80  # letters of the artist's text that a message repeats

_KIND = re.compile(rf"^({'|'.join(KINDS)})\s*:\s*", re.IGNORECASE)
_WEIGHT = re.compile(r"\s\*\s*(\d+(?:\.\d*)?|\.\d+)\s*$")
# Marks that come along when text is pasted and show nowhere. A name with one of them is another
# name to the text encoder.
_INVISIBLE = dict.fromkeys(
    [
        0xAD,
        0x180E,
        0x200B,
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        0x2060,
        *range(0x2066, 0x206A),
        0xFEFF,
    ]
)


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of a text without the space around them; empty lines are left out."""
    stripped = (line.strip() for line in text.splitlines())
    return tuple(line for line in stripped if line)


def without_comments(text: str) -> tuple[str, ...]:
    """The lines of a text that are neither empty nor comments, which start with #."""
    return tuple(line for line in split_lines(text) if not line.startswith("#"))


def clean(text: str) -> str:
    """The text with single spaces and without marks that nobody sees."""
    return " ".join(text.translate(_INVISIBLE).split())


def short(text: str) -> str:
    """A text of any length and content in a form that fits a message."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:SHORT_LENGTH])
    return shown if len(text) <= SHORT_LENGTH else f"{shown}..."


def _list_lines(text: str) -> list[str]:
    """The lines of a forget or keep text, cleaned, without comments."""
    lines = (clean(line) for line in split_lines(text))
    return [line for line in lines if line and not line.startswith("#")]


def parse_concept(line: str, kind: str = "object") -> Concept:
    """One line -> Concept; raises UnlearnError on an empty name, superclass or weight."""
    rest, weight = line, 1.0
    found = _KIND.match(rest)
    if found:
        kind, rest = found[1].lower(), rest[found.end() :]
    found = _WEIGHT.search(rest)
    if found:
        weight, rest = float(found[1]), rest[: found.start()]
    rest, _, alias_text = rest.partition("|")
    name, arrow, superclass = rest.partition("->")
    if "->" in alias_text:  # the arrow may stand before or after the aliases
        alias_text, arrow, superclass = alias_text.partition("->")
    name, superclass = clean(name), clean(superclass)
    aliases = tuple(alias for alias in map(clean, alias_text.split(",")) if alias)
    if not name:
        raise UnlearnError(
            f"The forget line '{short(line)}' names no concept; write the concept first, "
            "as in 'cat -> animal | kitten'."
        )
    if arrow and not superclass:
        raise UnlearnError(
            f"The forget line '{short(line)}' has nothing behind '->'; "
            "name what to draw instead, or leave the arrow out."
        )
    if not 0 < weight <= MAX_WEIGHT:
        raise UnlearnError(
            f"The forget line '{short(line)}' has weight {weight:g}; "
            f"use a number above 0 and up to {MAX_WEIGHT}."
        )
    return Concept(name, kind, superclass, aliases, weight)


def parse(forget: str, keep: str = "", kind: str = "object") -> ConceptSet:
    """Forget and keep texts -> ConceptSet.

    Raises UnlearnError on an empty forget list, a repeat, or a concept that is also kept.
    """
    concepts = tuple(parse_concept(line, kind) for line in _list_lines(forget))
    if not concepts:
        raise UnlearnError(
            "The forget list is empty; write one concept per line, as in 'cat -> animal'."
        )
    return checked(ConceptSet(concepts, tuple(dict.fromkeys(_list_lines(keep)))))


def has_lines(text: str) -> bool:
    """Whether a forget text names anything at all."""
    return bool(_list_lines(text))


def with_keep_lines(concept_set: ConceptSet, keep: str) -> ConceptSet:
    """The set with the lines of a keep text added."""
    lines = dict.fromkeys([*concept_set.keep, *_list_lines(keep)])
    return checked(ConceptSet(concept_set.concepts, tuple(lines)))


def checked(concept_set: ConceptSet) -> ConceptSet:
    """The set itself, if it can be used.

    Raises UnlearnError where a name is in the forget list twice or also in the keep list, is too
    long, or holds control characters.
    """
    for text in _all_texts(concept_set):
        if len(text) > MAX_NAME_LENGTH:
            raise UnlearnError(
                f"'{short(text)}' is {len(text)} letters long; "
                f"name a concept in at most {MAX_NAME_LENGTH}."
            )
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise UnlearnError(f"'{short(text)}' holds control characters; type it anew.")
    kept = {line.casefold() for line in concept_set.keep}
    seen: set[str] = set()
    for concept in concept_set.concepts:
        for name in concept.names:
            if name.casefold() in kept:
                raise UnlearnError(
                    f"'{short(name)}' is in the forget list and in the keep list; "
                    "take it out of one of them."
                )
            if name.casefold() in seen:
                raise UnlearnError(
                    f"'{short(name)}' stands twice in the forget list; take one of them out."
                )
            seen.add(name.casefold())
    return concept_set


def _all_texts(concept_set: ConceptSet) -> Iterator[str]:
    yield from concept_set.keep
    for concept in concept_set.concepts:
        yield from concept.names
        yield concept.superclass


def merge(first: ConceptSet, second: ConceptSet) -> ConceptSet:
    """Both sets as one, in order."""
    keep = dict.fromkeys(first.keep + second.keep)
    return checked(ConceptSet(first.concepts + second.concepts, tuple(keep)))


def format_concept(concept: Concept) -> str:
    """The line that `parse_concept` reads back as this very concept."""
    line = f"{concept.kind}: {concept.name}"
    if concept.superclass:
        line += f" -> {concept.superclass}"
    if concept.aliases:
        line += f" | {', '.join(concept.aliases)}"
    if concept.weight != 1 or _WEIGHT.search(line):  # a name may end in what reads as a weight
        line += f" * {Decimal(repr(concept.weight)):f}"
    return line


def format_set(concept_set: ConceptSet) -> tuple[str, str]:
    """The forget text and the keep text that `parse` reads back as this very set."""
    forget = "\n".join(format_concept(concept) for concept in concept_set.concepts)
    return forget, "\n".join(concept_set.keep)
