"""ESD-x (arXiv 2303.07345, eq 7): trains cross-attention to predict away from the concept.

    eps(x_t, c)  <-  eps_0(x_t, "") - eta ( eps_0(x_t, c) - eps_0(x_t, "") ),   eta 1

eps_0 is the model that came in, c the concept's name. Paper: 1000 steps of one picture at a
learning rate of 1e-5. Several concepts share these steps: in the official code each step takes one
of them at random. There x_t is sampled from the model in training at every step. Here it is a
picture of the concept by the model that came in, with noise of any level, which spares the
sampling.
"""

import torch

from . import _shared

NAME = "ESD-x"
ETA, RATE, STEPS, BATCH, PICTURES = 1.0, 1e-5, 1000, 1, 32


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
    """Trains the student for `steps` steps, each on one of the concepts at random."""
    g, optimiser = (
        torch.Generator().manual_seed(seed),
        torch.optim.Adam(net.trainable.values(), RATE),
    )
    pictures = _shared.drawn(net, [n for n in names for _ in range(PICTURES)], seed).view(
        len(names), PICTURES, *net.shape
    )
    for _ in range(steps):
        i = int(torch.randint(len(names), (), generator=g))
        x, sigma = _shared.noised(
            net, pictures[i, torch.randint(PICTURES, (BATCH,), generator=g)], g
        )
        optimiser.zero_grad()
        loss(net, net.student, x, sigma, [net.text_id[names[i]]] * BATCH).backward()
        optimiser.step()


def texts(concepts):
    """Every text that is trained on."""
    return ["", *(name for name, _ in _shared.pairs(concepts))]


def official_steps(concepts):
    """Steps that all concepts share."""
    return STEPS


def erase(model, clip, concepts, seed=0, size=64, steps=STEPS):
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, texts(concepts), size)
        train(net, texts(concepts)[1:], steps, seed)
        return _shared.erased(model, NAME, concepts, _shared.moved(net))
