"""Hard preservation: an edit confined to the orthogonal complement of the keep subspace does nothing at all to what lies in that subspace.

AlphaEdit (arXiv 2410.02355) and SPEED (arXiv 2503.07392) use such projectors; which directions span the subspace is told by energy.
"""

import torch


def complement(gram, energy=1.0, tolerance=1e-12):
    """Orthonormal basis N [d, d - r], float64, of what is orthogonal to the leading r eigenvectors of a keep Gram [d, d].

    r is the smallest number that carries `energy` (0..1] of the trace; directions below tolerance times the largest never count.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if energy >= 1:
        rank = int((values > tolerance * values[0]).sum())
    else:
        rank = int((values.cumsum(0) < energy * total).sum()) + 1
    return vectors[:, rank if float(total) > 0 else 0 :]
