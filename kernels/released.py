"""What ScaPre's released code computes (arXiv 2601.06162).

Its two editors differ from the paper and from each other. Concept k has the state c_k at its last
content token, the block O_k [n_k, d] of states from there to the end of the padding, and N_k, as
many states of the replacement text. v_k = W0 N_k^T [d_out, n_k]; C = [c_1 .. c_m] [d, m];
lambda = 0.5.

    (C-1) m_i^(k) = sigmoid( zscore_i(MI) / 0.7 )^p
    (C-2) W = [ lambda W0 + eta sum_k diag(m^(k)) v_k O_k ]
              [ lambda I + C C^T + eta sum_k O_k^T O_k ]^-1
    (C-3) W <- diag(a) W + (I - diag(a)) W0,  a_i = a_min + (1 - a_min) e_i
    (C-4) w_i = [ (lambda + mu) I + R + C C^T + Sg + a_i Pi ]^-1 [ (lambda + mu) w0_i + V_i ]
    (C-5) a proximal step per row between its direction and length and those of w0_i

with Sg = eta sum O_k^T O_k, V = eta sum diag(m^(k)) v_k O_k, a_i = eta max_k m_i^(k),
Pi = C (C^T C + 1e-8 I)^-1 C^T, and mu the mean row entropy. (C-4) is solved exactly with one
factorisation per layer instead of one per row: see `editor_b`.
"""

from collections.abc import Sequence

import torch

# All three are those of the released code.
LAMBDA = 0.5
TEMPERATURE = 0.7
JITTER = 1e-8


def mask(positive: torch.Tensor, negative: torch.Tensor, power: float) -> torch.Tensor:
    """(C-1) m [d_out] float64 in (0, 1) from activations positive, negative [n, d_out].

    MI is that of the table of activation above the (lower) median against class, with 1e-8 added
    to each probability. The z-score is over the rows.
    """
    both = torch.cat([positive, negative]).double()
    fired = both > both.median(0).values
    target = torch.arange(len(both), device=both.device) < len(positive)
    mi = torch.zeros(both.shape[1], dtype=torch.float64, device=both.device)
    for z in (True, False):
        for y in (True, False):
            joint = ((fired == z) & (target == y)[:, None]).double().mean(0) + JITTER
            independent = ((fired == z).double().mean(0) + JITTER) * (
                (target == y).double().mean() + JITTER
            )
            mi += joint * (joint / independent).log()
    score = (mi - mi.mean()) / (mi.std() + JITTER)
    return torch.sigmoid(score / TEMPERATURE) ** power


def entropy(activations: torch.Tensor, bins: int = 20) -> torch.Tensor:
    """Normalised entropy H_i in [0, 1] of each row's activations [n, d_out], [d_out] float64.

    Activations are scaled to their range and counted in a histogram of `bins`.
    """
    a = activations.double()
    low, high = a.amin(0), a.amax(0)
    where = ((a - low) / (high - low).clamp_min(1e-12) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(bins, a.shape[1], dtype=torch.float64, device=a.device).scatter_add_(
        0, where, torch.ones_like(a)
    )
    p = counts / len(a)
    return -(p * p.clamp_min(1e-30).log()).sum(0) / torch.log(
        torch.tensor(float(bins), dtype=torch.float64)
    )


def write_in(
    w0: torch.Tensor,
    masks: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    neutral: Sequence[torch.Tensor],
) -> torch.Tensor:
    """sum_k diag(m^(k)) (W0 N_k^T) O_k, [d_out, d] float64.

    w0 [d_out, d], masks [m, d_out]; blocks and neutral hold the O_k and N_k [n_k, d].
    """
    w0, out = w0.double(), torch.zeros(w0.shape, dtype=torch.float64, device=w0.device)
    for m, o, n in zip(masks, blocks, neutral, strict=True):
        out += m.double()[:, None] * ((w0 @ n.double().T) @ o.double())
    return out


def gate(sigma: torch.Tensor, temperature: float, power: float) -> torch.Tensor:
    """sigmoid((sigma - median) / T)^p, elementwise."""
    return torch.sigmoid((sigma - sigma.median()) / temperature) ** power


def editor_a(
    w0: torch.Tensor,
    masks: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    neutral: Sequence[torch.Tensor],
    concepts: torch.Tensor,
    h: torch.Tensor,
    *,
    eta: float = 1.0,
    a_min: float = 0.8,
    svd: tuple[float, float] | None = None,
) -> torch.Tensor:
    """(C-2) and (C-3): W [d_out, d] float64. h [d_out]: row entropy, e = 1 - h. concepts C [d, m].

    svd: (T_s, p_s) of the released flag, or None. With it eta W0 C_r C_r^T is subtracted in the
    left factor too, with C_r = (I - U diag(w) U^T) C. The rest is as in `write_in`.
    """
    w0, c = w0.double(), concepts.double()
    left = LAMBDA * w0 + eta * write_in(w0, masks, blocks, neutral)
    if svd is not None:
        u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
        rest = c - (u * gate(sigma, *svd)) @ (u.T @ c)
        left -= eta * (w0 @ rest) @ rest.T
    right = (
        LAMBDA * torch.eye(w0.shape[1], dtype=torch.float64, device=w0.device)
        + c @ c.T
        + eta * _block_gram(blocks)
    )
    new = torch.cholesky_solve(left.T, torch.linalg.cholesky(right)).T
    a = (a_min + (1 - a_min) * (1 - h.double()))[:, None]
    return a * new + (1 - a) * w0


def _block_gram(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_k O_k^T O_k, [d, d] float64."""
    return torch.stack([o.double().T @ o.double() for o in blocks]).sum(0)


def ased(
    concepts: torch.Tensor, mu: float, temperature: float = 1.0, power: float = 1.0
) -> torch.Tensor:
    """R = U diag(mu (1 - sigmoid((sigma - median) / T)^p)) U^T, [d, d] float64.

    concepts: C = U diag(sigma) V^T [d, m].
    """
    u, sigma, _ = torch.linalg.svd(concepts.double(), full_matrices=False)
    return (u * (mu * (1 - gate(sigma, temperature, power)))) @ u.T


def editor_b(
    w0: torch.Tensor,
    masks: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    neutral: Sequence[torch.Tensor],
    concepts: torch.Tensor,
    h: torch.Tensor,
    *,
    eta: float = 2.0,
    r: torch.Tensor | None = None,
    steps: int = 1,
) -> torch.Tensor:
    """(C-4) and `steps` times (C-5): W [d_out, d] float64; r [d, d] from `ased`, or None.

    The rest is as in `editor_a`. One factorisation is exact for all rows of a layer: with
    G = (lambda + mu) I + R + C C^T + Sg, Pi = Q Q^T, Q^T G^-1 Q = E diag(l) E^T and B the right
    sides,

        W = B G^-1 - [ (B G^-1 Q E) * a_i / (1 + a_i l_j) ] E^T Q^T G^-1.
    """
    w0, c = w0.double(), concepts.double()
    mu = float(h.double().mean())
    g = (
        (LAMBDA + mu) * torch.eye(w0.shape[1], dtype=torch.float64, device=w0.device)
        + c @ c.T
        + eta * _block_gram(blocks)
    )
    lower = torch.linalg.cholesky(g if r is None else g + r.double())
    b = (LAMBDA + mu) * w0 + eta * write_in(w0, masks, blocks, neutral)
    a = eta * masks.double().amax(0)[:, None]
    u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
    q = u * (sigma / (sigma.square() + JITTER).sqrt())
    gq = torch.cholesky_solve(q, lower)  # G^-1 Q
    values, e = torch.linalg.eigh(q.T @ gq)
    without_pi = torch.cholesky_solve(b.T, lower).T
    w = without_pi - ((without_pi @ q @ e) * (a / (1 + a * values))) @ (gq @ e).T
    return proximal(w, w0, mu, steps)


def proximal(w: torch.Tensor, w0: torch.Tensor, mu: float, steps: int = 1) -> torch.Tensor:
    """(C-5) for each row, `steps` times; w, w0 [d_out, d] float64.

    The row is r u, where kappa = max(0, <u, u0>), u becomes the weighted mean direction, and
    r = ((lambda + mu) |w| + mu |w0| kappa) / (lambda + 2 mu).
    """
    length, length0 = w.norm(dim=1, keepdim=True), w0.norm(dim=1, keepdim=True)
    uw, u0 = w / length.clamp_min(1e-30), w0 / length0.clamp_min(1e-30)
    u, out = uw, w
    for _ in range(steps):
        kappa = (u * u0).sum(1, keepdim=True).clamp_min(0)
        r = ((LAMBDA + mu) * length + mu * length0 * kappa) / (LAMBDA + 2 * mu)
        u = (LAMBDA + mu) * length * uw + mu * length0 * kappa * u0
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-30)
        out = r * u
    return out
