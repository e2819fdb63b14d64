"""Sculpting Memory (arXiv 2504.09039): concepts are overwritten by training only a moving part of each cross-attention matrix.

The equations are those of the authors' released training, numbered SM-1 to SM-11 in its order; eps(x, t, e) is the network's prediction
for the noised latent x under the prompt e, c the concept, s its superclass, y latents of the superclass, sg stops the gradient:

    SM-1   L_CA = || eps(x, t, c) - sg eps(x, t, s) ||^2          concept-aware overwrite; the target is the student itself
    SM-2   L_al = || eps(y, t, s) - noise ||^2                    superclass alignment
    SM-3   L_KD = || eps(y, t, s) - eps_teacher(y, t, s) ||^2     distillation, also for every other prompt that is to stay as it is
    SM-4   L    = L_CA + lambda_a L_al + lambda_kd L_KD
    SM-5   L_w  = || eps(x, t, c) - noise ||^2                    warm-up: gradients are gathered, nothing moves
    SM-6   G   <- G + dL/dW                                       before the mask, per matrix
    SM-7   I    = |G|
    SM-8   M    = the max(1, floor(rho n)) largest of I at the end of the warm-up; G <- 0
    SM-9   u    = max(1, floor(tau |M|)): the u smallest of I leave M, the u largest outside enter, every so many steps; G <- 0
    SM-10  tau  = tau_0 (1 + cos(pi progress)) / 2
    SM-11  W   <- Adam(W, M dL/dW)

Ours, before SM-6, for the keys and values in the variant `replay`:

    SM-12  g   <- |g| g P / |g P|,   P = (I + K / (kappa tr K / d))^-1

K is the second moment of the text states of everything held. A gradient of a key or value matrix lies along the states of the
concept's sentences, which are mostly what all sentences share; P takes that out, so that words that stay are hardly touched.

All terms are mean squared errors to a target without gradient, so a step is one batch of rows, each with its target and its weight.
Where the release lets Adam's momentum move a weight after it left the mask, it stops here: its moments are cleared.
"""

import math

import torch

MEASURES = ("signed", "absolute")


def squared_error(prediction, target):
    """Mean squared error of each row, [b] float32, of predictions and targets [b, ...]; no gradient reaches the target (SM-1 to SM-3)."""
    return (prediction.float() - target.detach().float()).square().flatten(1).mean(1)


def objective(prediction, target, weights):
    """(sum over rows of weight * squared error, the errors [b] without gradient): SM-4 for rows of all terms side by side; a term of n
    rows and factor lambda gives each of them the weight lambda / n."""
    errors = squared_error(prediction, target)
    return (errors * weights).sum(), errors.detach()


def retain_projector(states, kappa=2.0, tolerance=0.05):
    """A [d, r] float32 with P = I - A A^T of SM-12, from text states [n, d]; what P shortens by less than `tolerance` is left as it is."""
    x = states.double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    gain = values.clamp_min(0) * (len(values) / (kappa * values.sum()))
    shorter = gain / (1 + gain)
    chosen = shorter >= tolerance
    return (vectors[:, chosen] * shorter[chosen].sqrt()).float()


def project_gradient(gradient, a):
    """g <- |g| g P / |g P| of SM-12 in place; gradient [d_out, d], a [d, r] of `sparing`."""
    length = gradient.norm()
    gradient.addmm_(gradient @ a, a.T, alpha=-1)
    gradient.mul_(length / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny))


def accumulate(total, gradient, measure="signed"):
    """G <- G + g in place (SM-6); with the measure 'absolute' G <- G + |g|, which opposite gradients do not cancel in."""
    total.add_(gradient if measure == "signed" else gradient.abs())


def _largest(values, k):
    """bool mask of exactly k largest entries of a flat tensor; of equal ones those that come first."""
    if k <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    edge = values.kthvalue(values.numel() - k + 1).values
    above, tied = values > edge, values == edge
    room = k - above.sum()
    return above | (tied & (tied.cumsum(0) <= room))


def initial_mask(total, density):
    """bool M of the shape of G: the max(1, floor(density * n)) entries of largest |G| (SM-7, SM-8)."""
    k = max(1, math.floor(density * total.numel()))
    return _largest(total.abs().flatten(), k).view_as(total)


def turnover(tau0, progress):
    """tau of SM-10: the share of the mask that is exchanged, `progress` running from 0 to 1."""
    return tau0 * 0.5 * (1 + math.cos(math.pi * progress))


def refresh(mask, total, tau):
    """(new mask, how many entries were exchanged): drop and grow by importance |G| at constant density (SM-9).

    mask bool and total of one shape; no more entries are exchanged than there are inside or outside.
    """
    inside, importance = mask.flatten(), total.abs().flatten()
    active = int(inside.sum())
    u = min(max(1, math.floor(tau * active)), active, inside.numel() - active)
    if u == 0:
        return mask.clone(), 0
    nothing = importance.new_tensor(-torch.inf)
    dropped = _largest(torch.where(inside, -importance, nothing), u)
    grown = _largest(torch.where(inside, nothing, importance), u)
    return (inside & ~dropped | grown).view_as(mask), u


class MaskedAdam(torch.optim.Adam):
    """torch.optim.Adam confined to a bool mask per parameter (SM-11): a weight outside keeps its very bits, one that leaves stops at once.

    It rests on Adam itself: where gradient and both moments are zero its update is exactly zero. A weight that enters late starts with
    empty moments under the common step count, so its first steps are up to (1 - beta1) / sqrt(1 - beta2) times the learning rate.
    Weight decay would move masked weights and is not offered.
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, **how):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0, **how)
        self.masks = {}

    def confine(self, masks):
        """Sets the masks, parameter -> bool tensor of its shape, and clears the moments of all weights outside."""
        self.masks = dict(masks)
        for p, mask in self.masks.items():
            for name, moment in self.state[p].items():
                if name != "step":
                    moment.masked_fill_(~mask, 0)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; the gradients, which must be finite, are masked in place. Parameters without a mask do not move."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad.mul_(self.masks[p]) if p in self.masks else None
        return super().step(closure)
