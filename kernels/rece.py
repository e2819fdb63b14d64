"""RECE (arXiv 2407.12383): the embedding that brings a forgotten concept back, in closed form.

Let c be a concept's embedding and W0 -> W an edit of all layers. The embedding for which the edited
layers give most nearly what the original ones gave for c minimises
sum_l |W_l x - W0_l c|^2 + lambda |x|^2:

    c' = (lambda I + sum_l W_l^T W_l)^-1 (sum_l W_l^T W0_l) c.
"""

import torch


def revive(
    after: torch.Tensor, cross: torch.Tensor, concepts: torch.Tensor, lam: float
) -> torch.Tensor:
    """Reviving embeddings c' [n, d] float64 of concepts [n, d].

    after = sum_l W_l^T W_l and cross = sum_l W_l^T W0_l, both [d, d]; lam > 0 has the units
    of `after`.
    Raises torch.linalg.LinAlgError when lam is not above 0 and the layers do not span the space.
    """
    identity = torch.eye(len(after), dtype=torch.float64, device=after.device)
    system = after.double() + lam * identity
    return torch.cholesky_solve(
        cross.double() @ concepts.double().T, torch.linalg.cholesky(system)
    ).T


def revived(
    before: torch.Tensor,
    after: torch.Tensor,
    cross: torch.Tensor,
    concepts: torch.Tensor,
    lam: float,
) -> torch.Tensor:
    """How much of each concept's original outputs its reviving embedding brings back, [n].

    It is 1 - |W c' - W0 c|^2 / |W0 c|^2, cut to [0, 1].
    before = sum_l W0_l^T W0_l [d, d]; the rest as in `revive`.
    """
    c, x = concepts.double(), revive(after, cross, concepts, lam)
    whole = _form(c, before, c).clamp_min(1e-30)
    rest = _form(x, after, x) - 2 * _form(x, cross, c) + whole
    return (1 - rest / whole).clamp(0, 1)


def _form(a: torch.Tensor, m: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a_i^T M b_i for each row i, [n]."""
    return ((a @ m.double()) * b).sum(1)
