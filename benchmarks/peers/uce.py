"""Unified Concept Editing (arXiv 2308.14761, eq 7): closed form on the last token of every name, keys and values of cross-attention.

    W = [ lambda W0 + sum_i W0 n_i c_i^T + sum_j W0 k_j k_j^T ] [ lambda I + sum_i c_i c_i^T + sum_j k_j k_j^T ]^-1

with c the concepts, n what they turn into, k the keep list, lambda 0.5, as the official code has it. The kernel is the pack's own.
"""

import torch

from testbed import pack

from . import _shared

NAME = "UCE"
kernel = pack.module("kernels.uce")
scapre = pack.module("kernels.scapre")


def multiplier(c, n, keep, lam=kernel.LAMBDA, scale=1.0, preserve=1.0):
    """M [d, d] float64 of W = W0 (I + M) that turns states c [m, d] into n [m, d] and holds keep [k, d]."""
    return kernel.multiplier(
        scapre.gram(c), scapre.cross_gram(n, c), scapre.gram(keep), lam, scale, preserve
    )


def states(clip, concepts):
    """(c, n [m, d], keep [k, d]) float64 of a ConceptSet: last tokens of names, of what they turn into, and of the keep list."""
    names, others = zip(*_shared.pairs(concepts), strict=True)
    return (
        _shared.last_states(clip, names),
        _shared.last_states(clip, others),
        _shared.last_states(clip, concepts.keep),
    )


@torch.inference_mode()
def erase(model, clip, concepts, seed=0):
    return _shared.erased(
        model, NAME, concepts, _shared.multiplied(model, multiplier(*states(clip, concepts)))
    )
