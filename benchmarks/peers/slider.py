"""A negative LoRA as in LECO and Concept Sliders (arXiv 2311.12092, eq 8), applied at -1.

    eps(x_t, c)  <-  eps_0(x_t, c) + eta ( eps_0(x_t, c) - eps_0(x_t, s) )

A low-rank change a/r up @ down of every cross-attention matrix is trained to draw more of the
concept. c is the concept's name and s its target. If the change were linear, -1 would give s for
eta 1, which is LECO's; Concept Sliders have 4. Official: rank r 4, a 1, AdamW at 2e-4, 1000 steps
of one picture; there all other layers are trained. Several concepts share these steps: in both
official codes each step takes one of them at random.
"""

import torch

from . import _shared

NAME = "negative LoRA"
RANK, ALPHA, ETA, RATE, STEPS, BATCH, PICTURES = 4, 1.0, 1.0, 2e-4, 1000, 1, 32


def target(said, other, eta=ETA):
    """Training target [n, c, h, w], from the predictions for the concept and for its target."""
    return said + eta * (said - other)


def loss(net, branch, x, sigma, rows, others):
    """Mean squared error of a branch of the Network on latents x [n, c, h, w] under texts `rows`.

    The prediction is compared with one pushed away from the texts `others`.
    """
    with torch.no_grad():
        said = net.predict(
            net.reference, torch.cat([x, x]), torch.cat([sigma, sigma]), rows + others
        )
    return (net.predict(branch, x, sigma, rows) - target(*said.chunk(2))).square().mean()


class Lora:
    """Factors of every trained matrix of a Network: W = W0 + strength * a/r * up @ down.

    Their gradients follow by the chain rule from those of W.
    """

    def __init__(self, net, g):
        self.net, self.start = net, {key: w.detach().clone() for key, w in net.trainable.items()}
        self.up = {k: torch.nn.Parameter(torch.zeros(len(w), RANK)) for k, w in self.start.items()}
        self.down = {
            k: torch.nn.Parameter(torch.randn(RANK, w.shape[1], generator=g) / w.shape[1] ** 0.5)
            for k, w in self.start.items()
        }

    @torch.no_grad()
    def pull(self):
        """Gradients of the factors from those of the matrices."""
        for key, w in self.net.trainable.items():
            self.up[key].grad, self.down[key].grad = (
                ALPHA / RANK * w.grad @ self.down[key].T,
                ALPHA / RANK * self.up[key].T @ w.grad,
            )
            w.grad = None

    @torch.no_grad()
    def put(self, strength=1.0):
        """The factors on the student's matrices."""
        for key, w in self.net.trainable.items():
            w.copy_(self.start[key] + strength * ALPHA / RANK * self.up[key] @ self.down[key])


def train(net, pairs, steps, seed=0):
    """The Lora after `steps` steps, each on one (name, what it turns into) at random."""
    g = torch.Generator().manual_seed(seed)
    lora = Lora(net, g)
    optimiser = torch.optim.AdamW([*lora.up.values(), *lora.down.values()], RATE)
    pictures = _shared.drawn(net, [n for n, _ in pairs for _ in range(PICTURES)], seed).view(
        len(pairs), PICTURES, *net.shape
    )
    for _ in range(steps):
        i = int(torch.randint(len(pairs), (), generator=g))
        x, sigma = _shared.noised(
            net, pictures[i, torch.randint(PICTURES, (BATCH,), generator=g)], g
        )
        loss(net, net.student, x, sigma, *([net.text_id[t]] * BATCH for t in pairs[i])).backward()
        lora.pull(), optimiser.step(), lora.put()
    return lora


def texts(concepts):
    """Every text that is trained on."""
    return ["", *(t for pair in _shared.pairs(concepts) for t in pair)]


def official_steps(concepts):
    """Steps that all concepts share."""
    return STEPS


def erase(model, clip, concepts, seed=0, size=64, steps=STEPS):
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, texts(concepts), size)
        lora = train(net, _shared.pairs(concepts), steps, seed)
        factors = {k: (ALPHA / RANK * lora.up[k].detach(), lora.down[k].detach()) for k in lora.up}
        edits = [
            (k, _shared.adapters.LowRank.of(*(part.half() for part in both)))
            for k, both in factors.items()
        ]
        return _shared.erased(model, NAME, concepts, edits, -1.0)
