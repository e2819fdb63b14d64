"""What the peers share: the text states that these methods read, and their edits as a patch."""

import torch

from testbed import pack

from . import Erased

adapters = pack.module("unlearn.host.adapters")
layers = pack.module("unlearn.host.architectures")
patching = pack.module("unlearn.host.patching")
prompts = pack.module("unlearn.host.text_encoding")
scapre = pack.module("kernels.scapre")
sentences = pack.module("unlearn.concepts.sentences")
types = pack.module("unlearn.types")
uce = pack.module("kernels.uce")
lockstep = pack.module("unlearn.host.batched_sampling")
networks = pack.module("unlearn.host.training_network")
weights = pack.module("unlearn.host.weights")

KINDS = ("few", "many", "style", "explicit")
MANY = 10  # objects from which on papers have a setting for many
CFG = 3.0  # guidance that the worlds are sampled with (SD1.5: 7.5)
DRAWING = 10  # steps of the pictures that are trained on
READ_AT_ONCE = 64  # texts whose states are in memory at a time


def kind_of(concepts):
    """One of KINDS: which of a paper's settings a ConceptSet calls for."""
    kinds = {c.kind for c in concepts.concepts}
    for kind in ("explicit", "style"):
        if kind in kinds:
            return kind
    return "many" if len(concepts.concepts) >= MANY else "few"


def stand_in(concept):
    """The target of a concept: its superclass, or for a style `art` as in the methods' own code.

    Without either it is the empty text.
    """
    return concept.superclass or ("art" if concept.kind == "style" else "")


def pairs(concepts):
    """(name, what it turns into) of every concept and alias of a ConceptSet."""
    return [(name, stand_in(c)) for c in concepts.concepts for name in c.names]


def captions(concepts):
    """Everyday captions that name none of the concepts."""
    spoken = sentences.mentioned([name for name, _ in pairs(concepts)])
    return [s for s in sentences.prior_sentences() if not spoken(s)]


def last_states(clip, texts):
    """States [n, d] float64 of the last word token of each text.

    Of an empty text it is the start token's, as in the official codes.
    """
    read = prompts.encode(clip, texts)
    rows = [read[t][prompts.locate(clip, "{concept}", t).last] for t in texts]
    return (
        torch.stack(rows).double()
        if rows
        else torch.zeros(0, len(next(iter(prompts.encode(clip, [""]).values()))[0])).double()
    )


def all_states(clip, texts):
    """States [n * 77, d] float64 of every position of the texts."""
    read = prompts.encode(clip, texts)
    return torch.cat([read[t] for t in texts]).double()


def moment(clip, texts):
    """Sum of s s^T, [d, d] float64, over the states s of every position of the texts."""
    texts = list(texts)
    return sum(
        scapre.gram(all_states(clip, texts[at : at + READ_AT_ONCE]))
        for at in range(0, len(texts), READ_AT_ONCE)
    )


def multiplier(c, n, kept, lam=uce.LAMBDA, erase=1.0, preserve=1.0, weight=None):
    """M [d, d] float64 of UCE: W0 (I + M) gives states c [m, d] the outputs of n [m, d].

    kept: sum of k k^T, [d, d]. weight: of each row of c, [m], 1 where it is not given.
    """
    moments = scapre.gram(c, weight), scapre.cross_gram(n, c, weight), kept
    return uce.multiplier(*moments, lam, erase, preserve)


def block(old, new, last, new_last):
    """(c, n), [m, d] each, of the states of a name [n, d] and of its target, as UCE maps them.

    last, new_last: where their last tokens stand. m: as many rows as both have from there on.
    """
    size = min(len(old) - last, len(new) - new_last)
    return old[last : last + size].double(), new[new_last : new_last + size].double()


def multiplied(model, m, tolerance=1e-6):
    """Edits W0 -> W0 (I + M) of every cross-attention key and value, as low-rank factors.

    M: [d, d]. Singular values of M below tolerance times the largest are left out.
    """
    left, right = (part.float() for part in uce.factors(m, tolerance))
    return [
        (k.key, adapters.LowRank.of((weights.read(model, k.key) @ left).half(), right))
        for k in layers.cross_attention(model)
    ]


def values(model):
    """(weight key, weight [d_out, d] float64) of every cross-attention value."""
    for layer in layers.cross_attention(model):
        if layer.role == "value":
            yield layer.key, weights.read(model, layer.key).double()


def network(model, clip, texts, size):
    """A Network whose cross-attention is trained and that is told `texts`, each once.

    size: side of its pictures in pixels.
    """
    chosen = [layer.key for layer in networks.layers(model)]
    shape = lockstep.latent_shape(model, size)
    net = networks.Network(model, chosen, networks.conditioning(model, clip, texts, size, shape))
    net.shape = tuple(shape)  # [c, h, w] of the latents that are trained on
    return net


def drawn(net, texts, seed, away=None):
    """Latents [n, c, h, w], one per text, that the model that came in draws for them.

    away: the texts that they are guided away from, the empty one by default.
    """
    rows = [net.text_id[t] for t in texts]
    others = [net.text_id[t] for t in away or [""] * len(texts)]
    return net.draw(
        net.reference,
        rows,
        others,
        [seed + i for i in range(len(rows))],
        networks.DrawSettings(net.shape, DRAWING, CFG),
    )


def noised(net, latents, g):
    """(x, sigma) of latents [n, c, h, w] at noise levels of timesteps drawn evenly."""
    sigma = net.levels(torch.rand(len(latents), generator=g))
    return net.noised(latents, torch.randn(latents.shape, generator=g), sigma), sigma


def denoising(net, x, sigma, latents, rows):
    """Mean squared error of the student's prediction of the noise in x.

    x: noised latents [n, c, h, w]; rows: their texts.
    """
    wanted = net.denoising_target(latents, x, sigma)
    return (net.predict(net.student, x, sigma, rows) - wanted).square().mean()


def forgetting(net, x, sigma, rows, others):
    """Mean squared error between the student's predictions for `rows` and those for `others`.

    The latter are detached.
    """
    with torch.no_grad():
        wanted = net.predict(net.student, x, sigma, others)
    return (net.predict(net.student, x, sigma, rows) - wanted).square().mean()


def moved(net):
    """Edits of what was trained, as it moved from the start."""
    return [
        (key, adapters.Delta.of((w.detach() - net.start(key)).half()))
        for key, w in net.trainable.items()
    ]


def erased(model, name, concepts, edits, strength=1.0):
    """Erased of a MODEL with edits [(weight key, edit)] on it."""
    keys = list(dict.fromkeys(key for key, _ in edits))
    record = {"method": name, "settings": {}, "concepts": [c.name for c in concepts.concepts]}
    patch = types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys), (record,))
    return Erased(patching.apply(model, patch, strength)[0], patch.nbytes)
