"""Sculpting Memory (arXiv 2504.09039): concepts are overwritten by training part of the weights.

The equations follow the authors' released training code and are numbered SM-1 to SM-11 in its
order. Here eps(x, t, e) is the network's prediction for the noised latent x at time t under the
prompt e; c is the concept, s its superclass, y are latents of the superclass, and sg stops the
gradient.

    SM-1   L_CA = || eps(x, t, c) - sg eps(x, t, s) ||^2        overwrite the concept
    SM-2   L_al = || eps(y, t, s) - noise ||^2                  align the superclass
    SM-3   L_KD = || eps(y, t, s) - eps_teacher(y, t, s) ||^2   distil from a frozen teacher
    SM-4   L    = L_CA + lambda_a L_al + lambda_kd L_KD
    SM-5   L_w  = || eps(x, t, c) - noise ||^2                  warm-up; no weight moves
    SM-6   G   <- G + dL/dW                                     before the mask, per matrix
    SM-7   I    = |G|
    SM-8   M    = the max(1, floor(rho n)) largest of I after the warm-up; G <- 0
    SM-9   u    = max(1, floor(tau |M|)); the u smallest of I inside M leave it, the u largest
                  outside enter it, every fixed number of steps; G <- 0
    SM-10  tau  = tau_0 (1 + cos(pi progress)) / 2
    SM-11  W   <- Adam(W, M dL/dW)

SM-12 is not in the paper. It changes the gradients of keys and values before SM-6:

    SM-12  g   <- |g| g P / |g P|,   P = (I + K / (kappa tr K / d))^-1

K is the second moment of the text states of everything that is to be retained. The gradient of a
key or value matrix lies along the states of the concept's sentences, and most of these states is
what all sentences have in common. P removes that common part, so that other words change less.

Every loss term is a mean squared error to a fixed target. One training step is therefore one batch
of rows, each with its own target and weight.

One difference from the released code: there, Adam's momentum moves a weight for some steps after
it has left the mask. Here its moments are cleared, so it stops at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

MEASURES = ("signed", "absolute")


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row (SM-1 to SM-3).

    prediction and target are [b, ...]; the result is float32 [b]. No gradient reaches the target.
    """
    return (prediction.float() - target.detach().float()).square().flatten(1).mean(1)


def objective(
    prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the rows' squared errors (SM-4), and the errors [b] without gradient.

    A term of SM-4 with n rows and the factor lambda gives each of its rows the weight lambda / n.
    """
    errors = squared_error(prediction, target)
    return (errors * weights).sum(), errors.detach()


def retain_projector(
    states: torch.Tensor, kappa: float = 2.0, tolerance: float = 0.05
) -> torch.Tensor:
    """Factor A, float32 [d, r], of the matrix P = I - A A^T of SM-12.

    states: text states [n, d] of what is retained. Directions that P shortens by a share below
    `tolerance` are left out of A.
    """
    x = states.double()
    values, vectors = torch.linalg.eigh(x.T @ x)
    gain = values.clamp_min(0) * (len(values) / (kappa * values.sum()))
    shortened_by = gain / (1 + gain)
    chosen = shortened_by >= tolerance
    return (vectors[:, chosen] * shortened_by[chosen].sqrt()).float()


def project_gradient(gradient: torch.Tensor, factor: torch.Tensor) -> None:
    """Applies SM-12 in place: g <- |g| g P / |g P|.

    gradient: [d_out, d]. factor: A [d, r] of `retain_projector`.
    """
    length = gradient.norm()
    gradient.addmm_(gradient @ factor, factor.T, alpha=-1)
    gradient.mul_(length / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny))


def accumulate(total: torch.Tensor, gradient: torch.Tensor, measure: str = "signed") -> None:
    """Adds a gradient to G in place (SM-6).

    With the measure 'absolute' its size is added, so that opposite gradients do not cancel.
    """
    total.add_(gradient if measure == "signed" else gradient.abs())


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Boolean mask of exactly k largest entries of a flat tensor; ties go to the first ones."""
    if k <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(values.numel() - k + 1).values
    above = values > threshold
    tied = values == threshold
    room = k - above.sum()
    return above | (tied & (tied.cumsum(0) <= room))


def initial_mask(total: torch.Tensor, density: float) -> torch.Tensor:
    """The first mask M, boolean of the shape of G (SM-7, SM-8).

    It holds the max(1, floor(density * n)) entries of largest |G|.
    """
    k = max(1, math.floor(density * total.numel()))
    return _largest(total.abs().flatten(), k).view_as(total)


def turnover(tau0: float, progress: float) -> float:
    """Share of the mask that is exchanged (SM-10); progress runs from 0 to 1."""
    return tau0 * 0.5 * (1 + math.cos(math.pi * progress))


def refresh(mask: torch.Tensor, total: torch.Tensor, tau: float) -> tuple[torch.Tensor, int]:
    """The next mask at the same density, and how many entries were exchanged (SM-9).

    mask (boolean) and total G have the same shape. At most as many entries are exchanged as there
    are inside or outside the mask.
    """
    inside = mask.flatten()
    importance = total.abs().flatten()
    active = int(inside.sum())
    u = min(max(1, math.floor(tau * active)), active, inside.numel() - active)
    if u == 0:
        return mask.clone(), 0
    never = importance.new_tensor(-torch.inf)
    dropped = _largest(torch.where(inside, -importance, never), u)
    grown = _largest(torch.where(inside, never, importance), u)
    return (inside & ~dropped | grown).view_as(mask), u


class MaskedAdam(torch.optim.Adam):
    """Adam confined to a boolean mask per parameter (SM-11).

    A weight outside its mask keeps its exact bits, and one that leaves the mask stops at once. This
    relies on a property of Adam: where the gradient and both moments are zero, the update is zero.
    A weight that enters later starts with empty moments but shares the step count, so its first
    steps can be up to (1 - beta1) / sqrt(1 - beta2) times the learning rate. Weight decay would
    move masked weights and is not offered.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0, **options)
        self.masks: dict[torch.Tensor, torch.Tensor] = {}

    def confine(self, masks: Mapping[torch.Tensor, torch.Tensor]) -> None:
        """Sets the masks (parameter -> boolean tensor) and clears all moments outside them."""
        self.masks = dict(masks)
        for p, mask in self.masks.items():
            for name, moment in self.state[p].items():
                if name != "step":
                    moment.masked_fill_(~mask, 0)

    def restore(self, parameter: torch.Tensor, state: Mapping[str, torch.Tensor]) -> None:
        """Sets Adam's saved state of a parameter: `step`, `exp_avg` and `exp_avg_sq`.

        The tensors are moved to where Adam keeps them. A fused or capturable Adam needs `step` on
        the parameter's device; any other keeps it on the CPU.
        """
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        on_device = group["fused"] or group["capturable"]
        restored = {name: value.to(parameter.device) for name, value in state.items()}
        restored["step"] = state["step"].to(parameter.device if on_device else "cpu")
        self.state[parameter].update(restored)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Does one step. The gradients must be finite; they are masked in place.

        Parameters without a mask do not move.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad.mul_(self.masks[p]) if p in self.masks else None
        return super().step(closure)
