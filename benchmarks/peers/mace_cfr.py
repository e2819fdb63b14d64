"""MACE's closed-form refinement (arXiv 2403.06135, eq 2), without its LoRA stage.

    W = [ lambda W0 + sum W0 y c^T + W0 P ] [ lambda I + sum c c^T + P ]^-1

It is the form with the cached prior of multi-concept runs. c are the states of all tokens of a
sentence except the concept's own: the other words, the end token and the padding, which carry the
concept too. y are the states of the same tokens in the sentence with the target. P is the moment of
everyday captions and of the keep list.

In the paper, a LoRA trained on segmented pictures of each concept takes care of the concept's own
tokens; it is not here, and the name in tables says so. On the sprite world this stage alone
forgets. Editing the concept's own tokens as well was measured to change neither forgot nor kept.

official: the configurations that have a keep list, because the protocols have one: five celebrities
for few objects, ten for many, a hundred artists for styles. They have lambda 0, 617 000 captions at
1e-4, and the keep list at 1e-4 times 5e4, 8e4 and 8e4. Explicit content has lambda 0, captions at
7e-7 and no keep list. lambda is 0.1 here in place of 0, so that directions without any text stay.
The configurations of single objects have lambda 10 to 1000 by class and hold nothing; one of them
is in the sweep. A concept stands in twelve sentences, in the paper in thirty.

same information: the states and weights of `_information.py`, the concept's own tokens left out.
"""

from typing import NamedTuple

import torch

from testbed import pack

from . import _shared

NAME = "MACE (closed form only)"
CAPTIONS = 617e3 * 77  # states of all captions that the official code's prior is made of
plans = pack.module("unlearn.sculpting.plan")
prompts, scapre = _shared.prompts, _shared.scapre


class Setting(NamedTuple):
    """The constants of the equation.

    prior: how many states the captions weigh together. kept: weight of every state of the keep
    list. For the same information prior is the weight of all that is kept, and kept has no use.
    """

    lam: float = 0.1
    prior: float = 1e-4 * CAPTIONS
    kept: float = 8.0


OFFICIAL = {
    "few": Setting(kept=5.0),
    "many": Setting(),
    "style": Setting(),
    "explicit": Setting(prior=7e-7 * CAPTIONS, kept=0.0),
}
SAME = tuple(Setting(0.05, prior, 0.0) for prior in (1.0, 0.1, 0.01, 10.0))


def grid(kind):
    """Settings of the sweep for a kind of concepts, the official one first."""
    usual = Setting()
    return (
        OFFICIAL[kind],
        Setting(lam=10.0, kept=20.0),
        usual._replace(prior=usual.prior / 10),
        usual._replace(prior=usual.prior / 10, kept=80.0),
        Setting(lam=1e3, prior=0.0, kept=0.0),
    )


class Own(NamedTuple):
    """What is read, float64.

    c, y [n, d]: states and what they turn into; captions [d, d]: mean moment of the captions'
    states; kept [d, d]: sum of k k^T over the keep list's.
    """

    c: torch.Tensor
    y: torch.Tensor
    captions: torch.Tensor
    kept: torch.Tensor


def block(a, b, old, new):
    """States (c, y), [n, d] each, of one sentence.

    a, b: Prompts with the concept and with its target, and their states [77, d].
    """
    shift = b.last - a.last
    end = len(old) - max(0, shift)
    c, y = (old[: a.first], old[a.last + 1 : end]), (new[: b.first], new[b.last + 1 : end + shift])
    return torch.cat(c).double(), torch.cat(y).double()


def read(clip, concepts, kind):
    """The Own of a ConceptSet."""
    said = []
    for concept in concepts.concepts:
        templates = (*_shared.sentences.TEMPLATES[concept.kind], *plans.MORE[concept.kind])
        for name in concept.names:
            for t in (prompts.fix_article(t, name) for t in templates):
                target = prompts.locate(clip, t, _shared.stand_in(concept))
                said.append((prompts.locate(clip, t, name), target))
    states = prompts.encode(clip, [prompt.text for both in said for prompt in both])
    found = [block(a, b, states[a.text], states[b.text]) for a, b in said]
    c, y = (torch.cat(part) for part in zip(*found, strict=True))
    spoken = _shared.captions(concepts)
    captions = _shared.moment(clip, spoken) / (len(spoken) * 77)
    kept = _shared.moment(clip, concepts.keep) if concepts.keep else torch.zeros_like(captions)
    return Own(c, y, captions, kept)


def multiplier(c, y, prior, lam, weight=None):
    """M [d, d] float64 of W = W0 (I + M), which gives states c [n, d] the outputs of y [n, d].

    prior: P [d, d]. weight: of each row of c, [n], 1 where it is not given.
    """
    return _shared.multiplier(c, y, prior, lam, weight=weight)


def edits(model, own, setting, seed=0):
    prior = setting.prior * own.captions + setting.kept * own.kept
    return _shared.multiplied(model, multiplier(own.c, own.y, prior, setting.lam))


def same_edits(model, known, setting, seed=0):
    rest = ~known.own
    states = known.concept[rest], known.target[rest], setting.prior * known.keep_gram
    return _shared.multiplied(model, multiplier(*states, setting.lam, known.weight[rest]))


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    kind = _shared.kind_of(concepts)
    found = edits(model, read(clip, concepts, kind), OFFICIAL[kind], seed)
    return _shared.erased(model, NAME, concepts, found)
