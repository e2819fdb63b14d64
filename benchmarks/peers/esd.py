"""ESD-x (arXiv 2303.07345, eq 7): trains cross-attention to predict away from the concept.

    eps(x_t, c)  <-  eps_0(x_t, "") - eta ( eps_0(x_t, c) - eps_0(x_t, "") ),   eta 1

eps_0 is the model that came in, c the concept's name, x_t pictures of it at any noise level. With
several concepts, each step takes one of them. Paper: 1000 steps of one picture at learning rate
1e-5. On the sprite world, with 60 steps of four pictures, an object was measured to stay at 1e-5,
and from 3e-5 on more and more of everything else was lost.
"""

import torch

from . import _shared

NAME = "ESD-x"
ETA, RATE, STEPS, BATCH, PICTURES = 1.0, 2e-5, 60, 4, 8


def target(empty, said, eta=ETA):
    """Training target [n, c, h, w], from the model's predictions for no text and the concept."""
    return empty - eta * (said - empty)


def loss(net, branch, x, sigma, rows):
    """Mean squared error of a branch of the Network on latents x [n, c, h, w], texts `rows`."""
    with torch.no_grad():
        said = net.predict(
            net.reference,
            torch.cat([x, x]),
            torch.cat([sigma, sigma]),
            [net.text_id[""]] * len(x) + rows,
        )
    return (net.predict(branch, x, sigma, rows) - target(*said.chunk(2))).square().mean()


def train(net, names, steps, seed=0):
    """Trains the student for `steps` steps a concept."""
    g, optimiser = (
        torch.Generator().manual_seed(seed),
        torch.optim.Adam(net.trainable.values(), RATE),
    )
    pictures = _shared.drawn(net, [n for n in names for _ in range(PICTURES)], seed).view(
        len(names), PICTURES, *net.shape
    )
    for _ in range(steps * len(names)):
        i = int(torch.randint(len(names), (), generator=g))
        x, sigma = _shared.noised(
            net, pictures[i, torch.randint(PICTURES, (BATCH,), generator=g)], g
        )
        optimiser.zero_grad()
        loss(net, net.student, x, sigma, [net.text_id[names[i]]] * BATCH).backward()
        optimiser.step()


def erase(model, clip, concepts, seed=0, size=64):
    names = [name for name, _ in _shared.pairs(concepts)]
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, ["", *names], size)
        train(net, names, STEPS, seed)
        return _shared.erased(model, NAME, concepts, _shared.moved(net))
