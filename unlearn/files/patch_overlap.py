"""Concepts that are forgotten twice: by two patches, or by a patch and by the model already.

A patch that is applied twice pushes its concepts twice as far, and what they become instead is
pushed along. Two methods on one concept are no repeat: stacking them is meant.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .. import wording
from ..concepts.name_variants import name_variants
from ..concepts.notation import clean, parse_concept, short
from ..errors import UnlearnError
from ..host import model_file, patching, tuning
from ..host.model_types import Model
from ..host.patch_match import Match
from ..provenance import FIA, family
from ..types import Concept, UnlearnPatch
from ..wording import Warn

Names = tuple[frozenset[str], ...]  # for a concept's name and each alias all ways to write it
Known = Mapping[str, Names]  # name of a concept as shown -> its names


@dataclass(frozen=True)
class Source:
    """Something that forgets concepts: a patch on an input, or one that the model has already.

    where: how a message calls it. records: the provenance of each patch in it. digest: of the
    patch, '' where it is not known. strength: at which it acts. fixed: whether it stays, whatever
    is left out.
    """

    where: str
    records: tuple[Mapping, ...]
    digest: str
    strength: float
    fixed: bool


@dataclass(frozen=True)
class Repeats:
    """What is to be applied of a stack of patches, and notes for the report.

    kept: indices of the patches to apply. left_out: a sentence for each of the others. warnings: of
    what is forgotten twice all the same.
    """

    kept: tuple[int, ...]
    left_out: tuple[str, ...]
    warnings: tuple[Warn, ...]


def find(
    model: Model,
    patches: Mapping[str, UnlearnPatch],
    matches: Sequence[Match],
    strength: float,
    once: bool,
) -> Repeats:
    """Repeats among patches, by input name, that are to be put on a MODEL at one strength.

    matches: how each goes with the MODEL. once: leave out a patch that is there twice, that is in
    the model already, or whose concepts are all forgotten by the others with the same method.
    """
    on_model = _on_model(model)
    stack = [
        Source(name, patch.provenance, patch.digest, strength, False)
        for name, patch in patches.items()
    ]
    if strength <= 0:  # it takes an edit back, or does nothing
        return Repeats(tuple(range(len(stack))), (), ())
    left_out: dict[int, str] = {}
    if once:
        there = [source for source in on_model if source.strength >= strength]
        for i in reversed(range(len(stack))):
            others = there + [s for j, s in enumerate(stack) if j != i and j not in left_out]
            reason = _why_left_out(stack[i], others, matches[i])
            if reason:
                left_out[i] = reason
    kept = tuple(i for i in range(len(stack)) if i not in left_out)
    warnings = _warnings(on_model + [stack[i] for i in kept])
    return Repeats(kept, tuple(left_out[i] for i in sorted(left_out)), tuple(warnings))


def concepts_on_record(record: Mapping) -> Known:
    """The concepts that a provenance names, with aliases, plurals and joined forms."""
    found = {}
    for concept in _concepts(record):
        found[concept.name] = tuple(
            frozenset(form.casefold() for form in (name, *name_variants(name)))
            for name in concept.names
        )
    return found


def _concepts(record: Mapping) -> list[Concept]:
    found = []
    for line in record.get("lines") or ():
        try:
            found.append(parse_concept(line))
        except UnlearnError:  # a file that somebody else wrote
            continue
    return found or [Concept(clean(name)) for name in record.get("concepts") or () if clean(name)]


def _on_model(model: Model) -> list[Source]:
    """The patches on a MODEL, and those that its file says are in its weights."""
    found = []
    for where, records in (
        ("the model (an earlier Apply Unlearn Patch)", patching.manifest(model)),
        ("the model's file", model_file.baked_patches(model)),
    ):
        for record in records:
            strength = float(record.get("strength", 1.0))
            if strength:
                found.append(Source(where, (record,), "", strength, True))
    return found


def refuse_on_model(model: Model, patch: UnlearnPatch, match: Match) -> None:
    """Raises UnlearnError where a MODEL has the patch, or another for its concepts, already.

    A patch that is made on such a model would forget only what is left.
    """
    source = Source("the patch", patch.provenance, patch.digest, 1.0, False)
    where, names = "its own weights", _named(source)
    if not match.baked:
        found = [other for other in _on_model(model) if _common(source, other)]
        if not found:
            return
        where, names = found[0].where, _list(name for _, name in _common(source, found[0]))
    raise UnlearnError(
        f"The input 'model' forgets {names} already ({where}); connect the model without it."
    )


def _why_left_out(source: Source, others: Sequence[Source], match: Match) -> str:
    """A sentence why a patch is left out in favour of the others, '' where it is not."""
    called = f"Left out: {source.where} ({_named(source)}), "
    if match.baked >= tuning.BAKED_WHOLE:
        return f"{called}which is in the model's own weights already."
    for other in others:
        if _identical(source, other):
            return f"{called}which is the same patch as {other.where}."
    on_model = _made_alike(source, [other for other in others if other.fixed])
    if on_model:
        return f"{called}which is on {on_model} already."
    needed = _forms(source)
    covering = [other for other in others if _common(source, other)]
    had = {
        (kind, form)
        for other in covering
        for kind, _, names in _forms(other)
        for form in _all(names)
    }
    if not needed or not all(
        any((kind, form) in had for form in name) for kind, _, names in needed for name in names
    ):
        return ""
    by = " and ".join(dict.fromkeys(other.where for other in covering))
    return f"{called}whose concepts are all forgotten by {by}."


def _made_alike(source: Source, fixed: Sequence[Source]) -> str:
    """Where patches on the model are that were made as all of this one was, or ''."""
    records = [_recipe(other.records[0]) for other in fixed]
    if not source.records or not all(_recipe(record) in records for record in source.records):
        return ""
    return fixed[records.index(_recipe(source.records[0]))].where


def _recipe(record: Mapping) -> dict:
    """A provenance as JSON has it, without the strength it was applied at."""
    plain = json.loads(json.dumps(record, default=str))
    return {name: value for name, value in plain.items() if name != "strength"}


def _identical(a: Source, b: Source) -> bool:
    return bool(a.digest) and a.digest == b.digest


def _forms(source: Source) -> list[tuple[str, str, Names]]:
    """(method, name, all its names) of each concept that a source forgets."""
    found = []
    for record in source.records:
        for name, names in concepts_on_record(record).items():
            found.append((family(record), name, names))
    return found


def _all(names: Names) -> frozenset[str]:
    return frozenset().union(*names)


def _common(a: Source, b: Source) -> list[tuple[str, str]]:
    """(method, name) of each concept of `a` that `b` forgets too, with the same method.

    A patch that was made on a model which had the other one on it forgets what that one left.
    """
    found = []
    for record in a.records:
        for other in b.records:
            if family(record) != family(other) or _follows(record, other, b):
                continue
            if _follows(other, record, a):
                continue
            theirs = frozenset().union(*map(_all, concepts_on_record(other).values()))
            for name, names in concepts_on_record(record).items():
                if _all(names) & theirs:
                    found.append((family(record), name))
    return list(dict.fromkeys(found))


def _follows(record: Mapping, earlier: Mapping, source: Source) -> bool:
    """Whether a patch was made on a model that had the earlier one on it already."""
    seen = record.get("on_model") or ()
    return any(
        isinstance(part, Mapping)
        and part.get("method") == earlier["method"]
        and list(part.get("lines") or ()) == list(earlier.get("lines") or earlier["concepts"])
        for part in seen
    )


def _warnings(sources: Sequence[Source]) -> list[Warn]:
    """A warning for each two sources that together act more than once on a concept."""
    found = []
    for i, later in enumerate(sources):
        for earlier in sources[:i]:
            if later.fixed or later.strength + earlier.strength <= 1 + 1e-6:
                continue
            same = _identical(later, earlier)
            common = [c[:2] for c in _forms(later)] if same else _common(later, earlier)
            if same or common:
                found.append(_sentence(later.where, earlier.where, common, same))
    return found


def _sentence(later: str, earlier: str, common: Sequence[tuple[str, str]], same: bool) -> Warn:
    """A warning; common: (method, name) of each concept that both forget."""
    names = _list(name for _, name in common) or "What is in the patch"
    are = "are" if len(common) > 1 else "is"
    names += f" {are}"
    listed = wording.names((name for _, name in common), quotes=True)
    short = f"{listed or 'What is in the patch'} {are} forgotten twice."
    harm = "what is drawn instead is likely lost too"
    if common and all(method == FIA for method, _ in common):
        harm = "more may be pruned than was meant"
    if same:
        return Warn(
            short,
            f"{names} forgotten twice, because {later} is the same patch as {earlier}, and "
            f"{harm}; take one out, or set 'repeated' to 'once'.",
        )
    return Warn(
        short,
        f"{names} forgotten twice, by {earlier} and by {later}, and {harm}; take it out of one, "
        "or set 'repeated' to 'once', which leaves out patches that the others cover.",
    )


def _named(source: Source) -> str:
    return _list(name for _, name, _ in _forms(source)) or "no concepts on record"


def _list(names: Iterable[str]) -> str:
    found = [f"'{short(name)}'" for name in dict.fromkeys(names)]
    return ", ".join(found[:8]) + " ..." * (len(found) > 8)
