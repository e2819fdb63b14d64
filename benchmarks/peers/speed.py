"""SPEED (arXiv 2503.07392): closed form in the null space of what is retained, on values only.

    dW = W0 (S_at - S_tt) P [ I - M K (K^T P M K + lambda I)^-1 K^T P ] M,   M = (S_tt P + rho I)^-1

S_tt = sum c c^T and S_at = sum n c^T over a concept's states, averaged over concepts. P projects on
eigenvectors of the retained states' moment with an eigenvalue below a threshold. K holds the start
token's state and three k-means centres of the empty text.

For each layer the retain set is filtered and augmented: of states that a plain edit moves more than
the average, ten copies are shifted along the direction that the layer reads least (influence-based
prior filtering and directed prior augmentation).

official: c is a concept's last token. Few objects and styles: rho 1, threshold 0.1, lambda 0; the
retain set, in the paper 1 352 other names or 1 734 artists, is the keep list and the pack's common
words. Ten objects and more: rho 0.05, threshold 1e-4, no filter before the copies are made, and the
keep list alone, as there. Explicit content: c are all tokens behind the start token, rho 0.7,
lambda 0.5, threshold 0.1, and the empty text's states are the retain set.

same information: c and n are the states of `_information.py` by their weights, and everything that
ours keeps is the retain set.
"""

from typing import NamedTuple

import torch

from testbed import pack

from . import _shared

NAME = "SPEED"
COPIES, CENTRES = 10, 3
LOW_RANK = 64  # rows of c up to which an edit is stored in two factors
words_of = pack.module("unlearn.analysis.prior_words")
states = pack.module("unlearn.files.text_cache")
scapre = _shared.scapre


class Setting(NamedTuple):
    """The constants of the equation.

    sift: whether the retain set is filtered first. retain: "listed" for the keep list, "words" for
    the keep list and common words, "empty" for the empty text; without meaning where the
    information is the same.
    """

    rho: float = 1.0
    threshold: float = 0.1
    sift: bool = True
    lam: float = 0.0
    retain: str = "words"


MANY = Setting(0.05, 1e-4, sift=False, retain="listed")
OFFICIAL = {
    "few": Setting(),
    "many": MANY,
    "style": Setting(),
    "explicit": Setting(rho=0.7, lam=0.5, retain="empty"),
}
SAME = (
    Setting(rho=0.05, threshold=1e-2),
    Setting(rho=0.05, threshold=1e-1),
    Setting(rho=0.05, threshold=1e-4, sift=False),
    Setting(rho=1e-3, threshold=1e-2),
)


def grid(kind):
    """Settings of the sweep for a kind of concepts, the official one first."""
    found = (
        OFFICIAL[kind],
        Setting(),
        MANY,
        MANY._replace(threshold=1e-2, retain="words"),
        Setting(rho=0.05, retain="listed"),
        Setting(rho=0.7, lam=0.5, retain="empty"),
    )
    return tuple(dict.fromkeys(found))[:5]


class Own(NamedTuple):
    """What the official code reads, float64.

    c, n [m, d]: states of the concepts and of their targets; count: how many concepts. held [d, j]:
    what is preserved exactly. retain: name of a retain set -> its states [n, d].
    """

    c: torch.Tensor
    n: torch.Tensor
    count: int
    held: torch.Tensor
    retain: dict


def projector(moment, threshold):
    """P [d, d] on the eigenvectors of a moment [d, d] with eigenvalue below threshold."""
    found, vectors = torch.linalg.eigh(moment)
    low = vectors[:, found < threshold]
    return low @ low.T


def right(c, p, k, rho, lam=0.0, weight=None):
    """R [m, d] of dW = W0 (n - c)^T R; float64.

    c: states [m, d]; weight [m]: of each of them, 1 / m where it is not given. p: projector [d, d];
    k: what is preserved exactly, [d, j].
    """
    weight = torch.full((len(c),), 1 / len(c)).double() if weight is None else weight
    weighted = c * weight[:, None]
    m = torch.linalg.inv(c.T @ weighted @ p + rho * torch.eye(len(p), dtype=torch.float64))
    held = k.T @ p @ m  # [j, d]
    inner = torch.linalg.pinv(held @ k + lam * torch.eye(k.shape[1], dtype=torch.float64))
    from_c = weighted @ p @ m
    return from_c - from_c @ k @ inner @ held


def centres(rows, count, seed=0, steps=20):
    """k-means centres [count, d] of rows [n, d]."""
    at = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(steps):
        near = torch.cdist(rows, at).argmin(1)
        at = torch.stack(
            [rows[near == i].mean(0) if (near == i).any() else at[i] for i in range(count)]
        )
    return at


def refined(retain, w0, plain, g, copies=COPIES, sift=True):
    """Moment [d, d] of the retained states [n, d], where `sift` of those that are moved most, and
    of those of their copies that are moved most.

    These are the ones that the edit `plain` [d_out, d] moves more than the average. A copy is
    x + a v with random a, where v is what the layer reads least. So sums over the copies are sums
    over x and a.
    """
    moved = retain @ plain.T  # [n, d_out]
    if sift:
        strong = (size := moved.norm(dim=1)) >= size.mean()
        retain, moved = retain[strong], moved[strong]
    v = torch.linalg.svd(w0, full_matrices=False)[2][-1]
    noise = torch.randn(copies * len(retain), len(v), generator=g, dtype=torch.float64)
    a = (noise @ v).view(copies, -1)  # [copies, n]
    along = plain @ v
    size = (moved.square().sum(1) + 2 * a * (moved @ along) + a**2 * along.square().sum()).sqrt()
    chosen = (size > size.mean()).double()
    a = a * chosen
    across = torch.outer(retain.T @ a.sum(0), v)
    total = scapre.gram(retain, 1 + chosen.sum(0)) + across + across.T
    total += a.square().sum() * torch.outer(v, v)
    return total / (len(retain) + chosen.sum())


def read(clip, concepts, kind):
    """The Own of a ConceptSet."""
    names, others = zip(*_shared.pairs(concepts), strict=True)
    null = _shared.all_states(clip, [""])
    if kind == "explicit":
        behind = [i for i in range(77 * len(names)) if i % 77]
        c, n = (_shared.all_states(clip, texts)[behind] for texts in (names, others))
    else:
        c, n = (_shared.last_states(clip, texts) for texts in (names, others))
    listed = _shared.last_states(clip, concepts.keep)
    words = words_of.read_words(clip, states.TextStateCache(clip, None).get, names)[1]
    retain = {"listed": listed, "words": torch.cat([listed, words]), "empty": null[1:]}
    return Own(c, n, len(names), held(null), retain)


def held(null):
    """K [d, 4]: the start token and three centres of the states [77, d] of the empty text."""
    return torch.cat([null[:1], centres(null[1:], CENTRES)]).T


def changes(model, c, n, weight, held, retain, setting, seed):
    """(weight key, edit) of every value matrix; weight: of each row of c and n [m, d]."""
    g, shift = torch.Generator().manual_seed(seed), scapre.cross_gram(n, c, weight)
    eye = torch.eye(c.shape[1], dtype=torch.float64)
    plain = shift @ torch.linalg.inv(eye + scapre.gram(c, weight))
    for key, w0 in _shared.values(model):
        moment = refined(retain, w0, w0 @ plain, g, sift=setting.sift)
        p = projector(moment, setting.threshold)
        factor, left = right(c, p, held, setting.rho, setting.lam, weight), w0 @ (n - c).T
        if len(c) <= LOW_RANK:
            yield key, _shared.adapters.LowRank.of(left.half(), factor.half())
        else:
            yield key, _shared.adapters.Delta.of((left @ factor).half())


def edits(model, own, setting, seed=0):
    weight = torch.full((len(own.c),), 1 / own.count, dtype=torch.float64)
    retain = own.retain[setting.retain]
    return list(changes(model, own.c, own.n, weight, own.held, retain, setting, seed))


def same_edits(model, known, setting, seed=0):
    weight = known.weight / known.count
    states = known.concept, known.target, weight, held(known.null), known.kept
    return list(changes(model, *states, setting, seed))


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    kind = _shared.kind_of(concepts)
    found = edits(model, read(clip, concepts, kind), OFFICIAL[kind], seed)
    return _shared.erased(model, NAME, concepts, found)
