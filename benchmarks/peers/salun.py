"""SalUn (arXiv 2310.12508): random labels, trained into the weights with the largest gradient.

    M = top half of |d/dW ||eps(x_t, c) - noise||^2|, over all trained weights, before training
    L = ||eps(x_t, c) - sg eps(x_t, s)||^2 + alpha ||eps(y_t, k) - noise||^2,   W <- W - M * step

x are pictures of a concept c. s is the label it gets instead: random in the paper, the target here.
y are pictures of what is kept and k their text: the keep list and everyday captions. What is
trained is cross-attention (`xattn` in the official code). Paper: learning rate 1e-5, 5 epochs over
800 pictures in batches of 8, alpha 0.1. The worlds here take a higher rate and fewer steps.
"""

import torch

from testbed import pack

from . import _shared

NAME = "SalUn"
SHARE, ALPHA, RATE, STEPS, BATCH, PICTURES, CAPTIONS = 0.5, 0.1, 3e-4, 100, 4, 8, 16
sentences = pack.module("unlearn.concepts.sentences")


def masks(grads, share=SHARE):
    """A bool mask for each of the gradients: the top share of |g| over all of them together."""
    flat = torch.cat([g.abs().flatten() for g in grads])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(int(share * len(flat))).indices] = True
    return [
        part.view(g.shape)
        for part, g in zip(chosen.split([g.numel() for g in grads]), grads, strict=True)
    ]


def denoising(net, x, sigma, latents, rows):
    """Mean squared error of the student's prediction of the noise.

    x: noised latents [n, c, h, w]; rows: their texts.
    """
    return (
        (net.predict(net.student, x, sigma, rows) - net.denoising_target(latents, x, sigma))
        .square()
        .mean()
    )


def forgetting(net, x, sigma, rows, others):
    """Mean squared error between the student's predictions for `rows` and those for `others`.

    The latter are detached.
    """
    with torch.no_grad():
        wanted = net.predict(net.student, x, sigma, others)
    return (net.predict(net.student, x, sigma, rows) - wanted).square().mean()


def train(net, pairs, kept, steps, seed=0):
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
        denoising(net, x, sigma, own[at], [said[i] for i in at]).backward()
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
        lost = forgetting(net, x, sigma, [said[i] for i in at], [other[i] for i in at])
        (
            lost
            + ALPHA * denoising(net, y, level, held[keep], [net.text_id[kept[i]] for i in keep])
        ).backward()
        for p, mask in zip(params, chosen, strict=True):
            p.grad *= mask
        optimiser.step()
    return chosen


def erase(model, clip, concepts, seed=0, size=64):
    pairs = _shared.pairs(concepts)
    spoken = sentences.mentioned([n for n, _ in pairs])
    kept = [*concepts.keep, *[s for s in sentences.prior_sentences() if not spoken(s)][:CAPTIONS]]
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, ["", *(t for pair in pairs for t in pair), *kept], size)
        train(net, pairs, kept, STEPS, seed)
        return _shared.erased(model, NAME, concepts, _shared.moved(net))
