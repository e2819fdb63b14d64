"""The artist's list of concepts as text, and back.

A line is `[kind:] name [-> superclass] [| alias, alias] [* weight]`; lines that start with # are
comments. `lines.py` has one line, and `pasted.py` reads what else people paste.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from ..errors import UnlearnError
from ..types import Concept, ConceptSet
from . import pasted
from .lines import (
    MAX_NAME_LENGTH,
    MAX_WEIGHT,
    as_part,
    clean,
    format_concept,
    parse_concept,
    short,
    split_lines,
    without_comments,
)

__all__ = [
    "MAX_NAME_LENGTH",
    "MAX_WEIGHT",
    "checked",
    "clean",
    "format_concept",
    "format_set",
    "has_lines",
    "merge",
    "parse",
    "parse_concept",
    "quoted_list",
    "short",
    "split_lines",
    "understood",
    "with_keep_lines",
    "without_comments",
]

LISTED = 20  # names that one message repeats
_KEPT_BARE = re.compile(r"[^\W\d_]\w*(?:[ -]\w+)*")


def parse(forget: str, keep: str = "", kind: str = "object") -> ConceptSet:
    """Forget and keep texts -> ConceptSet, with notes on what was read how.

    Raises UnlearnError on an empty forget list, a line that cannot be read, names that stand
    twice with different meanings, or a concept that is also kept.
    """
    found = pasted.read(forget, keep, kind)
    if not found.concepts:
        raise UnlearnError(
            "The forget list is empty; write one concept per line, as in 'cat -> animal'."
        )
    return checked(ConceptSet(tuple(found.concepts), tuple(found.keep), found.notes))


def has_lines(text: str) -> bool:
    """Whether a forget text names anything at all."""
    return bool(pasted.list_lines(text))


def with_keep_lines(concept_set: ConceptSet, keep: str) -> ConceptSet:
    """The set with the lines of a keep text added."""
    found = pasted.read("", keep)
    return checked(
        ConceptSet(
            concept_set.concepts,
            (*concept_set.keep, *found.keep),
            (*concept_set.notes, *found.notes),
        )
    )


def checked(concept_set: ConceptSet) -> ConceptSet:
    """The set, if it can be used, without what stands in it twice.

    Raises UnlearnError where a name is too long or holds control characters, and where names
    stand in the forget list twice with different meanings or are kept as well; it names all.
    """
    for text in _all_texts(concept_set):
        if len(text) > MAX_NAME_LENGTH:
            raise UnlearnError(
                f"'{short(text)}' is {len(text)} letters long; "
                f"name a concept in at most {MAX_NAME_LENGTH}."
            )
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise UnlearnError(f"'{short(text)}' holds control characters; type it anew.")
    concepts, repeated = _without_repeats(concept_set.concepts)
    keep = tuple(dict.fromkeys(concept_set.keep))
    kept = {line.casefold() for line in keep}
    both = [name for c in concepts for name in c.names if name.casefold() in kept]
    if both:
        raise UnlearnError(
            f"{quoted_list(both)} {_are(both)} in the forget list and in the keep list; take "
            f"{'it' if len(both) == 1 else 'each'} out of one of them."
        )
    notes = concept_set.notes
    if repeated:
        notes = (*notes, f"{quoted_list(repeated)} stood in the list more than once.")
    return ConceptSet(concepts, keep, tuple(dict.fromkeys(notes)))


def _without_repeats(concepts: Iterable[Concept]) -> tuple[tuple[Concept, ...], list[str]]:
    """The concepts without repeats of one meaning, and the names that were repeated.

    Raises UnlearnError, with all of them, for names that stand twice with different meanings.
    """
    of_name: dict[str, Concept] = {}
    once: list[Concept] = []
    repeated: dict[str, None] = {}
    clashing: dict[str, None] = {}
    for given in concepts:
        concept = _without_double_aliases(given)
        if len(concept.names) < len(given.names):
            repeated[given.name] = None
        first = of_name.get(concept.name.casefold())
        if first is not None and _folded(first) == _folded(concept):
            repeated[concept.name] = None
            continue
        clashing |= {name: None for name in concept.names if name.casefold() in of_name}
        of_name |= {name.casefold(): concept for name in concept.names}
        once.append(concept)
    if clashing:
        names = [*clashing]
        raise UnlearnError(
            f"{quoted_list(names)} {'stands' if len(names) == 1 else 'stand'} twice in the forget "
            "list with different meanings; take one of them out."
        )
    return tuple(once), [*repeated]


def _without_double_aliases(concept: Concept) -> Concept:
    names = {name.casefold(): name for name in reversed(concept.names)}
    if len(names) == len(concept.names):
        return concept
    aliases = tuple(name for name in reversed(names.values()) if name != concept.name)
    return Concept(concept.name, concept.kind, concept.superclass, aliases, concept.weight)


def _folded(concept: Concept) -> tuple:
    """What decides whether two concepts mean the same; upper and lower case do not."""
    names = frozenset(name.casefold() for name in concept.names)
    return names, concept.kind, concept.superclass.casefold(), concept.weight


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def quoted_list(names: Iterable[str]) -> str:
    """Names in quotes with commas, as many as a message holds."""
    every = list(dict.fromkeys(names))
    more = len(every) - LISTED
    shown = pasted.quoted(every[:LISTED])
    return f"{shown} and {more} more" if more > 0 else shown


def _all_texts(concept_set: ConceptSet) -> Iterator[str]:
    yield from concept_set.keep
    for concept in concept_set.concepts:
        yield from concept.names
        yield concept.superclass


def merge(first: ConceptSet, second: ConceptSet) -> ConceptSet:
    """Both sets as one, in order."""
    return checked(
        ConceptSet(
            first.concepts + second.concepts,
            first.keep + second.keep,
            first.notes + second.notes,
        )
    )


def format_set(concept_set: ConceptSet) -> tuple[str, str]:
    """The forget text and the keep text that `parse` reads back as this very set."""
    forget = "\n".join(format_concept(concept) for concept in concept_set.concepts)
    return forget, "\n".join(map(_keep_line, concept_set.keep))


def _keep_line(text: str) -> str:
    """The line of the keep text that reads back as this very text."""
    if _KEPT_BARE.fullmatch(text):
        return as_part(text)
    try:
        bare = pasted.read("", text).keep == [text]
    except UnlearnError:
        bare = False
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return text if bare and not text.startswith("#") else f'"{quoted}"'


def understood(concept_set: ConceptSet) -> str:
    """The list as it was understood, one concept or kept text per line, and notes as comments.

    `parse` reads it back as this very set.
    """
    forget, keep = format_set(concept_set)
    lines = [forget, *(f"keep: {line}" for line in keep.splitlines())]
    return "\n".join([*lines, *(f"# {note}" for note in concept_set.notes)])
