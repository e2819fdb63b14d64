"""RECE (arXiv 2407.12383): the embeddings that bring a forgotten concept back after an edit, in closed form.

For a concept's embedding c and an edit W0 -> W of all layers, the embedding that makes the edited layers say most nearly what the
original ones said of c is the minimiser of sum_l |W_l x - W0_l c|^2 + lambda |x|^2,

    c' = (lambda I + sum_l W_l^T W_l)^-1 (sum_l W_l^T W0_l) c.
"""

import torch


def revive(after, cross, concepts, lam):
    """Reviving embeddings c' [n, d] float64 of concepts [n, d].

    after = sum_l W_l^T W_l and cross = sum_l W_l^T W0_l, both [d, d]; lam > 0 in the units of `after`.
    Raises torch.linalg.LinAlgError when lam is not above 0 and the layers do not span the space.
    """
    system = after.double() + lam * torch.eye(len(after), dtype=torch.float64, device=after.device)
    return torch.cholesky_solve(
        cross.double() @ concepts.double().T, torch.linalg.cholesky(system)
    ).T


def revived(before, after, cross, concepts, lam):
    """How much of each concept's original outputs its reviving embedding brings back, [n]: 1 - |W c' - W0 c|^2 / |W0 c|^2 in [0, 1].

    before = sum_l W0_l^T W0_l [d, d]; the rest as in `revive`.
    """
    c, x = concepts.double(), revive(after, cross, concepts, lam)
    form = lambda a, m, b: ((a @ m) * b).sum(1)
    whole = form(c, before.double(), c).clamp_min(1e-30)
    rest = form(x, after.double(), x) - 2 * form(x, cross.double(), c) + whole
    return (1 - rest / whole).clamp(0, 1)
