"""RECE (arXiv 2407.12383): UCE, then rounds that find embeddings of the concepts and erase them.

    c' = ( lambda I + sum_l W_l^T W_l )^-1 ( sum_l W_l^T W0_l ) c            (kernels/rece.py)

for all 77 states c of each name. Then W <- W (I + M), where M is the UCE edit (lambda and preserve
0.1) that gives c' the outputs of the target's states at the same positions. It preserves all states
of the empty text and of the keep list. lambda and the number of rounds are the official ones for
the first concept's kind; for some objects the official scripts take 1e-3.
"""

import torch

from testbed import pack

from . import _shared, uce

NAME = "RECE"
SEARCH = {"object": (1e-1, 1), "style": (1e-3, 1), "explicit": (1e-1, 3)}  # lambda, rounds
EDIT, PRESERVE = 0.1, 0.1
kernel = pack.module("kernels.rece")


def rounds(grams, start, c, n, keep, lam, count, edit=EDIT, preserve=PRESERVE):
    """M [d, d] float64 of W = W0 (I + M) after `count` rounds from an edit M = start.

    grams = sum_l W0_l^T W0_l [d, d]; c, n [m, d]: the concepts and their targets; keep [k, d].
    """
    eye = torch.eye(len(grams), dtype=torch.float64)
    total = eye + start
    for _ in range(count):
        again = kernel.revive(total.T @ grams @ total, total.T @ grams, c, lam)
        total = total @ (eye + uce.multiplier(again, n, keep, edit, preserve=preserve))
    return total - eye


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    names, others = zip(*_shared.pairs(concepts), strict=True)
    grams = sum(
        w.T @ w
        for w in (
            _shared.weights.read(model, k.key).double()
            for k in _shared.layers.cross_attention(model)
        )
    )
    start = uce.multiplier(*uce.states(clip, concepts))
    c, n = _shared.all_states(clip, names), _shared.all_states(clip, others)
    m = rounds(
        grams,
        start,
        c,
        n,
        _shared.all_states(clip, ["", *concepts.keep]),
        *SEARCH[concepts.concepts[0].kind],
    )
    return _shared.erased(model, NAME, concepts, _shared.multiplied(model, m))
