"""SPEED (arXiv 2503.07392): closed form in the null space of what is retained, on values only.

    dW = W0 (S_at - S_tt) P [ I - M K (K^T P M K + lambda I)^-1 K^T P ] M,   M = (S_tt P + rho I)^-1

S_tt = mean c c^T of the concepts' last tokens, S_at = mean n c^T. P projects on eigenvectors of the
retained states' moment with an eigenvalue below 0.1. K holds the start token's state and three
k-means centres of the empty text; lambda 0, rho 1.

For each layer the retain set is filtered and augmented: of states that a plain edit moves more than
the average, ten copies are shifted along the direction that the layer reads least (influence-based
prior filtering and directed prior augmentation). The retain set is the keep list and the pack's
common words.
"""

import torch

from testbed import pack

from . import _shared, uce

NAME = "SPEED"
THRESHOLD, RHO, COPIES, CENTRES = 0.1, 1.0, 10, 3
statistics = pack.module("unlearn.analysis.prior_words")
states = pack.module("unlearn.files.text_cache")
scapre = pack.module("kernels.scapre")


def projector(moment, threshold=THRESHOLD):
    """P [d, d] on the eigenvectors of a moment [d, d] with eigenvalue below threshold."""
    values, vectors = torch.linalg.eigh(moment)
    low = vectors[:, values < threshold]
    return low @ low.T


def right(c, p, k, rho=RHO, lam=0.0):
    """R [m, d] of dW = W0 (n - c)^T R; float64.

    c: concepts [m, d]; p: projector [d, d]; k: what is preserved exactly, [d, j].
    """
    m = torch.linalg.inv(c.T @ c / len(c) @ p + rho * torch.eye(len(p), dtype=torch.float64))
    held = k.T @ p @ m  # [j, d]
    inner = torch.linalg.pinv(held @ k + lam * torch.eye(k.shape[1], dtype=torch.float64))
    return c / len(c) @ p @ m - c / len(c) @ p @ m @ k @ inner @ held


def centres(rows, count, seed=0, steps=20):
    """k-means centres [count, d] of rows [n, d]."""
    at = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(steps):
        near = torch.cdist(rows, at).argmin(1)
        at = torch.stack(
            [rows[near == i].mean(0) if (near == i).any() else at[i] for i in range(count)]
        )
    return at


def refined(retain, w0, plain, g, copies=COPIES):
    """Moment [d, d] of the retained states [n, d] that are moved most, and of their copies.

    Those are the ones that the edit `plain` [d_out, d] moves more than the average.
    """

    def strong(x):
        return x[(size := (x @ plain.T).norm(dim=1)) > size.mean()]

    rows = strong(retain)
    least = torch.linalg.svd(w0, full_matrices=False)[2][-1]
    noise = torch.randn(copies * len(rows), len(least), generator=g, dtype=torch.float64)
    rows = torch.cat([rows, strong(rows.repeat(copies, 1) + (noise @ least)[:, None] * least)])
    return scapre.gram(rows) / len(rows)


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    c, n, keep = uce.states(clip, concepts)
    names = [name for name, _ in _shared.pairs(concepts)]
    words = statistics.read_words(clip, states.TextStateCache(clip, None).get, names)[1]
    null = _shared.all_states(clip, [""])
    k = torch.cat([null[:1], centres(null[1:], CENTRES, seed)]).T
    g, edits = torch.Generator().manual_seed(seed), []
    for layer in _shared.layers.cross_attention(model):
        if layer.role == "value":
            w0 = _shared.weights.read(model, layer.key).double()
            plain = (
                w0
                @ (n - c).T
                @ c
                / len(c)
                @ torch.linalg.inv(torch.eye(c.shape[1]).double() + c.T @ c / len(c))
            )
            p = projector(refined(torch.cat([keep, words]), w0, plain, g))
            edits.append(
                (
                    layer.key,
                    _shared.adapters.LowRank.of((w0 @ (n - c).T).half(), right(c, p, k).half()),
                )
            )
    return _shared.erased(model, NAME, concepts, edits)
