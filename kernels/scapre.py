"""ScaPre, Forget Many, Forget Right (arXiv 2601.06162): closed-form edit of keys and values.

This is the variant `anchored`. For each output row i of a weight W0 [d_out, d], with concept states
c_t and their targets n_t, it minimises

    eta m_i sum_t omega_t (w_i c_t - w0_i n_t)^2 + (w_i - w0_i)^T P (w_i - w0_i),

with P = lambda I + R + beta K. These are eqs 3-5 with an anchor at W0, which the printed objective
(8) lacks. With S = sum omega c c^T and T = sum omega (n - c) c^T the solution is

    w_i - w0_i = eta m_i w0_i T (P + eta m_i S)^-1.

One generalised eigendecomposition S v = mu P v (V^T P V = I) serves every row of every layer:

    (P + eta m S)^-1 = V diag(1 / (1 + eta m mu)) V^T.

The rows of T lie in the span of the c_t, so only eigenvectors with mu > 0 take part. The edit is of
low rank, and all layers share V^T.
"""

import torch

COLUMN_BLOCKS = 8  # blocks of columns in which a tall Gram matrix is summed up
BLOCK_ROWS = 1024  # rows that are added to it at a time
TALL = 4096  # rows from which it is worth it


def gram(states: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Second moment sum_t omega_t c_t c_t^T, [d, d] float64, of states [n, d].

    weights: omega [n], 1 where they are not given.
    """
    x = states.double()
    (n, d), omega = x.shape, None if weights is None else weights.double()[:, None]
    if n < TALL:
        return x.T @ (x if omega is None else x * omega)
    out, width = torch.zeros(d, d, dtype=torch.float64, device=x.device), -(-d // COLUMN_BLOCKS)
    # Only the blocks on and above the diagonal are computed, nine sixteenths of the work.
    for at in range(0, n, BLOCK_ROWS):
        part = x[at : at + BLOCK_ROWS]
        weighted = part if omega is None else part * omega[at : at + BLOCK_ROWS]
        for i in range(0, d, width):
            out[i : i + width, i:].addmm_(part[:, i : i + width].T, weighted[:, i:])
    return out.triu_().add_(out.triu(1).T)


def cross_gram(
    targets: torch.Tensor, states: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """T = sum_t omega_t (n_t - c_t) c_t^T, [d, d] float64, of targets n and states c, both [n, d].

    weights: omega [n], 1 where they are not given.
    """
    states, targets = states.double(), targets.double()
    return (targets - states).T @ (
        states if weights is None else states * weights.double()[:, None]
    )


def spectral_trace(concepts: torch.Tensor) -> torch.Tensor:
    """R = U diag((1 - sigmoid(sigma)) sigma) U^T (eq 4), [d, d] float64.

    concepts: the matrix C_E = U diag(sigma) V^T [d, m]. Strong shared directions (large sigma) are
    left free and weak ones are penalised, so that concepts do not fight over them.
    """
    u, sigma, _ = torch.linalg.svd(concepts.double(), full_matrices=False)
    return (u * ((1 - torch.sigmoid(sigma)) * sigma)) @ u.T


def anchored_basis(
    s: torch.Tensor, p: torch.Tensor, tolerance: float = 1e-12
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised eigenpairs S v = mu P v: (mu [r], V [d, r]), float64, largest first.

    s, p [d, d]. Only pairs with mu > tolerance * mu_max are given.
    Raises torch.linalg.LinAlgError when P is not positive definite.
    """
    lower = torch.linalg.cholesky(p.double())
    half = torch.linalg.solve_triangular(lower, s.double(), upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)
    mu, q = torch.linalg.eigh((whitened + whitened.T) / 2)
    v = torch.linalg.solve_triangular(lower.T, q, upper=True)
    keep = mu > tolerance * mu[-1].clamp_min(1e-300)
    return mu[keep].flip(0), v[:, keep].flip(1)


def confined_basis(
    s: torch.Tensor, p: torch.Tensor, basis: torch.Tensor, tolerance: float = 1e-12
) -> tuple[torch.Tensor, torch.Tensor]:
    """`anchored_basis` with V in the span of the columns of `basis` [d, k]: (mu [r], V [d, r]).

    It minimises the same objective over all edits that do nothing to what is orthogonal to `basis`
    (hard preservation).
    """
    mu, v = anchored_basis(basis.T @ s @ basis, basis.T @ p @ basis, tolerance)
    return mu, basis @ v


def rank_by_energy(mu: torch.Tensor, eta: float, energy: float) -> int:
    """How many leading components carry the share `energy` (0..1] of the erased signal.

    The signal is sum_j mu_j (eta mu_j / (1 + eta mu_j))^2, with mu [r] largest first.
    """
    erased = mu * (eta * mu / (1 + eta * mu)) ** 2
    total = erased.cumsum(0)
    if not len(mu) or total[-1] <= 0:
        return 0
    return int((total < energy * total[-1]).sum()) + 1


def rank_by_change(mu: torch.Tensor, sv: torch.Tensor, eta: float, energy: float) -> int:
    """How many leading components carry the share `energy` (0..1] of what the edit does.

    That is sum_t omega_t |M c_t|^2 = sum_j mu_j (eta / (1 + eta mu_j))^2 |S v_j|^2, with mu [r]
    largest first and sv = S V [d, r]. Unlike `rank_by_energy` it does not favour directions in
    which nothing is kept: where kept states do not fill the space, these have a mu thousands of
    times as large as the rest.
    """
    if not len(mu):
        return 0
    change = mu * (eta / (1 + eta * mu)) ** 2 * sv.square().sum(0)
    most = change.sum()
    if most <= 0:
        return 0
    left = change.flip(0).cumsum(0).flip(0)  # of component j and all after it
    return int((left > (1 - energy) * most).sum())


def anchored_up(
    w0: torch.Tensor,
    tv: torch.Tensor,
    mu: torch.Tensor,
    eta: float,
    m: torch.Tensor | None = None,
) -> torch.Tensor:
    """The layer's factor `up` [d_out, r] of the edit `up @ V^T`, float32.

    It is eta m_i (w0_i T V) / (1 + eta m_i mu), of w0 [d_out, d], tv = T V [d, r] and mu [r].
    m: Informax weights [d_out], 1 where they are not given.
    """
    rows = w0.float() @ tv.float()
    if m is None:
        return rows.mul_(eta / (1 + eta * mu.float()))
    # The same as times eta m and by 1 + eta m mu, in one pass; a row of weight 0 gives 0.
    return rows.div_((eta * m.float()[:, None]).reciprocal() + mu.float())
