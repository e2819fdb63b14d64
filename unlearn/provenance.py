"""The record of how a patch was made. It travels in the patch and in every file made from it.

It is also the recipe for making the patch again, for another model: see `recipe`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .concepts.notation import checked, clean, format_concept, parse_concept, short
from .errors import UnlearnError
from .types import Concept, ConceptSet
from .version import VERSION

SCAPRE, FIA, SCULPTING = "ScaPre", "FIA", "Sculpting Memory"
TEXT_ENCODER = "Text Encoder"


class Refitted(NamedTuple):
    """What is said of a patch that was made again: reports, and notes on the recipe."""

    reports: tuple[str, ...]
    notes: tuple[str, ...]


def record(
    method: str,
    settings: Mapping[str, Any],
    concepts: ConceptSet,
    tuning: Mapping[str, float | int | str],
    on_model: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The provenance of one patch, as a dict of values that JSON can hold.

    method: name of the method and its variant. settings: what the artist could set.
    tuning: the measured constants that affect the result, by name, with their values.
    on_model: the provenance of the patches that were on the model when it was made; what the new
    patch forgets is what these left. Without any, the dict has no such entry.
    """
    made = {
        "method": method,
        "settings": dict(settings),
        "concepts": [concept.name for concept in concepts.concepts],
        "lines": [format_concept(concept) for concept in concepts.concepts],
        "keep": list(concepts.keep),
        "version": VERSION,
        "tuning": dict(tuning),
    }
    if on_model:
        made["on_model"] = [
            {
                "method": earlier["method"],
                "lines": list(earlier.get("lines") or earlier["concepts"]),
                "strength": earlier.get("strength", 1.0),
            }
            for earlier in on_model
        ]
    return made


def family(provenance: Mapping[str, Any]) -> str:
    """The method of a provenance without its variant; a method that is not known as it is."""
    for name in (SCAPRE, FIA, SCULPTING, TEXT_ENCODER):
        if provenance["method"] == name or provenance["method"].startswith(f"{name} "):
            return name
    return provenance["method"]


@dataclass(frozen=True)
class Recipe:
    """What it takes to make a patch again.

    variant: of the method. notes: sentences about what the provenance does not say.
    """

    family: str
    variant: str
    settings: dict[str, Any]
    concepts: ConceptSet
    tuning: dict[str, Any]
    version: str
    notes: tuple[str, ...]

    def chosen(self, defaults: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(a value for every name in `defaults`, notes about what was not on record).

        Raises UnlearnError for a value of another type than its default has.
        """
        missing = [name for name in defaults if name not in self.settings]
        notes = []
        if missing:
            notes.append(
                f"The patch does not say {', '.join(missing)}; today's default is taken for it."
            )
        values = dict(defaults)
        for name in defaults:
            if name in self.settings:
                values[name] = _typed(name, self.settings[name], defaults[name])
        return values, tuple(notes)

    def other_constants(self, today: Mapping[str, Any]) -> tuple[str, ...]:
        """A note where the patch was made with other measured constants than today's, or none."""
        names = [name for name in self.tuning if self.tuning[name] != today.get(name)]
        if not names:
            return ()
        return (
            f"The patch was made by version {short(self.version)} with other constants "
            f"({short(', '.join(names))}); today's are taken.",
        )


def recipe(provenance: Mapping[str, Any]) -> Recipe:
    """The recipe in a provenance, which may come from a file of any version.

    Raises UnlearnError where it names no concepts, or what it names cannot be used.
    """
    lines, notes = provenance.get("lines") or (), []
    concepts = [parse_concept(line) for line in lines]
    if not concepts:
        concepts = [Concept(clean(name)) for name in provenance["concepts"] if clean(name)]
        notes.append(
            "The patch names its concepts but not their kinds and superclasses; each is taken for "
            "an object without one."
        )
    if not concepts:
        raise UnlearnError(
            "The input 'patch' names no concepts, so it cannot be made again; make a new one with "
            "an eraser such as ScaPre Solve."
        )
    if "keep" not in provenance:
        notes.append("The patch does not say what was kept; nothing is listed.")
    kind = family(provenance)
    return Recipe(
        kind,
        provenance["method"].removeprefix(kind).strip(),
        dict(provenance.get("settings") or {}),
        checked(ConceptSet(tuple(concepts), tuple(provenance.get("keep") or ()))),
        dict(provenance.get("tuning") or {}),
        str(provenance.get("version", "?")),
        tuple(notes),
    )


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value as its default's type; None and tuples stand for lines of text."""
    if default is None or isinstance(default, tuple):
        lines = [] if value is None else value
        if isinstance(lines, list | tuple) and all(isinstance(line, str) for line in lines):
            return tuple(lines) or default
    elif isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, float):
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    elif isinstance(value, type(default)):
        return value
    raise UnlearnError(
        f"The patch says '{short(str(value))}' for its setting '{name}', which cannot be; make a "
        "new patch with the eraser instead."
    )
