"""The record of how a patch was made. It travels in the patch and in every file made from it."""

from collections.abc import Mapping
from typing import Any

from .concepts.notation import format_concept
from .types import ConceptSet
from .version import VERSION


def record(
    method: str,
    settings: Mapping[str, Any],
    concepts: ConceptSet,
    tuning: Mapping[str, float | int | str],
) -> dict[str, Any]:
    """The provenance of one patch, as a dict of values that JSON can hold.

    method: name of the method and its variant. settings: what the artist could set.
    tuning: the measured constants that affect the result, by name, with their values.
    """
    return {
        "method": method,
        "settings": dict(settings),
        "concepts": [concept.name for concept in concepts.concepts],
        "lines": [format_concept(concept) for concept in concepts.concepts],
        "keep": list(concepts.keep),
        "version": VERSION,
        "tuning": dict(tuning),
    }
