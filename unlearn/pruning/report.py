"""What Concept Saliency and Fuse Neuron Masks report, in words and as a picture."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .. import wording
from ..analysis import charts
from ..types import SaliencyMap
from ..wording import Findings
from . import tuning

if TYPE_CHECKING:
    from .masks import LayerMask


@dataclass
class MaskSummary:
    """Counts over all layers of what concepts chose and what is pruned.

    names: of the concepts. over_ceiling: names whose share was cut to the saliency's ceiling.
    layer_shares: (label, pruned share) of each layer. own, common: as in LayerMask, summed over
    layers. pruned, kept, candidates: weights that are pruned, kept for all concepts, and looked at.
    """

    names: Sequence[str]
    over_ceiling: Sequence[str] = ()
    layer_shares: list[tuple[str, float]] = field(default_factory=list)
    pruned: int = 0
    kept: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        n = len(self.names)
        self.own = torch.zeros(n, 2, dtype=torch.long)
        self.common = torch.zeros(n, n, dtype=torch.long)

    def add(self, label: str, weights: int, layer: "LayerMask") -> None:
        """Adds a layer with this many weights."""
        entries = len(layer.mask)
        weights_each = weights // entries
        self.layer_shares.append((label, layer.pruned / entries))
        self.pruned += layer.pruned * weights_each
        self.kept += layer.kept * weights_each
        self.candidates += weights
        self.own += layer.own
        if layer.common is not None:
            self.common += layer.common

    @property
    def kept_share(self) -> float:
        """How much of all that was chosen is kept, because most concepts chose it."""
        return self.kept / max(1, self.kept + self.pruned)

    def overlaps(self) -> list[tuple[str, float]]:
        """(text, share) of the pairs of concepts that have the most choices in common.

        The share is that of the common choices in all choices of both.
        """
        found = []
        for a, b in itertools.combinations(range(len(self.names)), 2):
            common = int(self.common[a, b])
            both = int(self.own[a, 0] + self.own[b, 0]) - common
            found.append((f"{self.names[a]} & {self.names[b]}", common / max(1, both)))
        return sorted(found, key=lambda pair: -pair[1])[: tuning.CHART_PAIRS]


def saliency_text(
    found: SaliencyMap, calls: int, groups: int, seconds: float, memory_note: str = ""
) -> str:
    """The report of a measurement.

    calls: UNet calls. groups: groups of prompts. memory_note: a sentence about memory, or ''.
    """
    told = Findings()
    told.details.append(
        f"Saliency of {len(found.concepts)} concept{'s' * (len(found.concepts) > 1)} in "
        f"{len(found.layers)} layers, score {found.settings['score']}: {groups} groups x "
        f"{found.settings['prompts']} prompts x {found.settings['window']} steps = {calls} "
        f"UNet calls, {seconds:.0f} s."
    )
    if memory_note:
        told.details.append(memory_note)
    nowhere = [
        concept.name
        for concept, parts in zip(found.concepts, found.rankings, strict=True)
        if not any(len(part.indices) for part in parts)
    ]
    for name in nowhere:
        told.warn(
            f"'{wording.name(name)}' stands out nowhere.",
            f"Check the spelling of '{name}', or use more prompts and contexts that differ from "
            "it.",
        )
    if nowhere:
        told.advice.append("Try: raise 'prompts' of Concept Saliency (FIA).")
    told.advice.append("Next: connect the saliency to Fuse Neuron Masks.")
    measured = [concept.name for concept in found.concepts if concept.name not in nowhere]
    words = [
        wording.sentence(f"{wording.names(names)} {said}")
        for names, said in ((nowhere, "not found in the model"), (measured, "measured"))
        if names
    ]
    return told.report(" ".join(words))


def mask_picture(summary: MaskSummary) -> torch.Tensor:
    """IMAGE [1, H, W, 3] of bar charts: layers, concepts, and what concepts have in common."""
    top = max(share for _, share in summary.layer_shares) or 1
    layers = [
        (label, share / top, f"{share:.2%}", charts.NEUTRAL)
        for label, share in summary.layer_shares
    ]
    concepts = []
    for name, (chosen, pruned) in zip(summary.names, summary.own.tolist(), strict=True):
        share = pruned / max(1, chosen)
        concepts.append((name, share, f"{share:.0%} of {chosen:,}", charts.GOOD))
    sections = [
        ("What each concept chose: how much of it is pruned", concepts[: tuning.CHART_CONCEPTS])
    ]
    if len(summary.names) > 1:
        if len(summary.names) <= tuning.MOST_PAIRED:
            pairs = [(label, x, f"{x:.0%}", charts.NEUTRAL) for label, x in summary.overlaps()]
            sections.append(("Shared by two concepts", pairs))
        share = summary.kept_share
        kept = [("of all that was chosen", share, f"{share:.0%}", charts.GOOD)]
        sections.append(("Serves most concepts, so it is kept", kept))
    sections.append(("Details: pruned share of each layer", layers))
    return charts.bar_charts(mask_verdict(summary), sections)


def mask_verdict(summary: MaskSummary) -> str:
    """What is said of a mask. Nothing was drawn, so it says what was pruned for."""
    hardly = _hardly_pruned(summary)
    pruned = [name for name in summary.names if name not in hardly]
    words = [f"Patch made for {wording.names(pruned)}."] if pruned else []
    if hardly:
        words.append(wording.sentence(f"{wording.names(hardly)} hardly pruned"))
    return " ".join(words)


def mask_text(summary: MaskSummary, layers: int, nbytes: int, alpha: float) -> str:
    """The report of a fused mask; layers, nbytes: of the patch."""
    names = summary.names
    told = Findings()
    told.details.append(
        f"Prunes {summary.pruned:,} of {summary.candidates:,} connections "
        f"({summary.pruned / summary.candidates:.2%}) in {layers} layers for {len(names)} "
        f"concept{'s' * (len(names) > 1)}, {nbytes / 2**20:.2f} MB."
    )
    if len(names) > 1:
        told.details.append(
            f"{summary.kept_share:.0%} of what was chosen serves most concepts and is kept "
            f"(alpha {alpha:g})."
        )
    _warn(summary, told)
    ready = "Next: connect the patch to Apply Unlearn Patch."
    told.advice.insert(len(told.advice) if told.warnings else 0, ready)
    told.details.append("r2 and alpha can be changed without measuring again.")
    return told.report(mask_verdict(summary))


def _hardly_pruned(summary: MaskSummary) -> list[str]:
    """Concepts of which hardly anything that they chose is pruned."""
    return [
        name
        for name, (chosen, pruned) in zip(summary.names, summary.own.tolist(), strict=True)
        if chosen and pruned < tuning.HARDLY_PRUNED * chosen
    ]


def _warn(summary: MaskSummary, told: Findings) -> None:
    """Adds the warnings of a mask, and what to do."""
    if summary.pruned > tuning.MUCH_PRUNED * summary.candidates:
        told.warn(
            "Much is pruned; expect damage.",
            "More than a tenth is pruned; expect damage, and lower 'r2'.",
        )
        told.advice.append("Try: lower 'r2' of Fuse Neuron Masks (FIA).")
    for name in _hardly_pruned(summary):
        told.warn(
            f"Hardly anything of '{wording.name(name)}' is pruned.",
            f"Hardly anything of '{name}' is pruned; raise 'alpha' (1.01 prunes all that was "
            "chosen).",
        )
        told.advice.append("Try: raise 'alpha' of Fuse Neuron Masks (FIA) to 1.01.")
    if 1 < len(summary.names) <= tuning.MOST_PAIRED:
        label, share = summary.overlaps()[0]
        if share > tuning.ALIKE:
            pair = wording.names(label.split(" & ", 1), quotes=True)
            told.warn(
                f"{pair} can hardly be told apart.",
                f"{label} share {share:.0%} of their connections and can hardly be told apart; try "
                "more contexts.",
            )
            told.advice.append("Try: add lines to 'contexts' of Concept Saliency (FIA).")
    if summary.over_ceiling:
        told.warn(
            f"Less of {wording.names(summary.over_ceiling, quotes=True)} was pruned than asked.",
            f"The share of {', '.join(summary.over_ceiling)} was cut to the saliency's ceiling; "
            "measure with a higher 'ceiling'.",
        )
        told.advice.append("Try: raise 'ceiling' of Concept Saliency (FIA).")
