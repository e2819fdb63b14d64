"""From saliency to rankings: the strongest connections of each layer for each concept."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..files import raw_statistics
from ..host import memory, weights
from ..host.model_types import Model
from ..types import ActivationStats, Concept, Group, Ranking
from . import tuning

Gathered = Mapping[Group, ActivationStats]


class Room(NamedTuple):
    """Where the Ranking of a layer goes: indices int32 [k], rows [c_out] and columns [c_in].

    Whatever stays between the large arrays of one layer and those of the next tears the memory
    apart that they leave. So the rooms of all layers are taken before, in one block.
    """

    indices: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def ranking(a: torch.Tensor, ceiling: float, room: Room | None = None) -> Ranking:
    """The Ranking of a layer's saliency A [c_out, c_in]: its top share `ceiling`, and its sums."""
    indices, values = fia.strongest(a, ceiling)
    peak = float(values[0]) if len(values) else 0.0
    if room is None:
        return Ranking(indices.cpu(), a.sum(1).cpu(), a.sum(0).cpu(), peak)
    short = len(indices) < len(room.indices)
    kept = room.indices[: len(indices)] if short else room.indices
    kept.copy_(indices)
    return Ranking(kept, room.rows.copy_(a.sum(1)), room.columns.copy_(a.sum(0)), peak)


def rooms(layers: Sequence[tuple[str, int, int]], ceiling: float) -> list[Room]:
    """The Room of every layer, in two blocks of memory."""
    counts = [int(ceiling * c_out * c_in) for _, c_out, c_in in layers]
    indices = torch.empty(sum(counts), dtype=torch.int32).split(counts)
    sums = torch.empty(sum(c_out + c_in for _, c_out, c_in in layers))
    parts = sums.split([size for _, *shape in layers for size in shape])
    return list(map(Room, indices, parts[::2], parts[1::2]))


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
