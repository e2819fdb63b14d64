"""Muon for the trainings of the testbed: matrices move by an orthonormal step, the rest by AdamW.

Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); the size of a step
is that of J. Liu et al., arXiv 2502.16982. It needs about half as many steps here as AdamW.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
SIZE = 0.2  # root mean square of an entry of a step, as with AdamW


def orthonormal(g):
    """The nearest orthonormal matrix to [rows, columns], roughly, by Newton and Schulz."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16() / (g.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


class Muon:
    """Steps all parameters of a module; convolutions count as matrices [out, in * k * k]."""

    def __init__(self, module, rate, small_rate, momentum=0.95, decay=1e-2):
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self.matrices = [p for p in module.parameters() if p.ndim > 1]
        self.moving = [torch.zeros_like(p) for p in self.matrices]
        small = [p for p in module.parameters() if p.ndim < 2]
        self.small_rate = small_rate
        self.rest = torch.optim.AdamW(small, small_rate, betas=(0.9, 0.99), weight_decay=0)

    @torch.no_grad()
    def step(self, share):
        """One step at `share` of the full rate, from the gradients that the parameters hold."""
        for p, m in zip(self.matrices, self.moving, strict=True):
            m.lerp_(p.grad, 1 - self.momentum)
            step = orthonormal(p.grad.lerp(m, self.momentum).flatten(1)).view(p.shape)
            p.mul_(1 - share * self.rate * self.decay)
            p.sub_(step, alpha=share * self.rate * SIZE * max(p.flatten(1).shape) ** 0.5)
        for group in self.rest.param_groups:
            group["lr"] = share * self.small_rate
        self.rest.step()

    def state_dict(self):
        return {"moving": self.moving, "rest": self.rest.state_dict()}

    def load_state_dict(self, saved):
        for m, value in zip(self.moving, saved["moving"], strict=True):
            m.copy_(value)
        self.rest.load_state_dict(saved["rest"])
