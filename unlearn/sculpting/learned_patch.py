"""What was learned, as a patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch

from .. import provenance
from ..host import patching, weights
from ..host.adapters import Delta, LowRank
from ..host.architectures import Layer
from ..host.training_network import Network
from ..types import ConceptSet, UnlearnPatch
from . import tuning
from .report import MatrixChange, Outcome
from .settings import TrainingSettings


class Origin(NamedTuple):
    """What a patch was trained from; it goes into the patch's provenance."""

    concepts: ConceptSet
    settings: TrainingSettings
    templates: tuple[str, ...] | None
    images: int = 0  # the artist's own pictures
    clip_layer: Mapping[str, int] = {}  # what `text_encoding.clip_layer` says of the CLIP


@torch.no_grad()
def learned_patch(network: Network, chosen: Sequence[Layer], origin: Origin) -> Outcome:
    """The patch with the change of every trained matrix, stacked on the earlier patch if any."""
    edits, changes = [], []
    lost, total = 0.0, 1e-30  # squared norms
    rank = origin.settings.low_rank
    for layer in chosen:
        start = network.start(layer.key)
        delta = network.trainable[layer.key].detach() - start
        moved = float((delta != 0).float().mean())
        changes.append(MatrixChange(layer.label, float(delta.norm() / start.norm()), moved))
        if not delta.any():
            continue
        if not rank:
            edits.append((layer.key, Delta.of(delta.half())))
            continue
        u, sigma, v = torch.linalg.svd(delta, full_matrices=False)
        lost += float(sigma[rank:].square().sum())
        total += float(sigma.square().sum())
        edit = LowRank.of((u[:, :rank] * sigma[:rank]).half(), v[:rank].half())
        edits.append((layer.key, edit))
    keys = [layer.key for layer in chosen]
    patch = UnlearnPatch(
        tuple(edits),
        weights.fingerprint(network.model, keys),
        (_provenance(origin, patching.manifest(network.model)),),
    )
    if network.earlier is not None:
        patch = network.earlier + patch
    return Outcome(patch, tuple(changes), (lost / total) ** 0.5)


def _provenance(origin: Origin, on_model: Sequence[Mapping]) -> dict:
    settings = {**asdict(origin.settings), "templates": origin.templates}
    if origin.images:
        settings["images"] = origin.images
    method = f"{provenance.SCULPTING} {origin.settings.variant}"
    record = provenance.record(method, settings, origin.concepts, tuning.IN_PROVENANCE, on_model)
    return record | dict(origin.clip_layer)
