"""FIA's masks and the patch that prunes them.

A mask says which connections each concept needs. Connections that most concepts need are left out.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from ...kernels import fia
from .. import provenance
from ..analysis.report import layer_label
from ..concepts.notation import split_lines
from ..concepts.pasted import name_of
from ..errors import UnlearnError, quoted
from ..host import architectures
from ..host.adapters import Prune
from ..types import Concept, ConceptSet, Ranking, SaliencyMap, UnlearnPatch
from . import report, tuning
from .report import MaskSummary
from .runs import RUNS, runs
from .settings import GRANULARITIES, MASK_DEFAULTS, MaskSettings

DEFAULTS = MASK_DEFAULTS
_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


class Choice(NamedTuple):
    """What one concept may choose: its rankings of all layers, and its share of each layer."""

    concept: Concept
    rankings: tuple[Ranking, ...]
    share: float


class LayerMask(NamedTuple):
    """The fused mask of one layer, over entries: connections, hidden units or rows.

    mask: bool [entries], what is pruned. own: int64 [concepts, 2], how many entries each concept
    chose, and how many of these are pruned. common: int64 [concepts, concepts], how many entries
    each two of them chose. pruned, kept: how many entries are pruned, and how many are kept
    because most concepts chose them.
    """

    mask: torch.Tensor
    own: torch.Tensor
    common: torch.Tensor | None
    pruned: int
    kept: int


def shares(text: str, concepts: Sequence[Concept]) -> dict[str, float]:
    """Concept name -> r2 from lines such as `van gogh = 3%` or `cat = 0.02`.

    Raises UnlearnError on a line that names no concept or has no share above 0 and up to 1.
    """
    names = [c.name for c in concepts]
    found = {}
    for line in split_lines(text):
        said, _, value = (part.strip() for part in line.rpartition("="))
        name = _read(said, names)
        if name not in names:
            raise UnlearnError(
                f"The line {quoted(line)} of 'per_concept' names no concept of the saliency "
                f"({quoted(', '.join(names))[1:-1]}); write 'name = 2%'."
            )
        number = _SHARE.fullmatch(value)
        share = float(number[1]) / (100 if number[2] else 1) if number else 0.0
        if not 0 < share <= 1:
            raise UnlearnError(
                f"The line {quoted(line)} of 'per_concept' has no share above 0 and up to 100%; "
                "write 'name = 2%'."
            )
        found[name] = share
    return found


def _read(said: str, names: Sequence[str]) -> str:
    """The one of `names` that is meant, as the forget list reads it; `said` where none is."""
    if said in names:
        return said
    with contextlib.suppress(UnlearnError):
        said = name_of(said)
    folded = {name.casefold(): name for name in names}
    return folded.get(said.casefold(), said)


def fuse(
    maps: Sequence[SaliencyMap], per_concept: str = "", **settings: Any
) -> tuple[UnlearnPatch, torch.Tensor, str]:
    """(UnlearnPatch of `prune` edits, report IMAGE, report text) from SaliencyMaps.

    settings: fields of MaskSettings. Each concept chooses its share of a layer: r2 times its
    weight, or its own share from the lines `per_concept`. What at least ceil(alpha C) of the C
    concepts choose is concept-agnostic and stays (equation 8). Raises UnlearnError where maps do
    not go together, or nothing is left to prune.
    """
    chosen = MaskSettings(**settings)
    _check_together(maps)
    own_shares = shares(per_concept, [c for found in maps for c in found.concepts])
    choices, cut_to_ceiling = _choices(maps, own_shares, chosen)
    summary = MaskSummary([c.concept.name for c in choices], over_ceiling=cut_to_ceiling)
    edits = []
    for i in _layers(maps[0].layers, chosen):
        key, c_out, c_in = maps[0].layers[i]
        layer = _fuse_layer([(c.rankings[i], c.share) for c in choices], (c_out, c_in), chosen)
        summary.add(layer_label(key), c_out * c_in, layer)
        if layer.pruned:
            edits.append((key, _edit(layer.mask, c_out, c_in, chosen.granularity)))
    if not edits:
        raise UnlearnError(
            "The saliency leaves nothing to prune; raise 'r2' or 'alpha', "
            "or measure more prompts (see the report of Concept Saliency)."
        )
    record = _provenance(maps, choices, own_shares, asdict(chosen))
    patch = UnlearnPatch(tuple(edits), maps[0].fingerprint, (record,))
    text = report.mask_text(summary, len(edits), patch.nbytes, chosen.alpha)
    return patch, report.mask_picture(summary), text


def _check_together(maps: Sequence[SaliencyMap]) -> None:
    """Raises UnlearnError where maps are of different models or share a concept."""
    for other in maps[1:]:
        if not maps[0].same_model(other):
            raise UnlearnError(
                "The inputs under 'saliency' are of different models; "
                "measure them all on the same checkpoint."
            )
    names = [c.name for found in maps for c in found.concepts]
    for name in names:
        if names.count(name) > 1:
            raise UnlearnError(
                f"'{name}' stands in two inputs under 'saliency'; "
                "join them with Merge Concept Saliency."
            )


def _choices(
    maps: Sequence[SaliencyMap], own_shares: Mapping[str, float], settings: MaskSettings
) -> tuple[list[Choice], list[str]]:
    """Every concept's Choice, and the names whose share was cut to the saliency's ceiling."""
    choices, cut = [], []
    for found in maps:
        # Rows and columns are chosen from the sums of all connections, which have no ceiling.
        largest = found.ceiling if settings.granularity == "connection" else 1.0
        for concept, rankings in zip(found.concepts, found.rankings, strict=True):
            share = own_shares.get(concept.name, settings.r2 * concept.weight)
            if settings.granularity == "connection" and share > largest:
                cut.append(concept.name)
            choices.append(Choice(concept, rankings, min(share, largest)))
    return choices, cut


def _layers(layers: Sequence[tuple[str, int, int]], settings: MaskSettings) -> list[int]:
    """Numbers of the layers that the filter leaves; raises UnlearnError when it leaves none."""
    parts = settings.parts.split(" + ")
    last = max(1, len(layers) - 1)
    left = []
    for i, (key, *_) in enumerate(layers):
        in_part = parts == ["all"] or architectures.part(key) in parts
        if in_part and settings.from_depth <= i / last <= settings.to_depth:
            left.append(i)
    if not left:
        raise UnlearnError(
            "The filter 'parts', 'from_depth', 'to_depth' leaves no layer; widen it."
        )
    return left


def _fuse_layer(
    rankings: Sequence[tuple[Ranking, float]], shape: tuple[int, int], settings: MaskSettings
) -> LayerMask:
    """The fused mask of a layer of shape (c_out, c_in) from each concept's ranking and share."""
    c_out, c_in = shape
    size = {"connection": c_out * c_in, "neuron": c_in, "row": c_out}[settings.granularity]
    chosen = [_chosen(ranking, shape, share, settings.granularity) for ranking, share in rankings]
    entries, who, agnostic = fia.fuse(chosen, settings.alpha)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[entries[~agnostic]] = True
    own = torch.stack([who.sum(1), (who & ~agnostic).sum(1)], 1)
    common = None
    if len(rankings) <= tuning.MOST_PAIRED:
        common = (who.float() @ who.float().T).long()
    return LayerMask(mask, own, common, int((~agnostic).sum()), int(agnostic.sum()))


def _chosen(
    ranking: Ranking, shape: tuple[int, int], share: float, granularity: str
) -> torch.Tensor:
    """Indices of the entries that one concept chooses in one layer."""
    if granularity == "connection":
        return fia.select_connections(ranking.indices, *shape, share)
    return fia.select_units(ranking.columns if granularity == "neuron" else ranking.rows, share)


def _edit(mask: torch.Tensor, c_out: int, c_in: int, granularity: str) -> Prune:
    if granularity == "connection":
        mask = mask.view(c_out, c_in)
    return Prune.of(mask, c_out, c_in, GRANULARITIES[granularity])


def _provenance(
    maps: Sequence[SaliencyMap],
    choices: Sequence[Choice],
    own_shares: Mapping[str, float],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    recorded = {**settings, "per_concept": dict(own_shares), "saliency": maps[0].settings}
    measured = runs(maps)
    if measured:
        recorded[RUNS] = measured
    concepts = ConceptSet(tuple(choice.concept for choice in choices))
    return provenance.record(provenance.FIA, recorded, concepts, tuning.IN_PROVENANCE)
