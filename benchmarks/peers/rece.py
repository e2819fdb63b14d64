"""RECE (arXiv 2407.12383): UCE, then rounds that find embeddings of the concepts and erase them.

    c' = ( lambda I + sum_l W_l^T W_l )^-1 ( sum_l W_l^T W0_l ) c            (kernels/rece.py)

for all 77 states c of each name. Then W <- W (I + M), where M is a UCE edit that gives c' the
outputs of the target's states at the same positions, and keeps all states of the empty text and of
the keep list.

official: it starts from the UCE of uce.py. lambda and the number of rounds are 0.1 and 1 for
objects, 1e-3 and 1 for styles, 0.1 and 3 for nudity; the UCE edit has lambda and s_p 0.1. Of the
five published objects two had lambda 1e-3: that is in the sweep.

same information: UCE's solve of that row first, then the same rounds on its states.
"""

from typing import NamedTuple

import torch

from testbed import pack

from . import _shared, uce

NAME = "RECE"
kernel = pack.module("kernels.rece")


class Setting(NamedTuple):
    """The constants of the rounds.

    lam: lambda of the search, in the units of sum_l W_l^T W_l. count: how many rounds. edit,
    preserve: lambda and s_p of the edits in them. start: the setting of the UCE before them.
    """

    lam: float = 1e-1
    count: int = 1
    edit: float = 0.1
    preserve: float = 0.1
    start: uce.Setting = uce.Setting()


OFFICIAL = {
    "few": Setting(),
    "many": Setting(),
    "style": Setting(lam=1e-3),
    "explicit": Setting(count=3),
}
SAME = tuple(
    Setting(lam=lam, preserve=1.0, start=uce.Setting(erase=e))
    for lam, e in ((1e-1, 10), (1e-3, 10), (1e-1, 1), (1e-1, 100))
)


def grid(kind):
    """Settings of the sweep for a kind of concepts, the official one first."""
    own, gentle = OFFICIAL[kind], uce.Setting(preserve=10.0)
    return (
        own,
        own._replace(lam=1e-3 if own.lam > 1e-2 else 1e-1),
        own._replace(preserve=1.0, start=gentle),
        own._replace(preserve=10.0, start=uce.Setting(preserve=100.0)),
        own._replace(preserve=1.0, start=uce.Setting(whole=False)),
    )


class Own(NamedTuple):
    """What the official code reads, float64.

    c, n [m, d]: all states of the names and of their targets; start: what UCE reads.
    """

    c: torch.Tensor
    n: torch.Tensor
    start: uce.Own


def rounds(grams, start, c, n, kept, setting, erase=1.0, weight=None):
    """M [d, d] float64 of W = W0 (I + M) after a setting's rounds from an edit M = start.

    grams = sum_l W0_l^T W0_l [d, d]; c, n [m, d]: the concepts and their targets; kept [d, d]: sum
    of k k^T. erase, weight: of all rows of c together, and of each.
    """
    eye = torch.eye(len(grams), dtype=torch.float64)
    total = eye + start
    for _ in range(setting.count):
        again = kernel.revive(total.T @ grams @ total, total.T @ grams, c, setting.lam)
        m = _shared.multiplier(again, n, kept, setting.edit, erase, setting.preserve, weight)
        total = total @ (eye + m)
    return total - eye


def read(clip, concepts, kind):
    """The Own of a ConceptSet."""
    names, others = zip(*_shared.pairs(concepts), strict=True)
    states = (_shared.all_states(clip, texts) for texts in (names, others))
    return Own(*states, uce.read(clip, concepts, kind))


def layer_grams(model):
    """sum_l W0_l^T W0_l [d, d] float64 over keys and values."""
    read = (_shared.weights.read(model, k.key) for k in _shared.layers.cross_attention(model))
    return sum(w.double().T @ w.double() for w in read)


def edits(model, own, setting, seed=0):
    start = uce.solved(own.start, setting.start)
    m = rounds(layer_grams(model), start, own.c, own.n, own.start.kept, setting)
    return _shared.multiplied(model, m)


def same_edits(model, known, setting, seed=0):
    start, states = uce.same(known, setting.start), (known.concept, known.target, known.keep_gram)
    m = rounds(layer_grams(model), start, *states, setting, setting.start.erase, known.weight)
    return _shared.multiplied(model, m)


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    kind = _shared.kind_of(concepts)
    found = edits(model, read(clip, concepts, kind), OFFICIAL[kind], seed)
    return _shared.erased(model, NAME, concepts, found)
