"""MACE's closed-form refinement (arXiv 2403.06135, eq 2 with the cached prior of its multi-concept runs), without its LoRA stage.

    W = [ lambda W0 + sum W0 y c^T + W0 P ] [ lambda I + sum c c^T + P ]^-1

In sentences with a concept, c are the states of all other tokens - the words around it, the end token and the padding, which carry the
concept along - and y those of the same tokens when the sentence holds what it turns into. P: moment of everyday captions and of the
keep list. The concept's own tokens are left to a LoRA trained per concept on segmented pictures, which is not here; on the sprite world
this stage alone forgets, and to turn the concept's own tokens as well was measured to change neither forgot nor kept.
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
    """M [d, d] float64 of W = W0 (I + M): states c [n, d] take the outputs of y [n, d], the moment prior [d, d] is held."""
    return uce.kernel.multiplier(scapre.gram(c), scapre.cross_gram(y, c), prior, lam)


def block(a, b, old, new):
    """Rows (c, y) [n, d] of one sentence: Prompts a with the concept and b with what it turns into, and their states [77, d]."""
    shift = b.last - a.last
    end = len(old) - max(0, shift)
    c, y = (old[: a.first], old[a.last + 1 : end]), (new[: b.first], new[b.last + 1 : end + shift])
    return torch.cat(c).double(), torch.cat(y).double()


@torch.inference_mode()
def erase(model, clip, concepts, seed=0):
    found = []
    for concept in concepts.concepts:
        templates = (*sentences.TEMPLATES[concept.kind], *plans.MORE[concept.kind])
        for name in concept.names:
            for t in (prompts.grammar(t, name) for t in templates):
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
