"""Several saliency maps of one model as one."""

from collections.abc import Sequence

from ...kernels import fia
from ..errors import UnlearnError
from ..host.model_types import Model
from ..types import ActivationStats, Concept, Group, Ranking, SaliencyMap
from .ranking import rank, statistics_missing

# Settings that maps must share, for else their statistics are of different things.
MEASURED_ALIKE = ("score", "steps", "window", "cfg", "size", "halves")


def merge(maps: Sequence[SaliencyMap], model: Model | None = None) -> SaliencyMap:
    """One SaliencyMap of several.

    A concept that is in one map only is taken as it is. The statistics of a concept that is in
    several, measured with different prompts, are merged exactly and ranked again. The MODEL is
    needed for that. Raises UnlearnError where maps are of different models or were measured
    differently, share some prompts, or have no statistics to merge.
    """
    first = maps[0]
    _check_alike(maps)
    holders = _holders(maps)
    concepts = [held[0][0] for held in holders]
    rankings = [held[0][1] for held in holders]
    gathered = {}
    for group in dict.fromkeys(group for found in maps for group in found.gathered):
        parts = [found.gathered[group] for found in maps if group in found.gathered]
        gathered[group] = merge_statistics(group, parts)
    again = [i for i, held in enumerate(holders) if len(held) > 1]
    if again:
        if model is None:
            raise UnlearnError(
                f"'{concepts[again[0]].name}' stands in several saliency maps; "
                "connect 'model' to merge their statistics."
            )
        some = [concepts[i] for i in again]
        anew = rank(model, first.layers, some, gathered, first.settings)
        for i, parts in zip(again, anew, strict=True):
            rankings[i] = parts
    return SaliencyMap(
        tuple(concepts),
        first.layers,
        tuple(rankings),
        min(found.ceiling for found in maps),
        first.fingerprint,
        first.settings,
        gathered,
    )


def _check_alike(maps: Sequence[SaliencyMap]) -> None:
    """Raises UnlearnError where maps are of different models or were measured differently."""
    first = maps[0]
    for other in maps[1:]:
        if not first.same_model(other):
            raise UnlearnError(
                "The saliency maps are of different models; "
                "measure them all on the same checkpoint and LoRAs."
            )
        for name in MEASURED_ALIKE:
            if other.settings[name] != first.settings[name]:
                raise UnlearnError(
                    f"The saliency maps were measured with different '{name}' "
                    f"({first.settings[name]} and {other.settings[name]}); measure them alike."
                )


def _holders(
    maps: Sequence[SaliencyMap],
) -> list[list[tuple[Concept, tuple[Ranking, ...]]]]:
    """For each concept name its Concept and rankings in every map that has it."""
    holders: dict[str, list[tuple[Concept, tuple[Ranking, ...]]]] = {}
    for found in maps:
        for concept, parts in zip(found.concepts, found.rankings, strict=True):
            held = holders.setdefault(concept.name, [])
            if held and held[0][0].kind != concept.kind:
                raise UnlearnError(
                    f"'{concept.name}' was measured as {held[0][0].kind} and as {concept.kind}; "
                    "measure it as one kind."
                )
            held.append((concept, parts))
    return list(holders.values())


def merge_statistics(group: Group, parts: Sequence[ActivationStats]) -> ActivationStats:
    """One ActivationStats of several of a group.

    The same prompts count once, and different ones together. Raises UnlearnError where parts share
    some of their prompts, or have no statistics to merge.
    """
    whole = parts[0]
    for part in parts[1:]:
        if set(part.prompts) == set(whole.prompts):
            continue
        if set(part.prompts) & set(whole.prompts):
            raise UnlearnError(
                f"The saliency maps share some prompts of '{group.title}', which would count "
                "twice; measure other prompts ('first' or 'seed')."
            )
        mean = m2 = None
        if whole.mean is not None and part.mean is not None:
            both = fia.RunningMoments(whole.mean, whole.m2, len(whole.prompts)).merge(
                fia.RunningMoments(part.mean, part.m2, len(part.prompts))
            )
            mean, m2 = both.mean, both.m2
        elif not (whole.folders and part.folders):
            raise statistics_missing(group)
        whole = ActivationStats(
            whole.prompts + part.prompts, mean, m2, whole.folders + part.folders
        )
    return whole
