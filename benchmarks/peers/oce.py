"""OCE, Orthogonal Concept Erasure (arXiv 2605.28902): W = R W0 on the values of cross-attention.

R is the rotation U diag(1, .., det) V^T nearest to A = U S V^T, with

    A = -s E E^T (I - G G^T) + g W0 C W0^T + p sum_j (W0 k_j)(W0 k_j)^T + lambda W0 W0^T

E and G are orthonormal bases of the layer's outputs for the concepts and for their targets, each
alone and in five short sentences. k is the keep list, C the mean moment of caption tokens.

official, as s / g / p / lambda: objects 2000 / 10 / 0 / 10, styles 500 / 10 / 1 / 10 with `real`
as target, nudity 3000 / 20 / 0 / 10; ten celebrities and more 3500 / 50 / 5 / 10 without the
sentences. s is not free of the size of the states, so the sweep goes from a tenth to ten times s.

same information: E and G are of each concept's last token and end token, averaged over the
sentences of `_information.py`, because a basis of all its states would be nearly the whole space. C
is the moment of what ours keeps, and k are the last and end tokens of the keep list's sentences.
"""

from typing import NamedTuple

import torch

from . import _shared

NAME = "OCE"
OBJECT = ("image", "photo", "portrait", "picture", "painting")
STYLE = ("painting", "art", "artwork", "picture")
FORMS = {
    "few": ("{concept}", *(f"{x} of {{concept}}" for x in OBJECT)),
    "many": ("{concept}",),
    "style": ("{concept}", *(f"{x} by {{concept}}" for x in STYLE), "style of {concept}"),
}
FORMS["explicit"] = FORMS["few"]
STYLES_BECOME = "real"
prompts = _shared.prompts


class Setting(NamedTuple):
    """s, g, p and lambda of the equation."""

    erase: float = 2e3
    everything: float = 10.0
    listed: float = 0.0
    lam: float = 10.0


OFFICIAL = {
    "few": Setting(),
    "many": Setting(3500.0, 50.0, 5.0),
    "style": Setting(500.0, listed=1.0),
    "explicit": Setting(3e3, 20.0),
}
SAME = tuple(Setting(s, listed=2.0) for s in (2e3, 5e2, 8e3, 3e4))


def grid(kind):
    """Settings of the sweep for a kind of concepts, the official one first.

    The others hold the keep list, which official objects do not.
    """
    own = OFFICIAL[kind]
    held = own._replace(listed=max(own.listed, 2.0))
    return (own, *(held._replace(erase=own.erase * x) for x in (0.1, 0.3, 3.0, 10.0)))


class Own(NamedTuple):
    """What the official code reads, float64.

    c, n [m, d]: last tokens of the concepts and of their targets in each sentence; listed [k, d]:
    of the keep list; moment [d, d]: C.
    """

    c: torch.Tensor
    n: torch.Tensor
    listed: torch.Tensor
    moment: torch.Tensor


def basis(outputs, tolerance=1e-6):
    """Orthonormal columns [d_out, r] that span the outputs [n, d_out], scaled to unit length.

    r is their rank. The official code's QR has n columns: where outputs are equal, as those of one
    target for many concepts are, the rest of them point anywhere.
    """
    u, sigma, _ = torch.linalg.svd(
        torch.nn.functional.normalize(outputs, dim=1).T, full_matrices=False
    )
    return u[:, sigma > tolerance * sigma[:1]]


def rotation(w0, erase, guide, listed, c, setting):
    """R [d_out, d_out], from states erase and guide [m, d], listed [k, d] and the moment c [d, d].

    All are float64.
    """
    s, g, p, lam = setting
    e, f, k = basis(erase @ w0.T), basis(guide @ w0.T), listed @ w0.T
    a = g * w0 @ c @ w0.T + lam * w0 @ w0.T + p * k.T @ k - s * (e @ e.T - e @ (e.T @ f) @ f.T)
    u, _, vt = torch.linalg.svd(a)
    u[:, -1] *= torch.det(u @ vt).sign()
    return u @ vt


def read(clip, concepts, kind):
    """The Own of a ConceptSet."""
    said, instead = [], []
    for concept in concepts.concepts:
        target = STYLES_BECOME if concept.kind == "style" else _shared.stand_in(concept)
        for t in FORMS[kind]:
            said += [t.replace("{concept}", name) for name in concept.names]
            instead += [t.replace("{concept}", target).strip() for _ in concept.names]
    c, n, listed = (_shared.last_states(clip, part) for part in (said, instead, concepts.keep))
    everyday = _shared.sentences.prior_sentences()
    captions = [prompts.locate(clip, "{concept}", s) for s in everyday]
    states = prompts.encode(clip, [p.text for p in captions])
    tokens = torch.cat([states[p.text][: p.end + 1] for p in captions]).double()
    return Own(c, n, listed, tokens.T @ tokens / len(tokens))


def changes(model, own, setting):
    """(weight key, edit) of every value matrix."""
    for key, w0 in _shared.values(model):
        r = rotation(w0, own.c, own.n, own.listed, own.moment, setting)
        yield key, _shared.adapters.Delta.of((r @ w0 - w0).half())


def edits(model, own, setting, seed=0):
    return list(changes(model, own, setting))


def same_edits(model, known, setting, seed=0):
    c, n = known.averages()
    return list(changes(model, Own(c, n, known.listed, known.keep_gram), setting))


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    kind = _shared.kind_of(concepts)
    found = edits(model, read(clip, concepts, kind), OFFICIAL[kind], seed)
    return _shared.erased(model, NAME, concepts, found)
