"""ScaPre as printed (arXiv 2601.06162, eqs 3-10): B W + W A = V* C_E^T, solved by one eigendecomposition.

A = lambda I + S + R [d, d] is shared by all layers and B = diag(alpha) [d_out, d_out] is each layer's own. With A = E diag(a) E^T,

    W_ij = [ (V* C_E^T E)_ij / (alpha_i + a_j) ] E^T,

no Kronecker matrix of eq (10). (8) and (9) differ by a factor 2 in V*; this is (9). With V* = 0 the solution is W = 0 whatever the
concepts are, so V* must not be zero; and W0 appears nowhere in it, so that W is wrong outside the span of C_E. `edit` is the same
system for W - W0, which leaves W0 alone where there is nothing to erase.
"""

import torch


def spectrum(a):
    """Eigenvalues [d] and eigenvectors [d, d] of the symmetric A, float64; one call serves all layers."""
    return torch.linalg.eigh((a.double() + a.double().T) / 2)


def solve(alpha, values, vectors, right):
    """W [d_out, d] float64 of diag(alpha) W + W A = right. alpha [d_out] >= 0, right [d_out, d], A by its `spectrum`.

    Raises ValueError where alpha_i + a_j is not above 0 for some i, j, for then the system is singular.
    """
    denominator = alpha.double()[:, None] + values
    if float(denominator.min()) <= 0:
        raise ValueError("the Sylvester system is singular; give lambda a value above 0")
    return ((right.double() @ vectors) / denominator) @ vectors.T


def printed(w0, alpha, values, vectors, targets):
    """W of eq (9) as printed with V* = W0 N: right side W0 (sum_t n_t c_t^T), `targets` = sum_t n_t c_t^T [d, d]."""
    return solve(alpha, values, vectors, w0.double() @ targets.double())


def edit(w0, alpha, values, vectors, move):
    """W - W0 of eq (9) anchored at W0, right side V* C_E^T + B W0 + W0 (A - S): `move` = sum_t (n_t - c_t) c_t^T [d, d]."""
    return solve(alpha, values, vectors, w0.double() @ move.double())
