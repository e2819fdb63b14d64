"""ConceptPrune (arXiv 2405.19237): sets weights of the second feed-forward layer to zero.

The score is Wanda's: |W_ij| n_j. n_j is the norm of column j of the layer's input over the rows of
all prompts, with rows of unit length. At each of the first steps, a weight counts as skilled if its
score is in the top share of its row, and larger for prompts with the concept than for the same
prompts without. A weight is pruned if it is skilled at more than a share `select` of these steps,
for any concept. Official values: top 2 % for objects, 1 % for styles and nudity; 9 of 50 steps,
select 0 (the union). The statistics come from the pack's own score `wanda`.
"""

import torch

from testbed import pack

from . import _shared

NAME = "ConceptPrune"
TOP = {"object": 0.02, "style": 0.01, "explicit": 0.01}
STEPS, WINDOW, SELECT, PROMPTS = 50, 9, 0.0, 8
saliency = pack.module("unlearn.pruning.collection")
Group = pack.module("unlearn.types").Group


def skilled(w, target, base, top, select=SELECT):
    """Mask [d_out, d_in] of the weights w [d_out, d_in] to prune.

    Column norms with the concept and without it: [steps, d_in] each.
    """
    count = torch.zeros(w.shape)
    for n, n0 in zip(target, base, strict=True):
        score = w.abs() * n
        best = torch.zeros(w.shape, dtype=torch.bool).scatter_(
            1, score.topk(int(top * w.shape[1]), dim=1).indices, True
        )
        count += best & (score > w.abs() * n0)
    return count > select * len(target)


def over_all_prompts(runs):
    """Norms over the rows of all prompts from those of each prompt, [steps, d_in] each."""
    return torch.stack(list(runs)).square().sum(0).sqrt()


def measured(model, clip, concepts, seed, size):
    """(layers, group -> column norms [steps, widths of all layers]) of a ConceptSet.

    The pack averages norms over prompts, so each prompt is measured by itself.
    """
    how = {"score": "wanda", "steps": STEPS, "window": WINDOW, "cfg": _shared.CFG}
    how |= {"size": size, "seed": seed, "prompts": 1}
    found = [saliency.collect(model, clip, concepts, first=i, **how)[0] for i in range(PROMPTS)]
    groups = found[0].gathered
    norms = {g: over_all_prompts(one.gathered[g].mean for one in found) for g in groups}
    return found[0].layers, norms


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    edits, at = [], 0
    layers, norms = measured(model, clip, concepts, seed, size)
    for key, d_out, d_in in layers:
        w, columns = _shared.weights.read(model, key), slice(at, at + d_in)
        masks = [
            skilled(
                w,
                norms[Group(c.kind, c.name)][:, columns],
                norms[Group(c.kind)][:, columns],
                TOP[c.kind],
            )
            for c in concepts.concepts
        ]
        edits.append((key, _shared.adapters.Prune.of(torch.stack(masks).any(0), d_out, d_in)))
        at += d_in
    return _shared.erased(model, NAME, concepts, edits)
