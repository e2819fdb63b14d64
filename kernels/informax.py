"""Informax decoupler of ScaPre (arXiv 2601.06162, eqs 6-7): how much each output row tells a concept from what is not it.

As printed, one threshold per row and the table of fired against class: with a concept beside the empty prompt nearly every row separates
the two at once, all weights are 1 (measured by others: 97 % of rows at ln 2 even with 50 samples). `graded` keeps the activations as
they are, so that rows differ, and corrects for few samples.
"""

import torch


def printed(positive, negative):
    """Informax weight alpha_i = MI_i / max_j MI_j per output row (eqs 6-7), [d_out] in [0, 1], dtype of the input.

    positive [n_pos, d_out], negative [n_neg, d_out]: activations W0 s of concept and of neutral states. z = 1[a > tau_i] with
    tau_i the (lower) median of both together; MI_i is that of z with the class, from the 2x2 table. Where the table tells
    the classes apart in no row, all weights are 1.
    """
    both = torch.cat([positive, negative])
    tau = both.median(0).values
    p_class = torch.tensor(
        [len(negative), len(positive)], dtype=torch.float64, device=both.device
    ) / len(both)
    p_fire = torch.stack(
        [(negative > tau).double().mean(0), (positive > tau).double().mean(0)]
    )  # [2, d_out] given the class
    joint = torch.stack([1 - p_fire, p_fire]) * p_class[None, :, None]  # [z, y, d_out]
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    mi = torch.where(joint > 0, joint * (joint / independent.clamp_min(1e-30)).log(), 0).sum((0, 1))
    return scaled(mi).to(positive.dtype)


def graded_information(positive, negative):
    """Mutual information of activation and class per output row in nats, [d_out] float64, of a Gaussian fit: -log(1 - r^2) / 2.

    positive [n_pos, d_out], negative [n_neg, d_out] as in `printed`, the classes weighed equally. r^2, the share of the variance that
    lies between the classes, is corrected for small samples as in the adjusted R^2, 1 - (1 - r^2) (n - 1) / (n - 2), and cut at 0.
    """
    p, q = positive.double(), negative.double()
    n = len(p) + len(q)
    within = (p.var(0, unbiased=False) + q.var(0, unbiased=False)) / 2
    between = (p.mean(0) - q.mean(0)).square() / 4
    noise = within / (within + between).clamp_min(1e-30)  # 1 - r^2
    noise = torch.where(within + between > 1e-30, noise, torch.ones_like(noise))
    return -0.5 * (noise * (n - 1) / max(n - 2, 1)).clamp(1e-12, 1).log()


def graded(positives, negative):
    """Informax weights [d_out] in [0, 1], float64, from unsaturated information: max over concepts, then divided by the largest (eq 7).

    positives: one tensor [n_k, d_out] of activations per concept; negative [n, d_out]: of neutral states and of look-alikes to keep.
    """
    return scaled(torch.stack([graded_information(p, negative) for p in positives]).amax(0))


def scaled(information):
    """alpha_i = I_i / max_j I_j; all ones where nothing tells the classes apart."""
    top = information.max()
    return information / top if top > 1e-12 else torch.ones_like(information)
