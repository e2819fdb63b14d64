"""The artist's list of concepts as text, and back.

A line is `[kind:] name [-> superclass] [| alias, alias] [* weight]`; lines that start with # are comments.
"""

import re
import unicodedata
from decimal import Decimal

from ..errors import UnlearnError
from ..types import KINDS, Concept, ConceptSet

_KIND = re.compile(rf"^({'|'.join(KINDS)})\s*:\s*", re.IGNORECASE)
_WEIGHT = re.compile(r"\s\*\s*(\d+(?:\.\d*)?|\.\d+)\s*$")


LONGEST = 400  # letters of a name or a kept line; a text encoder reads 75 tokens, and takes minutes over a word of a million letters
# Marks that come along when text is pasted and show nowhere: a name with one is another name to the text encoder.
_UNSEEN = dict.fromkeys(
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


def clean(text):
    """The text with single spaces and without the marks of _UNSEEN."""
    return " ".join(text.translate(_UNSEEN).split())


def short(text):
    """What a message says of a text of any length and content."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:80])
    return shown if len(text) <= 80 else f"{shown}..."


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of a text without the spaces around them. Empty lines are left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _lines(text):
    lines = (clean(line) for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def parse_concept(line, kind="object"):
    """One line -> Concept; raises UnlearnError on an empty name, superclass or weight."""
    rest = line
    if found := _KIND.match(rest):
        kind, rest = found[1].lower(), rest[found.end() :]
    weight = 1.0
    if found := _WEIGHT.search(rest):
        weight, rest = float(found[1]), rest[: found.start()]
    rest, bar, aliases = rest.partition("|")
    name, arrow, superclass = rest.partition("->")
    name, superclass = clean(name), clean(superclass)
    if "->" in aliases:  # both orders are read
        aliases, arrow, superclass = aliases.partition("->")
        superclass = clean(superclass)
    aliases = tuple(a for a in map(clean, aliases.split(",")) if a)
    if not name:
        raise UnlearnError(
            f"The forget line '{short(line)}' names no concept; write the concept first, as in 'cat -> animal | kitten'."
        )
    if arrow and not superclass:
        raise UnlearnError(
            f"The forget line '{short(line)}' has nothing behind '->'; name what to draw instead, or leave the arrow out."
        )
    if not 0 < weight <= 100:
        raise UnlearnError(
            f"The forget line '{short(line)}' has weight {weight:g}; use a number above 0 and up to 100."
        )
    return Concept(name, kind, superclass, aliases, weight)


def parse(forget, keep="", kind="object"):
    """Forget and keep texts -> ConceptSet; raises UnlearnError on an empty forget list, a repeat, or a concept that is also kept."""
    concepts = tuple(parse_concept(line, kind) for line in _lines(forget))
    if not concepts:
        raise UnlearnError(
            "The forget list is empty; write one concept per line, as in 'cat -> animal'."
        )
    return checked(ConceptSet(concepts, tuple(dict.fromkeys(_lines(keep)))))


def has_lines(text):
    """Whether a forget text names anything at all."""
    return bool(_lines(text))


def keeping(concept_set, keep):
    """The set with the lines of a keep text added."""
    return checked(
        ConceptSet(concept_set.concepts, tuple(dict.fromkeys([*concept_set.keep, *_lines(keep)])))
    )


def checked(concept_set):
    """The set itself; raises UnlearnError where a name stands twice or is also to be kept, is too long or holds control characters."""
    for text in (
        *concept_set.keep,
        *(t for c in concept_set.concepts for t in (*c.names, c.superclass)),
    ):
        if len(text) > LONGEST:
            raise UnlearnError(
                f"'{short(text)}' is {len(text)} letters long; name a concept in at most {LONGEST}."
            )
        if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise UnlearnError(f"'{short(text)}' holds control characters; type it anew.")
    kept, seen = {k.casefold(): k for k in concept_set.keep}, set()
    for concept in concept_set.concepts:
        for name in concept.names:
            if name.casefold() in kept:
                raise UnlearnError(
                    f"'{short(name)}' is in the forget list and in the keep list; take it out of one of them."
                )
            if name.casefold() in seen:
                raise UnlearnError(
                    f"'{short(name)}' stands twice in the forget list; take one of them out."
                )
            seen.add(name.casefold())
    return concept_set


def merge(first, second):
    """Both sets as one, in order."""
    return checked(
        ConceptSet(first.concepts + second.concepts, tuple(dict.fromkeys(first.keep + second.keep)))
    )


def format_concept(concept):
    """The line that `parse_concept` reads back as this very concept."""
    line = f"{concept.kind}: {concept.name}"
    if concept.superclass:
        line += f" -> {concept.superclass}"
    if concept.aliases:
        line += f" | {', '.join(concept.aliases)}"
    if concept.weight != 1 or _WEIGHT.search(line):  # a name may end in what reads as a weight
        line += f" * {Decimal(repr(concept.weight)):f}"
    return line


def format_set(concept_set):
    """(forget text, keep text) that `parse` reads back as this very set."""
    return "\n".join(map(format_concept, concept_set.concepts)), "\n".join(concept_set.keep)
