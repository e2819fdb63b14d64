"""FIA's masks: which connections each concept needs, which of them every concept needs, and the patch that prunes the rest."""

import itertools
import re

import torch

from ...kernels import fia
from ..analysis import charts
from ..concepts.notation import format_concept
from ..errors import UnlearnError
from ..host.adapters import Prune
from ..types import UnlearnPatch
from ..version import VERSION
from .prompts import lines

DEFAULTS = {
    "r2": 0.01,
    "alpha": 0.6,
    "granularity": "connection",
    "parts": "all",
    "from_depth": 0.0,
    "to_depth": 1.0,
}
GRANULARITY = {"connection": "connection", "neuron": "column", "row": "row"}
MOST_PAIRED = 64  # concepts up to which overlaps are told
PARTS = ("all", "input", "middle", "output", "input + middle", "middle + output")


def shares(text, concepts):
    """Concept name -> r2 from lines such as `van gogh = 3%` or `cat = 0.02`; raises UnlearnError on what cannot be read."""
    found = {}
    for line in lines(text):
        name, _, value = (part.strip() for part in line.rpartition("="))
        number = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", value)
        if name not in {c.name for c in concepts}:
            known = ", ".join(c.name for c in concepts)
            raise UnlearnError(
                f"The line '{line}' of 'per_concept' names no concept of the saliency ({known}); write 'name = 2%'."
            )
        if not number or not 0 < (share := float(number[1]) / (100 if number[2] else 1)) <= 1:
            raise UnlearnError(
                f"The line '{line}' of 'per_concept' has no share above 0 and up to 100%; write 'name = 2%'."
            )
        found[name] = share
    return found


def fuse(maps, per_concept="", **settings):
    """(UnlearnPatch of `prune` edits, report IMAGE, report text) from SaliencyMaps; settings as in DEFAULTS.

    Each concept chooses its share r2 times its weight (or its own share from `per_concept`) of a layer; a choice of at least
    ceil(alpha C) concepts is concept-agnostic and survives (eq 8). Raises UnlearnError where maps do not go together or no layer is left.
    """
    settings = {**DEFAULTS, **settings}
    first = maps[0]
    for other in maps[1:]:
        if (
            other.layers != first.layers
            or first.fingerprint.difference(other.fingerprint) > first.fingerprint.TOLERANCE
        ):
            raise UnlearnError(
                "The inputs under 'saliency' are of different models; measure them all on the same checkpoint."
            )
    concepts = [c for found in maps for c in found.concepts]
    rankings = [r for found in maps for r in found.rankings]
    ceilings = [found.ceiling for found in maps for _ in found.concepts]
    names = [c.name for c in concepts]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UnlearnError(
            f"'{twice}' stands in two inputs under 'saliency'; join them with Merge Concept Saliency."
        )
    wanted = shares(per_concept, concepts)
    r2 = [wanted.get(c.name, settings["r2"] * c.weight) for c in concepts]
    kind = settings["granularity"]
    over = [
        c.name
        for c, share, top in zip(concepts, r2, ceilings, strict=True)
        if kind == "connection" and share > top
    ]
    r2 = [
        min(share, top) if kind == "connection" else min(share, 1.0)
        for share, top in zip(r2, ceilings, strict=True)
    ]

    edits, rows = [], []
    own, pairs = (
        torch.zeros(len(concepts), 2, dtype=torch.long),
        torch.zeros(len(concepts), len(concepts), dtype=torch.long),
    )
    pruned = agnostic = candidates = 0
    for i in _layers(first.layers, settings):
        key, c_out, c_in = first.layers[i]
        chosen = [
            _chosen(parts[i], c_out, c_in, share, kind)
            for parts, share in zip(rankings, r2, strict=True)
        ]
        size = {"connection": c_out * c_in, "neuron": c_in, "row": c_out}[kind]
        entries, who, shared = fia.fuse(chosen, settings["alpha"])
        mask = torch.zeros(size, dtype=torch.bool)
        mask[entries[~shared]] = True
        each = c_out * c_in // size  # weights that one entry stands for
        cut, kept = int((~shared).sum()), int(shared.sum())
        pruned, agnostic, candidates = (
            pruned + cut * each,
            agnostic + kept * each,
            candidates + c_out * c_in,
        )
        rows.append((_label(key), cut / size))
        own += torch.stack([who.sum(1), (who & ~shared).sum(1)], 1)
        if len(concepts) <= MOST_PAIRED:
            pairs += (who.float() @ who.float().T).long()
        if cut:
            edits.append(
                (
                    key,
                    Prune.of(
                        mask.view(c_out, c_in) if kind == "connection" else mask,
                        c_out,
                        c_in,
                        GRANULARITY[kind],
                    ),
                )
            )
    if not edits:
        raise UnlearnError(
            "The saliency leaves nothing to prune; raise 'r2' or 'alpha', or measure more prompts (see the report of Concept Saliency)."
        )
    provenance = {
        "method": "FIA",
        "settings": {**settings, "per_concept": wanted, "saliency": first.settings},
        "concepts": names,
        "lines": [format_concept(c) for c in concepts],
        "keep": [],
        "version": VERSION,
    }
    patch = UnlearnPatch(tuple(edits), first.fingerprint, (provenance,))
    figures = dict(
        names=names,
        rows=rows,
        own=own,
        pairs=pairs,
        pruned=pruned,
        agnostic=agnostic,
        candidates=candidates,
        over=over,
    )
    return patch, _picture(**figures), _text(patch, settings, **figures)


def _layers(layers, settings):
    """Numbers of the layers that the filter leaves; raises UnlearnError when it leaves none."""
    wanted = settings["parts"].split(" + ")
    place = lambda i: i / max(1, len(layers) - 1)
    left = [
        i
        for i, (key, *_) in enumerate(layers)
        if (wanted == ["all"] or any(f".{part}_block" in key for part in wanted))
        and settings["from_depth"] <= place(i) <= settings["to_depth"]
    ]
    if not left:
        raise UnlearnError(
            "The filter 'parts', 'from_depth', 'to_depth' leaves no layer; widen it."
        )
    return left


def _chosen(ranking, c_out, c_in, share, kind):
    if kind == "connection":
        return fia.select_connections(ranking.indices, c_out, c_in, share)
    return fia.select_units(ranking.columns if kind == "neuron" else ranking.rows, share)


def _label(key):
    part, block, depth = re.match(
        r"diffusion_model\.(\w+?)_blocks?\.(\d+)(?:\.\d+)?\.transformer_blocks\.(\d+)", key
    ).groups()
    return f"{part} {block}.{depth}"


def _overlaps(names, own, pairs):
    """(text, share) of the pairs of concepts that share the most: common choices over all of both."""
    found = []
    for a, b in itertools.combinations(range(len(names)), 2):
        common = int(pairs[a, b])
        found.append(
            (f"{names[a]} & {names[b]}", common / max(1, int(own[a, 0] + own[b, 0]) - common))
        )
    return sorted(found, key=lambda x: -x[1])[:12]


def _picture(names, rows, own, pairs, pruned, agnostic, candidates, over):
    top = max(share for _, share in rows) or 1
    sections = [
        (
            "Pruned share of each layer",
            [(label, share / top, f"{share:.2%}", charts.NEUTRAL) for label, share in rows],
        )
    ]
    shown = [
        (
            name,
            cut_off / max(1, chosen),
            f"{cut_off / max(1, chosen):.0%} of {chosen:,}",
            charts.GOOD,
        )
        for name, (chosen, cut_off) in zip(names[:24], own.tolist(), strict=False)
    ]
    sections.append(("What each concept chose: how much of it is pruned", shown))
    if len(names) > 1:
        sections.append(
            (
                "Shared by two concepts",
                [
                    (label, x, f"{x:.0%}", charts.NEUTRAL)
                    for label, x in _overlaps(names, own, pairs)
                ],
            )
        )
        share = agnostic / max(1, agnostic + pruned)
        sections.append(
            (
                "Concept-agnostic, kept",
                [("of all that was chosen", share, f"{share:.0%}", charts.GOOD)],
            )
        )
    return charts.bar_charts("Fuse Neuron Masks", sections)


def _text(patch, settings, names, rows, own, pairs, pruned, agnostic, candidates, over):
    lines = [
        f"Prunes {pruned:,} of {candidates:,} connections ({pruned / candidates:.2%}) in {len(patch.edits)} layers for {len(names)} "
        f"concept{'s' * (len(names) > 1)}, {patch.nbytes / 2**20:.2f} MB.",
    ]
    if len(names) > 1:
        share = agnostic / max(1, agnostic + pruned)
        lines.append(
            f"{share:.0%} of what was chosen serves most concepts and is kept (alpha {settings['alpha']:g})."
        )
        label, x = _overlaps(names, own, pairs)[0] if len(names) <= MOST_PAIRED else ("", 0)
        if x > 0.5:
            lines.append(
                f"WARNING: {label} share {x:.0%} of their connections and can hardly be told apart; try more contexts."
            )
    for name, (chosen, cut_off) in zip(names, own.tolist(), strict=True):
        if chosen and cut_off < 0.1 * chosen:
            lines.append(
                f"WARNING: hardly anything of '{name}' is pruned; raise 'alpha' (1.01 prunes all that was chosen)."
            )
    if over:
        lines.append(
            f"WARNING: the share of {', '.join(over)} was cut to the saliency's ceiling; measure with a higher 'ceiling'."
        )
    if pruned > 0.1 * candidates:
        lines.append("WARNING: more than a tenth is pruned; expect damage, and lower 'r2'.")
    return "\n".join(
        [
            *lines,
            "Next: connect the patch to Apply Unlearn Patch. r2 and alpha can be changed without measuring again.",
        ]
    )
