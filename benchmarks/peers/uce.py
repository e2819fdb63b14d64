"""Unified Concept Editing (arXiv 2308.14761, eq 7): closed form on keys and values.

    W = [ lambda W0 + s_e sum_i W0 n_i c_i^T + s_p sum_j W0 k_j k_j^T ]
        [ lambda I + s_e sum_i c_i c_i^T + s_p sum_j k_j k_j^T ]^-1

c are states of the concepts, n of their targets, k of what is kept. The kernel is the pack's own.

official: the code that the published figures were made with (before April 2025). c are the states
of each name from its last token over the end token and all padding, n those of the target from its
last token, both as long as the shorter one. k are all 77 states of the empty text and of each kept
name; s_p is max(0.1, 1 / number of these texts), s_e 1, lambda 0.5. One setting serves every kind.
Its present code takes the last token of each name alone, with s_p 1: that is in the sweep.

same information: the states and weights of `_information.py`.
"""

from typing import NamedTuple

import torch

from . import _shared, _uce_transformer

NAME = "UCE"
kernel, scapre = _shared.uce, _shared.scapre


class Setting(NamedTuple):
    """The constants of the equation.

    preserve: s_p; where `whole`, times max(0.1, 1 / texts). whole: whether whole blocks are mapped
    and all states kept, or the last tokens alone.
    """

    lam: float = kernel.LAMBDA
    erase: float = 1.0
    preserve: float = 1.0
    whole: bool = True


OFFICIAL = dict.fromkeys(_shared.KINDS, Setting())
SAME = tuple(Setting(erase=e, preserve=p) for e, p in ((10, 1), (1, 1), (100, 1), (10, 10)))


def grid(kind):
    """Settings of the sweep for a kind of concepts, the official one first."""
    return (
        OFFICIAL[kind],
        Setting(preserve=10.0),
        Setting(preserve=100.0),
        Setting(erase=10.0, preserve=100.0),
        Setting(whole=False),
    )


class Own(NamedTuple):
    """What the official code reads, float64.

    c, n [m, d]: blocks of the names and of their targets; last: which of the rows are of a name's
    last token. kept, kept_last [d, d]: sum of k k^T over all states of the empty text and of the
    kept names, and over the last tokens of the kept names. texts: how many texts are kept.
    """

    c: torch.Tensor
    n: torch.Tensor
    last: list[int]
    kept: torch.Tensor
    kept_last: torch.Tensor
    texts: int


def read(clip, concepts, kind):
    """The Own of a ConceptSet."""
    named = _shared.pairs(concepts)
    states = _shared.prompts.encode(clip, [text for pair in named for text in pair])
    at = {t: _shared.prompts.locate(clip, "{concept}", t).last for t in states}
    blocks = [_shared.block(states[a], states[b], at[a], at[b]) for a, b in named]
    sizes = torch.tensor([0, *(len(c) for c, _ in blocks)]).cumsum(0).tolist()
    return Own(
        *(torch.cat(part) for part in zip(*blocks, strict=True)),
        sizes[:-1],
        *kept_moments(clip, concepts.keep),
        1 + len(concepts.keep),
    )


def kept_moments(clip, keep):
    """(kept, kept_last) of an Own; each text is read once."""
    texts, whole, last = ["", *keep], 0, 0
    for at in range(0, len(texts), _shared.READ_AT_ONCE):
        part = texts[at : at + _shared.READ_AT_ONCE]
        states = _shared.prompts.encode(clip, part)
        whole = whole + scapre.gram(torch.cat([states[t] for t in part]))
        ends = [states[t][_shared.prompts.locate(clip, "{concept}", t).last] for t in part if t]
        last = last + (scapre.gram(torch.stack(ends)) if ends else torch.zeros_like(whole))
    return whole, last


def solved(own, setting):
    """M [d, d] of an Own and a Setting."""
    lam, erase, preserve, whole = setting
    if whole:
        preserve = preserve * max(0.1, 1 / own.texts)
        return _shared.multiplier(own.c, own.n, own.kept, lam, erase, preserve)
    return _shared.multiplier(own.c[own.last], own.n[own.last], own.kept_last, lam, erase, preserve)


def same(known, setting):
    """M [d, d] of the Information `known`, in whose units the setting's constants are."""
    lam, erase, preserve, _ = setting
    return _shared.multiplier(
        known.concept, known.target, known.keep_gram, lam, erase, preserve, known.weight
    )


def edits(model, own, setting, seed=0):
    return _shared.multiplied(model, solved(own, setting))


def same_edits(model, known, setting, seed=0):
    return _shared.multiplied(model, same(known, setting))


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    kind = _shared.kind_of(concepts)
    if _uce_transformer.is_transformer(model):
        found = _uce_transformer.edits(model, clip, concepts, OFFICIAL[kind])
    else:
        found = edits(model, read(clip, concepts, kind), OFFICIAL[kind], seed)
    return _shared.erased(model, NAME, concepts, found)
