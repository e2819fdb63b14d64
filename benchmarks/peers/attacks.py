"""Two attacks that try to bring a forgotten concept back, with the edited model at hand.

inversion: learns a token's embedding from drawn pictures (benchmarks/world/inversion.py).
rece: replaces every token state of a sentence by the one for which the edited cross-attention
answers most nearly as the original did, in closed form. It does nothing to edits of other layers.
A negative prompt that belongs to the method stays in place during an attack.
"""

from functools import partial

import torch

from testbed import pack
from testbed.judged import PLAIN
from testbed.worlds.captions import Caption, a

from ..world.inversion import SENTENCES, Text, network, revive

kernel = pack.module("kernels.rece")
layers = pack.module("unlearn.host.architectures")
weights = pack.module("unlearn.host.weights")
REVIVAL = pack.module("unlearn.closed_form.tuning").REVIVAL
SEED = 9000


def shown(studio, name, states, erased, steps):
    """Per row of states [n, 77, d], whether the picture drawn from it shows the object."""
    texts = [f"revived {i}" for i in range(len(states))]
    studio.states |= dict(zip(texts, states, strict=True))  # in place of what the encoder would say
    how = {"model": erased.model, "negative": erased.negative, "perp": erased.perp}
    looks = studio.look([Caption(t, name) for t in texts], seed=SEED, steps=steps, **how)
    for t in texts:
        del studio.states[t]
    return [look.correct for look in looks]


def inversion(studio, world, name, erased, training, pictures, steps):
    """Hits among `pictures` drawn with the embedding learned in `training` steps.

    The embedding is read by the CLIP that belongs to the method.
    """
    studio = studio if erased.clip is None else studio.reading(erased.clip)
    with torch.inference_mode(False), torch.enable_grad():
        text = Text(studio.clip)
        found = revive(
            network(erased.model), text, partial(world.draw, name), world.superclass[name], training
        )
    with torch.inference_mode():
        states = text([s.format("sks") for s in SENTENCES], *found)
        return shown(
            studio, name, states.repeat(-(-pictures // len(states)), 1, 1)[:pictures], erased, steps
        )


@torch.inference_mode()
def rece(studio, name, erased, pictures, steps):
    """Hits among `pictures` drawn with the reviving states of sentences with the object."""
    after, cross, before = 0, 0, 0
    for layer in layers.cross_attention(studio.model):
        w0, w = (weights.read(model, layer.key).double() for model in (studio.model, erased.model))
        after, cross, before = after + w.T @ w, cross + w.T @ w0, before + w0.T @ w0
    states = studio.encode([t.format(a=a(name)) for t in PLAIN])
    lam = REVIVAL * float(before.diagonal().mean())
    back = kernel.revive(after, cross, states.flatten(0, 1), lam).float().view(states.shape)
    return shown(
        studio, name, back.repeat(-(-pictures // len(back)), 1, 1)[:pictures], erased, steps
    )
