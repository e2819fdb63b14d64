"""ScaPre, Forget Many, Forget Right (arXiv 2601.06162): closed-form edit of cross-attention keys and values.

Variant `anchored`. Per output row i of a weight W0 [d_out, d], over concept states c_t and their targets n_t, minimise

    eta m_i sum_t omega_t (w_i c_t - w0_i n_t)^2 + (w_i - w0_i)^T P (w_i - w0_i),   P = lambda I + R + beta K

(eqs 3-5 with an anchor at W0, which the printed objective (8) lacks). With S = sum omega c c^T and T = sum omega (n - c) c^T,

    w_i - w0_i = eta m_i w0_i T (P + eta m_i S)^-1.

One generalised eigendecomposition S v = mu P v (V^T P V = I) serves every row of every layer:

    (P + eta m S)^-1 = V diag(1 / (1 + eta m mu)) V^T,

and since the rows of T lie in the span of the c_t, only the eigenvectors with mu > 0 take part: the edit is low-rank with V^T shared.
"""

import torch

BLOCKS, ROWS = 4, 1024  # of columns and rows, in which a tall Gram matrix is summed up


def gram(states, weights=None):
    """Second moment sum_t omega_t c_t c_t^T, [d, d] float64, of states [n, d]; weights [n] default to 1."""
    x = states.double()
    (n, d), omega = x.shape, None if weights is None else weights.double()[:, None]
    if n < ROWS * BLOCKS:
        return x.T @ (x if omega is None else x * omega)
    out, width = torch.zeros(d, d, dtype=torch.float64, device=x.device), -(-d // BLOCKS)
    for at in range(0, n, ROWS):  # only what is on and above the diagonal, five eighths of the work
        part = x[at : at + ROWS]
        weighted = part if omega is None else part * omega[at : at + ROWS]
        for i in range(0, d, width):
            out[i : i + width, i:].addmm_(part[:, i : i + width].T, weighted[:, i:])
    return out.triu_().add_(out.triu(1).T)


def cross_gram(targets, states, weights=None):
    """T = sum_t omega_t (n_t - c_t) c_t^T, [d, d] float64, of targets n and states c [n, d]."""
    states, targets = states.double(), targets.double()
    return (targets - states).T @ (
        states if weights is None else states * weights.double()[:, None]
    )


def spectral_trace(concepts):
    """R = U diag((1 - sigmoid(sigma)) sigma) U^T of the concept matrix C_E = U diag(sigma) V^T [d, m] (eq 4), [d, d] float64.

    Strong shared directions (large sigma) are left free, weak ones are penalised, so concepts do not fight over them.
    """
    u, sigma, _ = torch.linalg.svd(concepts.double(), full_matrices=False)
    return (u * ((1 - torch.sigmoid(sigma)) * sigma)) @ u.T


def anchored_basis(s, p, tolerance=1e-12):
    """Generalised eigenpairs S v = mu P v with mu > tolerance * mu_max: (mu [r], V [d, r]), float64, largest first.

    Raises torch.linalg.LinAlgError when P is not positive definite.
    """
    lower = torch.linalg.cholesky(p.double())
    half = torch.linalg.solve_triangular(lower, s.double(), upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)
    mu, q = torch.linalg.eigh((whitened + whitened.T) / 2)
    v = torch.linalg.solve_triangular(lower.T, q, upper=True)
    keep = mu > tolerance * mu[-1].clamp_min(1e-300)
    return mu[keep].flip(0), v[:, keep].flip(1)


def confined_basis(s, p, basis, tolerance=1e-12):
    """`anchored_basis` of edits confined to the columns of `basis` [d, k]: (mu [r], V [d, r]) with V in their span (hard preservation).

    It is the minimiser of the same objective over all edits that do nothing to what is orthogonal to `basis`.
    """
    mu, v = anchored_basis(basis.T @ s @ basis, basis.T @ p @ basis, tolerance)
    return mu, basis @ v


def rank_by_energy(mu, eta, energy):
    """How many leading components carry `energy` (0..1] of the erased signal sum_j mu_j (eta mu_j / (1 + eta mu_j))^2."""
    erased = mu * (eta * mu / (1 + eta * mu)) ** 2
    total = erased.cumsum(0)
    if not len(mu) or total[-1] <= 0:
        return 0
    return int((total < energy * total[-1]).sum()) + 1


def anchored_up(w0, tv, mu, eta, m=None):
    """The layer's factor `up` [d_out, r] of the edit `up @ V^T`, float32: eta m_i (w0_i T V) / (1 + eta m_i mu).

    w0 [d_out, d]; tv = T V [d, r]; mu [r]; m [d_out] Informax weights or None for 1.
    """
    rows = w0.float() @ tv.float()
    if m is None:
        return rows.mul_(eta / (1 + eta * mu.float()))
    gain = eta * m.float()[:, None]
    return rows.mul_(gain).div_((gain * mu.float()).add_(1))
