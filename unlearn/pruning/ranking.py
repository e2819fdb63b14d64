"""From saliency to rankings: the strongest connections of each layer for each concept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..files import raw_statistics
from ..host import memory, weights
from ..host.model_types import Model
from ..types import ActivationStats, Concept, Group, Ranking
from . import tuning

Gathered = Mapping[Group, ActivationStats]


def ranking(a: torch.Tensor, ceiling: float, room: torch.Tensor | None = None) -> Ranking:
    """The Ranking of a layer's saliency A [c_out, c_in]: its top share `ceiling`, and its sums.

    room: where the indices go, int32, at least `ceiling` of the entries. Indices that stay between
    the large arrays of one layer and the next would tear the memory apart that those leave.
    """
    indices, values = fia.strongest(a, ceiling)
    peak = float(values[0]) if len(values) else 0.0
    kept = indices.cpu() if room is None else room[: len(indices)].copy_(indices)
    return Ranking(kept, a.sum(1).cpu(), a.sum(0).cpu(), peak)


def room_for(layers: Sequence[tuple[str, int, int]], ceiling: float) -> tuple[torch.Tensor, ...]:
    """Room for the indices of every layer, int32, in one block of memory."""
    sizes = [int(ceiling * c_out * c_in) for _, c_out, c_in in layers]
    return torch.empty(sum(sizes), dtype=torch.int32).split(sizes)


def rank(
    model: Model,
    layers: Sequence[tuple[str, int, int]],
    concepts: Sequence[Concept],
    gathered: Gathered,
    settings: Mapping[str, Any],
) -> tuple[tuple[Ranking, ...], ...]:
    """Rankings [concept][layer] from kept statistics: vectors (`wanda`) or raw files (`paper`).

    Raises UnlearnError when the statistics of a group were not kept, or its files are missing.
    """
    found: list[list[Ranking]] = [[] for _ in concepts]
    first_column = 0
    for layer, (key, _, c_in) in enumerate(layers):
        w = weights.read(model, key)
        columns = slice(first_column, first_column + c_in)
        for start in range(0, len(concepts), tuning.RANKED_AT_ONCE):
            some = concepts[start : start + tuning.RANKED_AT_ONCE]
            saliency = _layer_saliency(w, layer, columns, some, gathered, settings)
            for into, a in zip(found[start:], saliency, strict=False):
                into.append(ranking(a, settings["ceiling"]))
        first_column += c_in
    return tuple(map(tuple, found))


def _layer_saliency(
    w: torch.Tensor,
    layer: int,
    columns: slice,
    concepts: Sequence[Concept],
    gathered: Gathered,
    settings: Mapping[str, Any],
) -> list[torch.Tensor]:
    """A [c_out, c_in] of one layer with weight w for each of some concepts."""
    sums = [fia.SaliencyAccumulator(w.shape, steps=settings["window"]) for _ in concepts]
    for step in range(settings["window"]):
        memory.raise_if_cancelled()
        bounds = {}
        for kind in {c.kind for c in concepts}:
            bounds[kind] = _moments(gathered, Group(kind), step, layer, columns).bound()
        for concept, accumulator in zip(concepts, sums, strict=True):
            group = Group(concept.kind, concept.name)
            mean = _moments(gathered, group, step, layer, columns).mean
            accumulator.add(fia.contrast(w, mean, bounds[concept.kind]), settings["r1"])
    return [accumulator.saliency(settings["scale"]) for accumulator in sums]


def _moments(
    gathered: Gathered, group: Group, step: int, layer: int, columns: slice
) -> fia.RunningMoments:
    """The moments of a group in one layer at one step; columns: the layer's part of the vectors."""
    part = gathered[group]
    if part.mean is not None:
        m2 = part.m2[step, columns] if part.m2 is not None else None
        return fia.RunningMoments(part.mean[step, columns], m2, len(part.prompts))
    if not part.folders:
        raise statistics_missing(group)
    return raw_statistics.read_raw(part.folders, group, step, layer)


def statistics_missing(group: Group) -> UnlearnError:
    """The error for statistics that are needed for a merge, but were not kept."""
    return UnlearnError(
        f"The statistics of '{group.title}' were not kept; measure with score 'wanda', "
        "or with 'paper' and a name for raw statistics."
    )
