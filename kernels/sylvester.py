"""ScaPre as printed (arXiv 2601.06162, eqs 3-10): the Sylvester equation B W + W A = V* C_E^T.

It is solved by one eigendecomposition. A = lambda I + S + R [d, d] is shared by all layers, and
B = diag(alpha) [d_out, d_out] is each layer's own. With A = E diag(a) E^T,

    W_ij = [ (V* C_E^T E)_ij / (alpha_i + a_j) ] E^T,

so the Kronecker matrix of eq (10) is not needed. Eqs (8) and (9) differ by a factor 2 in V*; this
is (9). V* must not be zero, for then W = 0 whatever the concepts are. W0 appears nowhere in (9), so
W is wrong outside the span of C_E. `edit` is the same system for W - W0, which leaves W0 alone
where there is nothing to erase.
"""

import torch


def spectrum(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [d] and eigenvectors [d, d] of the symmetric A [d, d], float64.

    One call serves all layers.
    """
    return torch.linalg.eigh((a.double() + a.double().T) / 2)


def solve(
    alpha: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """W [d_out, d] float64 of diag(alpha) W + W A = right.

    alpha [d_out] >= 0, right [d_out, d]; values and vectors are the `spectrum` of A.
    Raises ValueError where alpha_i + a_j is not above 0 for some i, j: the system is singular.
    """
    denominator = alpha.double()[:, None] + values
    if float(denominator.min()) <= 0:
        raise ValueError("the Sylvester system is singular; give lambda a value above 0")
    return ((right.double() @ vectors) / denominator) @ vectors.T


def printed(
    w0: torch.Tensor,
    alpha: torch.Tensor,
    values: torch.Tensor,
    vectors: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """W [d_out, d] float64 of eq (9) as printed, with V* = W0 N; w0 [d_out, d].

    The right side is W0 `targets`, with targets = sum_t n_t c_t^T [d, d]; the rest as in `solve`.
    """
    return solve(alpha, values, vectors, w0.double() @ targets.double())


def edit(
    w0: torch.Tensor,
    alpha: torch.Tensor,
    values: torch.Tensor,
    vectors: torch.Tensor,
    move: torch.Tensor,
) -> torch.Tensor:
    """W - W0 [d_out, d] float64 of eq (9) anchored at W0; w0 [d_out, d].

    The right side of W is V* C_E^T + B W0 + W0 (A - S); move = sum_t (n_t - c_t) c_t^T [d, d]; the
    rest as in `solve`.
    """
    return solve(alpha, values, vectors, w0.double() @ move.double())
