"""Unified Concept Editing (arXiv 2308.14761, eq 7) as its code has it: the plain closed form that the others are measured against.

    W = [ lambda W0 + s_e sum_i v_i c_i^T + s_p sum_j W0 k_j k_j^T ] G^-1,   G = lambda I + s_e sum_i c_i c_i^T + s_p sum_j k_j k_j^T

with v_i = W0 n_i. Then W = W0 (I + M) with M = s_e sum_i (n_i - c_i) c_i^T G^-1, the same for every layer, of rank at most the number
of concepts.
"""

import torch

LAMBDA = 0.5


def multiplier(erase, move, keep, lam=LAMBDA, scale=1.0, preserve=1.0):
    """M [d, d] float64 of W = W0 (I + M), from the moments sum c c^T, sum (n - c) c^T and sum k k^T, each [d, d].

    Raises torch.linalg.LinAlgError when lam is not above 0 and the moments do not span the space.
    """
    g = (
        scale * erase.double()
        + preserve * keep.double()
        + lam * torch.eye(len(erase), dtype=torch.float64, device=erase.device)
    )
    return torch.cholesky_solve(scale * move.double().T, torch.linalg.cholesky(g)).T


def factors(m, tolerance=1e-9):
    """M = left @ right by its singular values above tolerance times the largest: left [d, r], right [r, d] with rows of length 1."""
    u, sigma, vt = torch.linalg.svd(m)
    r = int((sigma > tolerance * sigma[0]).sum()) if float(sigma[0]) > 0 else 0
    return u[:, :r] * sigma[:r], vt[:r]
