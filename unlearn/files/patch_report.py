"""What is in a patch, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .. import wording
from ..host import patch_match
from ..host.adapters import Delta, LowRank, Prune
from ..host.model_types import Model
from ..types import UnlearnPatch
from ..wording import Findings
from . import encoder_parts

NOT_SHOWN = (None, "", [], {})  # settings with these values say nothing


def describe(
    patch: UnlearnPatch, model: Model | None = None, about_file: Sequence[str] = ()
) -> str:
    """Method, concepts, keep list and settings of each patch of the stack, and its edits.

    With a MODEL also whether the patch is for it; raises UnlearnError when the MODEL lacks weights.
    about_file: lines on the file it came from.
    """
    told = Findings()
    names = wording.names(name for p in patch.provenance for name in p.get("concepts", ()))
    verdict = f"This patch forgets {names}." if names else "This patch names no concepts."
    lines = [*about_file]
    for provenance in patch.provenance:
        lines += _origin(provenance)
    lines += _contents(patch)
    weights = len({key for key, _ in patch.edits})
    lines.append(f"{len(patch.edits)} edits of {weights} weights, {patch.nbytes / 2**20:.2f} MB")
    told.details += lines
    of_model, of_encoder = encoder_parts.of_model(patch), encoder_parts.of_encoder(patch)
    if of_encoder is not None:
        told.details.append(
            f"{len(of_encoder.edits)} of the edits are for the text encoder; connect its CLIP to "
            "Apply Unlearn Patch too."
        )
    if model is not None and of_model is not None:
        match = patch_match.match(model, of_model)
        match.tell(told)
        if not told.warnings:
            verdict += " It fits this model."
            told.details.append("It was made for this very model.")
    elif not about_file and of_model is not None:
        told.details.append("Connect a model here to see whether the patch was made for it.")
    told.advice.append("Next: connect the patch to Apply Unlearn Patch.")
    return told.report(verdict)


def _origin(provenance: Mapping) -> list[str]:
    """How one patch of the stack was made."""
    forgets = ", ".join(provenance.get("lines") or provenance["concepts"])
    lines = [
        f"{provenance['method']}, ComfyUI-Unlearn {provenance.get('version', '?')}",
        f"  forgets: {forgets or 'nothing on record'}",
    ]
    if provenance.get("keep"):
        lines.append(f"  keeps: {', '.join(provenance['keep'])}")
    settings = []
    for name, value in (provenance.get("settings") or {}).items():
        if not isinstance(value, dict) and value not in NOT_SHOWN:
            settings.append(f"{name} {value}")
    lines.append(f"  settings: {', '.join(settings)}")
    return lines


def _contents(patch: UnlearnPatch) -> list[str]:
    """How many edits of each kind there are, and how much they change."""
    prunes = [edit for _, edit in patch.edits if isinstance(edit, Prune)]
    low_ranks = [edit for _, edit in patch.edits if isinstance(edit, LowRank)]
    deltas = [edit for _, edit in patch.edits if isinstance(edit, Delta)]
    lines = []
    if prunes:
        cut, total = sum(map(_pruned, prunes)), sum(math.prod(edit.shape) for edit in prunes)
        lines.append(
            f"{len(prunes)} x pruning: {cut:,} of {total:,} connections ({cut / total:.2%})"
        )
    if low_ranks:
        ranks = [edit.weights[0].shape[1] for edit in low_ranks]
        most = f" to {max(ranks)}" if max(ranks) > min(ranks) else ""
        lines.append(f"{len(low_ranks)} x low-rank change: rank {min(ranks)}{most}")
    if deltas:
        changed = sum(len(edit.weights[0]) for edit in deltas)
        total = sum(math.prod(edit.shape) for edit in deltas)
        lines.append(f"{len(deltas)} x change by value: {changed:,} of {total:,} connections")
    return lines


def _pruned(edit: Prune) -> int:
    """How many connections an edit prunes."""
    mask = edit.mask()
    return int(mask.sum()) * (math.prod(edit.shape) // mask.numel())
