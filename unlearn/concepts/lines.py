"""One concept as a line, and back. This is what patches, files and nodes write down.

A line is `[kind:] name [-> superclass] [| alias, alias] [* weight]`. A name in double quotes is
taken letter by letter, with \\" for a quote and \\\\ for a backslash in it.
"""

import re
from collections.abc import Callable
from decimal import Decimal

from ..errors import UnlearnError
from ..types import KINDS, Concept

MAX_NAME_LENGTH = 400
"""Letters of a name or a kept line. A text encoder reads 75 tokens, and takes minutes over a word
of a million letters."""

MAX_WEIGHT = 100
SHORT_LENGTH = 80  # letters of the artist's text that a message repeats

KIND = re.compile(rf"^({'|'.join(KINDS)})\s*:\s*", re.IGNORECASE)
WEIGHT = re.compile(r"\s\*\s*(\d+(?:\.\d*)?|\.\d+)\s*$")
# A quoted name fills its part of the line: it begins where a part may begin, and ends there.
_BEGIN = r"(^|[,;|:({\[]|->)(\s*(?:[-*+\u2022]\s+|\(?\d{1,4}[.)]\s+)?)"
_END = r"(?=\s*(?:$|[,;|)}\]]|->|\*))"
_QUOTED = re.compile(rf'{_BEGIN}"((?:[^"\\]|\\.)*)"{_END}')
_SINGLE = re.compile(rf"{_BEGIN}'([^'\"]+)'{_END}")
_ESCAPED = re.compile(r"\\(.)")
_SHIELDED = re.compile(r"\x00(\d+)\x00")
SHIELD = "\x00"  # stands around the number of a quoted name while a line is taken apart
# A name that reads the same with quotes and without.
_WORD = r"[^\W_](?:['.&-]?[^\W_])*"
_WORDS = rf"{_WORD}(?:\.? {_WORD})*"
_BARE = re.compile(rf"{_WORDS}(?: \({_WORDS}\))?|embedding:{_WORD}")
_SPLITTING = re.compile(r"\b(?:AND|BREAK)\b|^\d{1,4}(?:[ .]|$)")
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


def without_invisible(text: str) -> str:
    """The text without marks that nobody sees."""
    return text.translate(_INVISIBLE)


def clean(text: str) -> str:
    """The text with single spaces and without marks that nobody sees."""
    return " ".join(without_invisible(text).split())


def short(text: str) -> str:
    """A text of any length and content in a form that fits a message."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:SHORT_LENGTH])
    return shown if len(text) <= SHORT_LENGTH else f"{shown}..."


class Shield:
    """A line whose quoted names are out of the way while it is taken apart.

    `line` has a mark in place of each; `back` gives the text of a part again.
    """

    def __init__(self, line: str, single: bool = False) -> None:
        """single: whether names in single quotes count as quoted too."""
        self.names: list[tuple[str, str]] = []  # the name, and how it stood in the line
        self.line = line
        if SHIELD not in line:  # control characters are refused later on
            self.line = _QUOTED.sub(self._taken(_unescaped), line)
            if single:
                self.line = _SINGLE.sub(self._taken(str), self.line)

    def _taken(self, read: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
        def taken(found: re.Match[str]) -> str:
            name = clean(read(found[3]))
            if not name:
                return found[0]
            self.names.append((name, found[0][found.end(2) - found.start() :]))
            return f"{found[1]}{found[2]}{SHIELD}{len(self.names) - 1}{SHIELD}"

        return taken

    def quoted(self, part: str) -> str | None:
        """The name of a part that is a quoted name and nothing else, or None."""
        part = part.strip()
        if not self.names or len(part) < 3 or part[0] != SHIELD or part[-1] != SHIELD:
            return None
        number = part[1:-1]
        return self.names[int(number)][0] if number.isdigit() else None

    def back(self, part: str) -> str:
        """The part with its quoted names as they stood in the line."""
        return _SHIELDED.sub(self._given, part) if self.names else part

    def _given(self, found: re.Match[str]) -> str:
        return self.names[int(found[1])][1]

    def name(self, part: str) -> str:
        """The part as a name: a quoted one letter by letter, any other cleaned."""
        quoted = self.quoted(part)
        return clean(self.back(part)) if quoted is None else quoted


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def parse_concept(line: str, kind: str = "object") -> Concept:
    """One line -> Concept; raises UnlearnError on an empty name, superclass or weight.

    Nothing is guessed: `pasted.py` reads what people paste.
    """
    shield = Shield(line)
    rest, weight = shield.line, 1.0
    found = KIND.match(rest)
    if found:
        kind, rest = found[1].lower(), rest[found.end() :]
    found = WEIGHT.search(rest)
    if found:
        weight, rest = float(found[1]), rest[: found.start()]
    rest, _, alias_text = rest.partition("|")
    name, arrow, superclass = rest.partition("->")
    if "->" in alias_text:  # the arrow may stand before or after the aliases
        alias_text, arrow, superclass = alias_text.partition("->")
    aliases = tuple(alias for alias in map(shield.name, alias_text.split(",")) if alias)
    name, superclass = shield.name(name), shield.name(superclass)
    check_line(line, name, arrow, superclass, weight)
    return Concept(name, kind, superclass, aliases, weight)


def check_line(line: str, name: str, arrow: str, superclass: str, weight: float) -> None:
    """Raises UnlearnError where a part of a forget line is missing or out of bounds."""
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


def as_part(name: str) -> str:
    """A name as a part of a line: as it is, or in quotes where it would be taken apart."""
    if _BARE.fullmatch(name) and not _SPLITTING.search(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def format_concept(concept: Concept) -> str:
    """The line that `parse_concept` reads back as this very concept."""
    line = f"{concept.kind}: {as_part(concept.name)}"
    if concept.superclass:
        line += f" -> {as_part(concept.superclass)}"
    if concept.aliases:
        line += f" | {', '.join(map(as_part, concept.aliases))}"
    if concept.weight != 1:
        line += f" * {Decimal(repr(concept.weight)):f}"
    return line
