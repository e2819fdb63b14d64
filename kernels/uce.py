"""Unified Concept Editing (arXiv 2308.14761, eq 7) as its released code has it.

    W = [ lambda W0 + s_e sum_i v_i c_i^T + s_p sum_j W0 k_j k_j^T ] G^-1,
    G = lambda I + s_e sum_i c_i c_i^T + s_p sum_j k_j k_j^T,   v_i = W0 n_i.

So W = W0 (I + M) with M = s_e sum_i (n_i - c_i) c_i^T G^-1. M is the same for every layer, and its
rank is at most the number of concepts.
"""

import torch

LAMBDA = 0.5  # of the released code


def multiplier(
    erase: torch.Tensor,
    move: torch.Tensor,
    keep: torch.Tensor,
    lam: float = LAMBDA,
    scale: float = 1.0,
    preserve: float = 1.0,
) -> torch.Tensor:
    """M [d, d] float64 of W = W0 (I + M).

    erase = sum c c^T, move = sum (n - c) c^T and keep = sum k k^T, each [d, d]; scale is s_e and
    preserve s_p. With move = sum y c^T [d_out, d] for any y it is the matrix [d_out, d] that gives
    states c the outputs y, by the same least squares.
    Raises torch.linalg.LinAlgError when lam is not above 0 and the moments do not span the space.
    """
    g = (
        scale * erase.double()
        + preserve * keep.double()
        + lam * torch.eye(len(erase), dtype=torch.float64, device=erase.device)
    )
    return torch.cholesky_solve(scale * move.double().T, torch.linalg.cholesky(g)).T


def factors(m: torch.Tensor, tolerance: float = 1e-9) -> tuple[torch.Tensor, torch.Tensor]:
    """M = left @ right, with left [d, r], and right [r, d] with rows of length 1.

    r counts the singular values above tolerance times the largest.
    """
    u, sigma, vt = torch.linalg.svd(m)
    r = int((sigma > tolerance * sigma[0]).sum()) if float(sigma[0]) > 0 else 0
    return u[:, :r] * sigma[:r], vt[:r]
