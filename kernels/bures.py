"""Geometry-aware refinement of ScaPre (arXiv 2601.06162, eq 5 and App. B.2 as described; the appendix itself was not readable).

The covariance W W^T goes a part t of the way to W0 W0^T along the Bures geodesic, and the orthogonal Procrustes problem maps it back:

    T = S^-1/2 (S^1/2 S0 S^1/2)^1/2 S^-1/2,  S_t = ((1-t) I + t T) S ((1-t) I + t T),  W~ = S_t^1/2 U V^T,  S_t^1/2 W = U s V^T.

All of that equals a straight line once W0 is turned by the best rotation: with the polar factor Q = U V^T of W0^T W = U s V^T,

    W~ = (1 - t) W + t W0 Q,

for W^T W0 Q is symmetric and positive, which makes W0 Q the optimal transport of W, and W~^T W as well, which makes W~ the nearest factor.
No root of a [d_out, d_out] matrix is taken and rank-deficient covariances need no jitter. A proximal weight beta is t = beta / (1 + beta).
"""

import torch


def rotation(w, w0):
    """The orthogonal Q [d, d] that minimises |W - W0 Q|, float64; the identity where W is zero."""
    u, _, vt = torch.linalg.svd(w0.double().T @ w.double())
    return u @ vt


def geodesic(w, w0, t):
    """W~ [d_out, d] float64: W moved the part t in [0, 1] of the Bures geodesic towards W0; t = 0 gives W, t = 1 a rotated W0."""
    return w.double() if t == 0 else (1 - t) * w.double() + t * w0.double() @ rotation(w, w0)
