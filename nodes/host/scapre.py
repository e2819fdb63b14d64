"""ScaPre on a ComfyUI model: statistics once, one eigendecomposition, then a matrix product per layer."""

import torch

from ...kernels import informax
from ...kernels import scapre as kernel
from ..concept_text import format_concept
from ..errors import UnlearnError
from ..types import UnlearnPatch
from ..version import VERSION
from . import prompts, report, statistics, weights
from .adapters import LowRank
from .layers import cross_attention
from .progress import Progress

# overshoot, measured: at 0 some unseen sentences still draw the concept, above 0.6 kept things suffer
DEFAULTS = {"erase": 100.0, "preserve": 1.0, "anchor": 0.05, "spectral": 0.0, "informax": False, "overshoot": 0.3}
ENERGY = 1 - 1e-6  # of the erased signal that the patch's rank carries


def solve(model, clip, concepts, templates=None, *, tokens="all", target="difference", prior=True, node_id=None, **settings):
    """(UnlearnPatch, report IMAGE, report text) for a ConceptSet; settings as in DEFAULTS. The model and clip are not changed.

    Raises UnlearnError on a model without cross-attention, a CLIP of another width, NaN in weights, or text that cannot be used.
    """
    settings = {**DEFAULTS, **settings}
    layers = cross_attention(model)
    width = weights.shape(model, layers[0].key)[1]
    plan = statistics.plan(clip, concepts, templates, prior)
    bar = Progress(len(plan.texts) + len(layers), node_id)
    states = prompts.encode(clip, plan.texts, bar)
    found = next(iter(states.values())).shape[-1]
    if found != width:
        raise UnlearnError(
            f"The input 'clip' gives states of width {found} and the model reads width {width}; connect the CLIP of the same checkpoint."
        )
    stats = statistics.measure(plan, states, tokens, target, settings["overshoot"])
    mu, v = anchored_components(stats, settings)
    tv, down = stats.move @ v, v.T.float().contiguous()

    edits, changes, left = [], [], torch.zeros(len(stats.names), 2, dtype=torch.float64)
    moved, held = 0.0, 0.0
    for layer in layers:
        w0 = weights.read(model, layer.key)
        m = informax.printed(stats.positive @ w0.T, stats.negative @ w0.T) if settings["informax"] else None
        up = kernel.anchored_up(w0, tv, mu, settings["erase"], m)
        edits.append((layer.key, LowRank.of(up, down)))
        delta = up @ down
        changes.append((layer.label, float(delta.norm() / w0.norm())))
        before = w0.double() @ stats.concepts
        left[:, 0] += (before * (before + delta.double() @ stats.concepts)).sum(0)
        left[:, 1] += before.square().sum(0)
        moved += float(torch.einsum("ij,jk,ik->", delta.double(), stats.keep, delta.double()))
        held += float(torch.einsum("ij,jk,ik->", w0.double(), stats.keep, w0.double()))
        bar.step()
    left = (left[:, 0] / left[:, 1].clamp_min(1e-30)).clamp_min(0).tolist()
    drift = (moved / max(held, 1e-30)) ** 0.5
    provenance = {
        "method": "ScaPre anchored",
        "settings": {**settings, "tokens": tokens, "target": target, "prior": prior, "templates": templates},
        "concepts": [c.name for c in concepts.concepts],
        "lines": [format_concept(c) for c in concepts.concepts],
        "keep": list(concepts.keep),
        "version": VERSION,
    }
    patch = UnlearnPatch(tuple(edits), weights.fingerprint(model, [layer.key for layer in layers]), (provenance,))
    return patch, _picture(stats.names, left, changes, drift), _text(stats.names, left, changes, drift, patch, len(mu))


def anchored_components(stats, settings):
    """(mu [r], V [d, r]) of the anchored system for Statistics, cut to the rank that carries ENERGY of the erased signal."""
    p = settings["preserve"] * stats.keep + settings["anchor"] * torch.eye(len(stats.keep), dtype=torch.float64)
    if settings["spectral"]:
        p = p + settings["spectral"] * kernel.spectral_trace(stats.concepts)
    mu, v = kernel.anchored_basis(stats.erase, p)
    rank = kernel.rank_by_energy(mu, settings["erase"], ENERGY)
    return mu[:rank], v[:, :rank]


def _picture(names, left, changes, drift):
    shown = [(n, x, f"{x:.0%} left", report.GOOD if x < 0.3 else report.BAD) for n, x in list(zip(names, left, strict=True))[:24]]
    top = max([c for _, c in changes] + [1e-9])
    layers = [(label, c / top, f"{c:.2%}", report.NEUTRAL) for label, c in changes[:40]]
    kept = [("everything kept", drift, f"{drift:.1%} moved", report.GOOD if drift < 0.1 else report.BAD)]
    return report.bar_charts(
        "ScaPre Solve",
        [("What each concept still adds to keys and values", shown), ("Kept prompts", kept), ("Change of each layer's weights", layers)],
    )


def _text(names, left, changes, drift, patch, rank):
    worst = max(zip(left, names, strict=True))
    lines = [
        f"Forgets {len(names)} concept{'s' * (len(names) > 1)} in {len(changes)} layers, rank {rank}, {patch.nbytes / 2**20:.2f} MB.",
        f"What the concepts add to keys and values is cut to {sum(left) / len(left):.0%} on average "
        f"(most left: {worst[1]}, {worst[0]:.0%}).",
        f"Kept prompts move by {drift:.1%}.",
    ]
    if worst[0] > 0.5:
        lines.append(f"WARNING: '{worst[1]}' is hardly touched; raise 'erase' or lower 'preserve'.")
    if drift > 0.1:
        lines.append("WARNING: kept prompts move a lot; raise 'preserve', lower 'erase', or list what you care about under 'keep'.")
    return "\n".join([*lines, "Next: connect the patch to Apply Unlearn Patch and compare pictures with the same seed."])
