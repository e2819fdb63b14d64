"""MACE's closed-form refinement (arXiv 2403.06135, eq 2), without its LoRA stage.

    W = [ lambda W0 + sum W0 y c^T + W0 P ] [ lambda I + sum c c^T + P ]^-1

It is the form with the cached prior of multi-concept runs. c are the states of all tokens of a
sentence except the concept's own: the other words, the end token and the padding, which carry the
concept too. y are the states of the same tokens in the sentence with the target. P is the moment of
everyday captions and of the keep list.

In the paper, a LoRA trained on segmented pictures of each concept takes care of the concept's own
tokens; it is not here. On the sprite world this stage alone forgets. Editing the concept's own
tokens as well was measured to change neither forgot nor kept.
"""

import torch

from testbed import pack

from . import _shared, uce

NAME = "MACE (closed form)"
LAMBDA = 10.0  # official configurations: 10 for objects, 0 where the prior is cached
PRIOR = 4.7e3  # rows that the captions weigh together: 600 000 of 77 tokens at 1e-4
KEPT = 20.0  # of every state of the keep list: 1e-4 x 2e5
sentences = pack.module("unlearn.concepts.sentences")
plans = pack.module("unlearn.sculpting.plan")
scapre = pack.module("kernels.scapre")
prompts = _shared.prompts


def multiplier(c, y, prior, lam=LAMBDA):
    """M [d, d] float64 of W = W0 (I + M), which gives states c [n, d] the outputs of y [n, d].

    prior: the moment [d, d] of states whose outputs are preserved.
    """
    return uce.kernel.multiplier(scapre.gram(c), scapre.cross_gram(y, c), prior, lam)


def block(a, b, old, new):
    """States (c, y), [n, d] each, of one sentence.

    a, b: Prompts with the concept and with its target, and their states [77, d].
    """
    shift = b.last - a.last
    end = len(old) - max(0, shift)
    c, y = (old[: a.first], old[a.last + 1 : end]), (new[: b.first], new[b.last + 1 : end + shift])
    return torch.cat(c).double(), torch.cat(y).double()


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    found = []
    for concept in concepts.concepts:
        templates = (*sentences.TEMPLATES[concept.kind], *plans.MORE[concept.kind])
        for name in concept.names:
            for t in (prompts.fix_article(t, name) for t in templates):
                a, b = (
                    prompts.locate(clip, t, name),
                    prompts.locate(clip, t, _shared.stand_in(concept)),
                )
                states = prompts.encode(clip, [a.text, b.text])
                found.append(block(a, b, states[a.text], states[b.text]))
    c, y = (torch.cat(part) for part in zip(*found, strict=True))
    spoken = sentences.mentioned([n for n, _ in _shared.pairs(concepts)])
    captions = _shared.all_states(clip, [s for s in sentences.prior_sentences() if not spoken(s)])
    prior = scapre.gram(captions) * (PRIOR / len(captions))
    if concepts.keep:
        prior = prior + KEPT * scapre.gram(_shared.all_states(clip, concepts.keep))
    return _shared.erased(model, NAME, concepts, _shared.multiplied(model, multiplier(c, y, prior)))
