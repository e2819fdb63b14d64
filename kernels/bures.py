"""Geometry-aware refinement of ScaPre (arXiv 2601.06162, eq 5 and App. B.2).

The appendix itself was not readable, so this follows its description. The covariance S = W W^T goes
a part t of the way to S0 = W0 W0^T along the Bures geodesic, and the orthogonal Procrustes problem
maps it back to a weight W~:

    T = S^-1/2 (S^1/2 S0 S^1/2)^1/2 S^-1/2,   S_t = ((1-t) I + t T) S ((1-t) I + t T),
    W~ = S_t^1/2 U V^T,   S_t^1/2 W = U s V^T.

This is a straight line once W0 is turned by the best rotation, the polar factor Q = U V^T of
W0^T W = U s V^T:

    W~ = (1 - t) W + t W0 Q.

For W^T W0 Q is symmetric and positive, so W0 Q is the optimal transport of W; and so is W~^T W, so
W~ is the nearest factor. No root of a [d_out, d_out] matrix is taken, and covariances without full
rank need no jitter. A proximal weight beta corresponds to t = beta / (1 + beta).
"""

import torch


def rotation(w: torch.Tensor, w0: torch.Tensor) -> torch.Tensor:
    """The orthogonal Q [d, d] that minimises |W - W0 Q|, float64; w, w0 [d_out, d].

    It is the identity where W is zero.
    """
    u, _, vt = torch.linalg.svd(w0.double().T @ w.double())
    return u @ vt


def geodesic(w: torch.Tensor, w0: torch.Tensor, t: float) -> torch.Tensor:
    """W~ [d_out, d] float64: W moved the part t in [0, 1] of the Bures geodesic towards W0.

    t = 0 gives W and t = 1 a rotated W0.
    """
    if t == 0:
        return w.double()
    return (1 - t) * w.double() + t * w0.double() @ rotation(w, w0)
