"""From a variant's LayerEdit to the low-rank edits of a patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..analysis.forecast import WeightGrams
from ..errors import UnlearnError
from ..host.adapters import LowRank
from . import tuning
from .layer_edit import LayerEdit
from .layer_weights import LayerWeights

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class PatchEdits:
    """The edits of a patch, and what they do.

    edits: (weight key, edit); changes: (layer label, relative change of its weights); grams: of
    the layers after the edit; lost: the share of the signal that cutting the rank gave up.
    """

    edits: tuple[tuple[str, LowRank], ...]
    changes: tuple[tuple[str, float], ...]
    grams: WeightGrams
    lost: float

    @property
    def rank(self) -> int:
        """The rank that all keys and values share."""
        return self.edits[0][1].weights[1].shape[0]

    def retention(self, concepts: torch.Tensor) -> torch.Tensor:
        """The share that is left, 0 or more, of the outputs for each column of concepts [d, m]."""
        whole = ((self.grams.before @ concepts) * concepts).sum(0).clamp_min(1e-30)
        return (((self.grams.cross @ concepts) * concepts).sum(0) / whole).clamp_min(0)


def together(parts: Sequence[PatchEdits]) -> PatchEdits:
    """The edits of all groups of layers, with the Gram matrices of the first group.

    The changes of the other groups come first, so that a report that shows some shows them.
    """
    changes = [change for part in (*parts[1:], parts[0]) for change in part.changes]
    edits = [edit for part in parts for edit in part.edits]
    lost = max(part.lost for part in parts)
    return PatchEdits(tuple(edits), tuple(changes), parts[0].grams, lost)


def build(
    layers: LayerWeights,
    edit: LayerEdit,
    grams: WeightGrams,
    step: Callable[[], None] = lambda: None,
) -> PatchEdits:
    """The PatchEdits of a LayerEdit. grams: of the layers before it; step: called for each layer.

    Raises UnlearnError where the edit is not finite.
    """
    factors, changes = [], []  # factors: of each layer up [d_out, r], or the change itself
    mixed = square = torch.zeros((), dtype=torch.float64)  # sum W0^T F and sum F^T F, F a factor
    for layer, w0 in layers:
        factor, delta = _change(edit, w0)
        if not torch.isfinite(delta).all():
            raise UnlearnError(
                "The solve gave numbers that are not finite; raise 'anchor', lower 'erase', or "
                "list less under 'keep'."
            )
        sampled = grams.rows(factor).float()
        mixed = mixed + (grams.rows(w0).T @ sampled).double()
        square = square + (sampled.T @ sampled).double()
        factors.append(factor)
        changes.append((layer.label, float(delta.norm() / w0.norm())))
        step()
    if edit.down is None:
        ups, down, lost = cut(factors)
        ups = [up.half() for up in ups]
    else:
        ups, down, lost = factors, edit.down, edit.lost
        wide = down.double()
        mixed, square = mixed @ wide, wide.T @ square @ wide
    if layers.basis is not None:  # from its coordinates back to the layers' own
        down = (down.float() @ layers.basis.T).contiguous()
    edits = tuple(
        (layer.key, LowRank.of(up, layers.whole(layer, down)))
        for layer, up in zip(layers.layers, ups, strict=True)
    )
    return PatchEdits(edits, tuple(changes), grams.after_edit(mixed, square), lost)


def _change(edit: LayerEdit, w0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is kept of a layer's change, the change [d_out, d] float32).

    A low-rank edit keeps its factor `up` as the patch stores it, a dense one the change itself.
    """
    if edit.up is not None and edit.down is not None:
        up = edit.up(w0).half()
        return up, up.float() @ edit.down
    if edit.delta is None:
        raise ValueError("a LayerEdit has either up and down, or delta")
    delta = edit.delta(w0).float()
    return delta, delta


def cut(
    deltas: Sequence[torch.Tensor], energy: float = tuning.DENSE_ENERGY
) -> tuple[list[torch.Tensor], torch.Tensor, float]:
    """(ups [d_out, r], down [r, d], lost) of the dense changes [d_out, d] of all layers.

    `down` is one basis of all their rows that carries `energy` of the sum of their squares; lost
    is the share that was given up.
    """
    width = deltas[0].shape[1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for delta in deltas:
        total += (delta.float().T @ delta.float()).double()
    values, vectors = torch.linalg.eigh(total)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if float(values.sum()) <= 0:
        return [torch.zeros(len(delta), 0) for delta in deltas], torch.zeros(0, width), 0.0
    rank = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
    down = vectors[:, :rank].T.float().contiguous()
    lost = float(values[rank:].sum() / values.sum())
    return [delta.float() @ down.T for delta in deltas], down, lost
