"""Informax decoupler of ScaPre (arXiv 2601.06162, eqs 6-7).

It weighs each output row by how well the row's activation tells a concept from everything else. As
printed, each row has one threshold, and the weight comes from the table of activation above the
threshold against class. Nearly every row separates a concept from the empty prompt, so nearly all
weights are 1 (others measured 97 % of rows at the largest value, ln 2). `graded` uses the
activations themselves, so that rows differ, and corrects for few samples.
"""

from collections.abc import Sequence

import torch


def printed(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Informax weight alpha_i = MI_i / max_j MI_j per output row (eqs 6-7), [d_out] in [0, 1].

    positive [n_pos, d_out], negative [n_neg, d_out]: activations W0 s of concept and of neutral
    states; the result has their dtype. MI_i is the mutual information of z = 1[a > tau_i] with the
    class, from the 2x2 table; tau_i is the (lower) median of both classes together. All weights
    are 1 where no row tells the classes apart.
    """
    both = torch.cat([positive, negative])
    tau = both.median(0).values
    p_class = torch.tensor(
        [len(negative), len(positive)], dtype=torch.float64, device=both.device
    ) / len(both)
    # The chance of z = 1 given the class, [2, d_out].
    p_fire = torch.stack([(negative > tau).double().mean(0), (positive > tau).double().mean(0)])
    joint = torch.stack([1 - p_fire, p_fire]) * p_class[None, :, None]  # [z, y, d_out]
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    mi = torch.where(joint > 0, joint * (joint / independent.clamp_min(1e-30)).log(), 0).sum((0, 1))
    return scaled(mi).to(positive.dtype)


def graded_information(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Mutual information of activation and class per output row in nats, [d_out] float64.

    positive [n_pos, d_out], negative [n_neg, d_out] as in `printed`; both classes count equally.
    A Gaussian fit gives -log(1 - r^2) / 2, where r^2 is the share of the variance between the
    classes. It is corrected for small samples as the adjusted R^2 is,
    1 - (1 - r^2) (n - 1) / (n - 2), and cut at 0.
    """
    p, q = positive.double(), negative.double()
    n = len(p) + len(q)
    within = (p.var(0, unbiased=False) + q.var(0, unbiased=False)) / 2
    between = (p.mean(0) - q.mean(0)).square() / 4
    noise = within / (within + between).clamp_min(1e-30)  # 1 - r^2
    noise = torch.where(within + between > 1e-30, noise, torch.ones_like(noise))
    return -0.5 * (noise * (n - 1) / max(n - 2, 1)).clamp(1e-12, 1).log()


def graded(positives: Sequence[torch.Tensor], negative: torch.Tensor) -> torch.Tensor:
    """Informax weights [d_out] in [0, 1], float64: the best over all concepts, scaled as in eq 7.

    positives: one tensor [n_k, d_out] of activations per concept; negative [n, d_out]: activations
    of neutral states and of similar things to keep.
    """
    return scaled(torch.stack([graded_information(p, negative) for p in positives]).amax(0))


def scaled(information: torch.Tensor) -> torch.Tensor:
    """alpha_i = I_i / max_j I_j; all ones where nothing tells the classes apart."""
    top = information.max()
    return information / top if top > 1e-12 else torch.ones_like(information)
