"""ConceptPrune (arXiv 2405.19237): sets weights of the second feed-forward layer to zero.

The score is Wanda's: |W_ij| n_j. n_j is the norm of column j of the layer's input, with rows of
unit length, averaged over prompts. At each of the first steps, a weight counts as skilled if its
score is in the top share of its row, and larger for prompts with the concept than for the same
prompts without. A weight is pruned if it is skilled at more than a share `select` of these steps,
for any concept. Official values for objects: top 2 %, 9 of 50 steps, select 0 (the union). The
statistics come from the pack's own score `wanda`.
"""

import torch

from testbed import pack

from . import _shared

NAME = "ConceptPrune"
TOP, STEPS, WINDOW, SELECT, PROMPTS = 0.02, 50, 9, 0.0, 8
saliency = pack.module("unlearn.pruning.collection")
Group = pack.module("unlearn.types").Group


def skilled(w, target, base, top=TOP, select=SELECT):
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


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    how = {
        "score": "wanda",
        "prompts": PROMPTS,
        "steps": STEPS,
        "window": WINDOW,
        "cfg": _shared.CFG,
        "size": size,
        "seed": seed,
    }
    found = saliency.collect(model, clip, concepts, **how)[0]
    edits, at = [], 0
    for key, d_out, d_in in found.layers:
        w, columns = _shared.weights.read(model, key), slice(at, at + d_in)

        def norms(group, columns=columns):
            return found.gathered[group].mean[:, columns]

        masks = [
            skilled(w, norms(Group(c.kind, c.name)), norms(Group(c.kind)))
            for c in concepts.concepts
        ]
        edits.append((key, _shared.adapters.Prune.of(torch.stack(masks).any(0), d_out, d_in)))
        at += d_in
    return _shared.erased(model, NAME, concepts, edits)
