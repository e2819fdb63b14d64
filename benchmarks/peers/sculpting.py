"""Sculpting Memory (arXiv 2504.09039) as its authors released it; the pack trains another way.

    L = ||eps(x_t, c) - sg eps(x_t, s)||^2 + 0.25 ||eps(y_t, s) - noise||^2,   W <- Adam(W, M dL/dW)

x are pictures of the concept c, y of its superclass s, drawn away from c; both have one noise level
(SM-1, SM-2 and SM-11 of kernels/sculpting.py). The distillation of the paper is computed by the
released code and then overwritten, so it trains nothing. M is a mask on every query, key, value and
output matrix of cross-attention: the half with the largest summed gradient of 50 steps of
denoising, of which a falling share is exchanged every 100 steps for the first eight of ten epochs
(SM-5 to SM-10).

Official: 100 pictures each by the model that came in, 500 steps of two pictures for each concept,
one concept after another, Adam at 3e-6 with OneCycle. After a concept the weights of the epoch with
the lowest forgetting loss are taken. The released code compares the warm-up too, in which nothing
is trained and the loss is that of denoising. On the sprites that was the lowest loss, so that
nothing was forgotten; here the warm-up is left out of the comparison. Adam's moments of a
weight outside its mask go on, as there; the bias of the output matrices is not trained here.
"""

import torch

from testbed import pack

from . import _shared

NAME = "Sculpting Memory (released)"
RATE, STEPS, EPOCHS, BATCH, PICTURES, ALIGN = 3e-6, 500, 10, 2, 100, 0.25
WARMUP, REFRESH, DENSITY, TURNOVER, REFRESHED = 50, 100, 0.5, 0.2, 0.8
kernel = pack.module("kernels.sculpting")


class Masks:
    """The masks of a Network's trained matrices, and the gradients that decide about them."""

    def __init__(self, weights):
        self.weights = weights
        self.total = [torch.zeros_like(w, requires_grad=False) for w in weights]
        self.masks = [torch.ones_like(w, dtype=torch.bool, requires_grad=False) for w in weights]

    def take(self):
        """Adds the gradients to the sums, and then cuts them to the masks."""
        for w, total, mask in zip(self.weights, self.total, self.masks, strict=True):
            kernel.accumulate(total, w.grad)
            w.grad *= mask

    def begin(self):
        """The first masks, after the warm-up."""
        self.masks = [kernel.initial_mask(total, DENSITY) for total in self.total]
        self._clear()

    def refresh(self, tau):
        """Exchanges a share tau of every mask."""
        both = zip(self.masks, self.total, strict=True)
        self.masks = [kernel.refresh(mask, total, tau)[0] for mask, total in both]
        self._clear()

    def _clear(self):
        for total in self.total:
            total.zero_()


def plan(steps):
    """(steps of the warm-up, steps between refreshes, steps of an epoch) of a round."""
    share = steps / STEPS
    return tuple(max(1, round(x * share)) for x in (WARMUP, REFRESH, STEPS / EPOCHS))


class Best:
    """The trained weights as they were after the epoch with the lowest mean loss."""

    def __init__(self, params):
        self.params, self.lowest, self.weights, self.losses = params, float("inf"), None, []

    def add(self, loss, trained, epoch_ends):
        """Notes a step's forgetting loss; trained: whether the step is behind the warm-up."""
        if trained:
            self.losses.append(float(loss.detach()))
        if not (self.losses and epoch_ends):
            return
        if (mean := sum(self.losses) / len(self.losses)) < self.lowest:
            self.lowest, self.weights = mean, [p.detach().clone() for p in self.params]
        self.losses = []

    @torch.no_grad()
    def take(self):
        """Puts them back."""
        for p, w in zip(self.params, self.weights or self.params, strict=True):
            p.copy_(w)


def losses(net, pictures, texts, step, warmup, g):
    """(what the gradient is of, the forgetting loss alone) of one step.

    pictures: latents of the concept and of its superclass; texts: the same as ids.
    """
    own, wider = pictures
    rows, others = ([text] * BATCH for text in texts)
    at, beside = (torch.randint(PICTURES, (BATCH,), generator=g) for _ in range(2))
    x, sigma = _shared.noised(net, own[at], g)
    if step <= warmup:
        lost = _shared.denoising(net, x, sigma, own[at], rows)
        return lost, lost
    y = net.noised(wider[beside], torch.randn(x.shape, generator=g), sigma)
    lost = _shared.forgetting(net, x, sigma, rows, others)
    return lost + ALIGN * _shared.denoising(net, y, sigma, wider[beside], others), lost


def train(net, name, sentences, steps, seed=0):
    """Overwrites one concept in `steps` steps, the warm-up counted; returns the last masks.

    sentences: with the concept and with its superclass.
    """
    warmup, every, epoch = plan(steps)
    g, params = torch.Generator().manual_seed(seed), list(net.trainable.values())
    pictures = (
        _shared.drawn(net, sentences[:1] * PICTURES, seed),
        _shared.drawn(net, sentences[1:] * PICTURES, seed + PICTURES, [name] * PICTURES),
    )
    texts = [net.text_id[t] for t in sentences]
    optimiser, masks, best = torch.optim.Adam(params, RATE), Masks(params), Best(params)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        whole, lost = losses(net, pictures, texts, step, warmup, g)
        whole.backward()
        masks.take()
        number = (step - 1) // epoch
        if step == warmup:
            masks.begin()
        elif step > warmup:
            optimiser.step()
            schedule.step()
            if step % every == 0 and number < int(REFRESHED * EPOCHS):
                masks.refresh(kernel.turnover(TURNOVER, number / EPOCHS))
        best.add(lost, trained=step > warmup, epoch_ends=step % epoch == 0)
    best.take()
    return masks.masks


def sentences_of(concepts):
    """(name, sentence with it, sentence with what it turns into) of every concept."""
    return [
        (name, f"a photo of {name}", f"a photo of {other}".strip())
        for name, other in _shared.pairs(concepts)
    ]


def texts(concepts):
    """Every text that is trained on."""
    return ["", *(text for found in sentences_of(concepts) for text in found)]


def official_steps(concepts):
    """Steps for each concept."""
    return STEPS


def erase(model, clip, concepts, seed=0, size=64, steps=STEPS):
    with torch.inference_mode(False), torch.enable_grad():
        net = _shared.network(model, clip, texts(concepts), size)
        for name, *sentences in sentences_of(concepts):
            train(net, name, sentences, steps, seed)
        return _shared.erased(model, NAME, concepts, _shared.moved(net))
