"""ConceptPrune (arXiv 2405.19237): weights of the second feed-forward linear that are skilled at a concept are set to zero.

Wanda's score |W_ij| n_j, n_j the norm of column j of what enters the layer with its rows at unit length, averaged over prompts. At each of
the first steps a weight is skilled where its score is in the top share of its row and larger under prompts with the concept than under
the same prompts without. Pruned is what is skilled at more than a share `select` of these steps, for any of the concepts. Official values
for objects: top 2 %, 9 of 50 steps, select 0 (the union); the measuring is the pack's own (score `wanda`).
"""

import torch

from testbed import pack

from . import _shared

NAME = "ConceptPrune"
TOP, STEPS, WINDOW, SELECT, PROMPTS = 0.02, 50, 9, 0.0, 8
saliency = pack.module("unlearn.pruning.collection")
Group = pack.module("unlearn.types").Group


def skilled(w, target, base, top=TOP, select=SELECT):
    """Mask [d_out, d_in] of weights w [d_out, d_in] from column norms under the concept and without it, [steps, d_in] each."""
    count = torch.zeros(w.shape)
    for n, n0 in zip(target, base, strict=True):
        score = w.abs() * n
        best = torch.zeros(w.shape, dtype=torch.bool).scatter_(
            1, score.topk(int(top * w.shape[1]), dim=1).indices, True
        )
        count += best & (score > w.abs() * n0)
    return count > select * len(target)


@torch.inference_mode()
def erase(model, clip, concepts, seed=0):
    how = {
        "score": "wanda",
        "prompts": PROMPTS,
        "steps": STEPS,
        "window": WINDOW,
        "cfg": _shared.CFG,
        "size": _shared.SIZE,
        "seed": seed,
    }
    found = saliency.collect(model, clip, concepts, **how)[0]
    edits, at = [], 0
    for key, d_out, d_in in found.layers:
        w, columns = _shared.weights.read(model, key), slice(at, at + d_in)
        norms = lambda group, columns=columns: found.gathered[group].mean[:, columns]
        masks = [
            skilled(w, norms(Group(c.kind, c.name)), norms(Group(c.kind)))
            for c in concepts.concepts
        ]
        edits.append((key, _shared.adapters.Prune.of(torch.stack(masks).any(0), d_out, d_in)))
        at += d_in
    return _shared.erased(model, NAME, concepts, edits)
