"""What a list was understood as, in one sentence or two for the face of a node."""

from collections.abc import Iterable, Sequence

from ..types import Concept, ConceptSet
from .lines import short

NAMED = 8  # concepts that are named before 'and 4 more'


def summary(concept_set: ConceptSet) -> str:
    """Such as 'Forgets fox, instead: animal; style van gogh. Keeps 12.', and notes in lines."""
    forgets = "Forgets " + listed(map(_told, concept_set.concepts), "; ") + "."
    kept = len(concept_set.keep)
    keeps = f" Keeps {kept}: {listed(map(short, concept_set.keep))}." if kept else ""
    return "\n".join([forgets + keeps, *concept_set.notes])


def _told(concept: Concept) -> str:
    kind = "" if concept.kind == "object" else f"{concept.kind} "
    also = f" (also {', '.join(map(short, concept.aliases))})" if concept.aliases else ""
    instead = f", instead: {short(concept.superclass)}" if concept.superclass else ""
    return f"{kind}{short(concept.name)}{also}{instead}"


def contents(name: str, concepts: Sequence[Concept], count: int = 3) -> str:
    """What is in a preset, such as 'logos (nike, adidas, puma and others)'."""
    return f"{name} ({', '.join(concept.name for concept in concepts[:count])} and others)"


def listed(names: Iterable[str], comma: str = ", ") -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = len(every) - NAMED
    shown = comma.join(every[:NAMED])
    return f"{shown}{comma}and {more} more" if more > 0 else shown
