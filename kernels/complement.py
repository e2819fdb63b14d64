"""Hard preservation: the orthogonal complement of the subspace to keep.

An edit confined to it does nothing at all to what lies in that subspace. AlphaEdit (arXiv
2410.02355) and SPEED (arXiv 2503.07392) use such projectors. Here the subspace is spanned by the
directions that carry a share of the energy.
"""

import torch


def complement(gram: torch.Tensor, energy: float = 1.0, tolerance: float = 1e-12) -> torch.Tensor:
    """Orthonormal basis [d, d - r], float64, of what is orthogonal to the subspace to keep.

    The subspace is spanned by the leading r eigenvectors of its Gram matrix [d, d]; r is the
    smallest number that carries the share `energy` (0..1] of the trace. Directions below tolerance
    times the largest never count.
    """
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if energy >= 1:
        rank = int((values > tolerance * values[0]).sum())
    else:
        rank = int((values.cumsum(0) < energy * total).sum()) + 1
    return vectors[:, rank if float(total) > 0 else 0 :]
