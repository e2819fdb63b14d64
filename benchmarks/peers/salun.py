"""SalUn (arXiv 2310.12508): random labels, trained into the weights with the largest gradient.

    M = top half of |d/dW ||eps(x_t, c) - noise||^2|, over all trained weights, before training
    L = ||eps(x_t, c) - sg eps(x_t, s)||^2 + alpha ||eps(y_t, k) - noise||^2,   W <- W - M * step

x are pictures of a concept c. s is the label it gets instead: random in the paper, the target here.
y are pictures of what is kept and k their text: the keep list and everyday captions. What is
trained is cross-attention (`xattn` in the official code, whose command for classes trains all of
the network). Official: learning rate 1e-5, and for classes alpha 0.5 and 5 epochs over 800 pictures
in batches of 8, which are 500 steps; for nudity alpha 0.1 and one epoch. Here a concept has fewer
pictures, each with more noises.
"""

import torch

from . import _shared

NAME = "SalUn (cross-attention)"
SHARE, RATE, BATCH, PICTURES, CAPTIONS = 0.5, 1e-5, 8, 32, 16
ALPHA = {"few": 0.5, "many": 0.5, "style": 0.5, "explicit": 0.1}
STEPS = {"few": 500, "many": 500, "style": 500, "explicit": 100}


def masks(grads, share=SHARE):
    """A bool mask for each of the gradients: the top share of |g| over all of them together."""
    flat = torch.cat([g.abs().flatten() for g in grads])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(int(share * len(flat))).indices] = True
    return [
        part.view(g.shape)
        for part, g in zip(chosen.split([g.numel() for g in grads]), grads, strict=True)
    ]


def train(net, pairs, kept, steps, alpha, seed=0):
    """Trains the student for `steps` steps for each (name, target); returns the masks.

    kept: texts whose predictions are trained to stay.
    """
    g, params = torch.Generator().manual_seed(seed), list(net.trainable.values())
    own = _shared.drawn(net, [n for n, _ in pairs for _ in range(PICTURES)], seed)
    said = [net.text_id[t] for pair in pairs for t in [pair[0]] * PICTURES]
    other = [net.text_id[t] for pair in pairs for t in [pair[1]] * PICTURES]
    held = _shared.drawn(net, kept, seed)
    for at in torch.arange(len(own)).split(BATCH):
        x, sigma = _shared.noised(net, own[at], g)
        _shared.denoising(net, x, sigma, own[at], [said[i] for i in at]).backward()
    chosen = masks([p.grad for p in params])
    optimiser = torch.optim.Adam(params, RATE)
    for _ in range(steps * len(pairs)):
        optimiser.zero_grad()
        at, keep = (
            torch.randint(len(own), (BATCH,), generator=g),
            torch.randint(len(held), (BATCH,), generator=g),
        )
        x, sigma = _shared.noised(net, own[at], g)
        y, level = _shared.noised(net, held[keep], g)
        lost = _shared.forgetting(net, x, sigma, [said[i] for i in at], [other[i] for i in at])
        texts_kept = [net.text_id[kept[i]] for i in keep]
        (lost + alpha * _shared.denoising(net, y, level, held[keep], texts_kept)).backward()
        for p, mask in zip(params, chosen, strict=True):
            p.grad *= mask
        optimiser.step()
    return chosen


def held_texts(concepts):
    """The texts whose predictions are trained to stay."""
    return [*concepts.keep, *_shared.captions(concepts)[:CAPTIONS]]


def texts(concepts):
    """Every text that is trained on."""
    return ["", *(t for pair in _shared.pairs(concepts) for t in pair), *held_texts(concepts)]


def official_steps(concepts):
    """Steps for each concept."""
    return STEPS[_shared.kind_of(concepts)]


def erase(model, clip, concepts, seed=0, size=64, steps=None):
    alpha, steps = ALPHA[_shared.kind_of(concepts)], steps or official_steps(concepts)
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, texts(concepts), size)
        train(net, _shared.pairs(concepts), held_texts(concepts), steps, alpha, seed)
        return _shared.erased(model, NAME, concepts, _shared.moved(net))
