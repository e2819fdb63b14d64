"""Unified Concept Editing (arXiv 2308.14761, eq 7): closed form on the last token of every name.

    W = [ lambda W0 + sum_i W0 n_i c_i^T + sum_j W0 k_j k_j^T ]
        [ lambda I + sum_i c_i c_i^T + sum_j k_j k_j^T ]^-1

It edits keys and values of cross-attention. c are the concepts, n their targets, k the keep list;
lambda is 0.5 as in the official code. The kernel is the pack's own.
"""

import torch

from testbed import pack

from . import _shared

NAME = "UCE"
kernel = pack.module("kernels.uce")
scapre = pack.module("kernels.scapre")


def multiplier(c, n, keep, lam=kernel.LAMBDA, scale=1.0, preserve=1.0):
    """M [d, d] float64 of W = W0 (I + M): gives c [m, d] the outputs of n [m, d], keeps [k, d]."""
    return kernel.multiplier(
        scapre.gram(c), scapre.cross_gram(n, c), scapre.gram(keep), lam, scale, preserve
    )


def states(clip, concepts):
    """(c, n [m, d], keep [k, d]) float64 of a ConceptSet.

    They are the last tokens of the names, of their targets, and of the keep list.
    """
    names, others = zip(*_shared.pairs(concepts), strict=True)
    return (
        _shared.last_states(clip, names),
        _shared.last_states(clip, others),
        _shared.last_states(clip, concepts.keep),
    )


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    return _shared.erased(
        model, NAME, concepts, _shared.multiplied(model, multiplier(*states(clip, concepts)))
    )
