"""The ways ScaPreSolve can solve, each from one set of statistics to a change of every layer.

A change is shared, `up(w0) @ down` with one `down` [r, d] for all layers, or dense, `delta(w0)` [d_out, d]; the latter is cut to a shared
`down` afterwards, by energy.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...kernels import bures, complement, informax, released, scapre, sylvester, uce
from ..errors import UnlearnError
from . import token_statistics

ENERGY = (
    1 - 5e-4
)  # of the erased signal that the patch's rank carries: 226 directions for fifty common words, 261 at 1 - 1e-4
DEFAULTS = {
    "anchored": {
        "erase": 100.0,
        "preserve": 1.0,
        "anchor": 0.05,
        "spectral": 0.0,
        "informax": False,
        "overshoot": 1.0,
        "drift": 0.14,
    },
    "paper": {
        "erase": 10.0,
        "preserve": 1.0,
        "anchor": 0.05,
        "step": 0.1,
        "informax": True,
        "as_printed": False,
    },
    "released-A": {"erase": 1.0, "power": 2.0, "floor": 0.8, "samples": 20, "svd": False},
    "released-B": {"erase": 2.0, "power": 8.0, "steps": 1, "samples": 30, "spectral": True},
    "uce": {"erase": 1.0, "preserve": 1.0, "anchor": uce.LAMBDA},
}
NOISE, POINTS = (
    0.01,
    5,
)  # of the released editors: size of the noise, positives and negatives of each mask


class LayerEdit(NamedTuple):
    """What a variant does to every layer. Shared: up(w0) [d_out, r] and down [r, d], `right_multiplier` M [d, d] with W = W0 (I + M) where all
    rows are weighed alike, `solution_operator` H [d, d] with M = T H where what is moved, T, alone decides, and `lost`, the share of the signal
    that cutting the rank gave up. Dense: delta(w0) [d_out, d]."""

    up: Callable | None = None
    down: torch.Tensor | None = None
    right_multiplier: torch.Tensor | None = None
    solution_operator: torch.Tensor | None = None
    lost: float = 0.0
    delta: Callable | None = None


class Channels:
    """Informax weights of a layer's rows by an estimator, with what was seen of their distribution.

    estimator: 'graded', 'printed', or 'shuffled' (graded, in random order: the control that tells whether the order matters).
    """

    def __init__(self, stats, estimator, seed=0):
        self.stats, self.estimator, self.seen = stats, estimator, []
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, w0):
        s = self.stats
        w0 = w0.float()
        if self.estimator == "printed":
            m = informax.printed(torch.cat(s.positives) @ w0.T, s.neutral @ w0.T)
        else:
            m = informax.graded(
                [p @ w0.T for p in s.positives], torch.cat([s.neutral, s.lookalikes]) @ w0.T
            )
        if self.estimator == "shuffled":
            m = m[torch.randperm(len(m), generator=self.generator)]
        self.seen.append(m.double())
        return m

    def quantiles(self, at=(0.05, 0.25, 0.5, 0.75, 0.95)):
        """Quantiles of all weights given out, float64 [len(at)]."""
        return torch.quantile(
            torch.cat(self.seen)[:: max(1, sum(map(len, self.seen)) // 100_000)],
            torch.tensor(at, dtype=torch.float64),
        )


def anchored(stats, s, channels=None, hard=0.0):
    """Variant `anchored` (kernels/scapre.py) from Statistics and settings s; `hard` > 0 confines it to the complement of the keep
    list's states, as many directions as carry that share of their energy. Raises UnlearnError where nothing is left to edit."""
    p = s["preserve"] * stats.preserve_gram + s["anchor"] * torch.eye(
        len(stats.preserve_gram), dtype=torch.float64
    )
    if s["spectral"]:
        p = p + s["spectral"] * scapre.spectral_trace(stats.concepts)
    if hard:
        basis = complement.complement(stats.keep_list_gram, hard)
        if not basis.shape[1]:
            raise UnlearnError(
                "The keep list fills the whole space, so 'hard keep' leaves nothing to edit; lower it or shorten the list."
            )
        mu, v = scapre.confined_basis(stats.concept_gram, p, basis)
    else:
        mu, v = scapre.anchored_basis(stats.concept_gram, p)
    whole = len(mu)
    rank = scapre.rank_by_energy(mu, s["erase"], ENERGY)
    lost = (
        _signal(mu, s["erase"])[rank:].sum() / _signal(mu, s["erase"]).sum().clamp_min(1e-300)
        if whole
        else 0.0
    )
    mu, v = mu[:rank], v[:, :rank]
    length = v.norm(dim=0).clamp_min(
        1e-300
    )  # rows of `down` of length 1, so that `up` has the size of weights
    tv, down = stats.target_shift @ v, (v / length).T.float().contiguous()
    gain = (s["erase"] / (1 + s["erase"] * mu)) * length
    up = lambda w0: (
        scapre.anchored_up(w0, tv, mu, s["erase"], channels(w0) if channels else None)
        * length.float()
    )
    response = (v * gain) @ (v / length).T
    return LayerEdit(
        up=up,
        down=down,
        right_multiplier=stats.target_shift @ response,
        solution_operator=response,
        lost=float(lost),
    )


def _signal(mu, eta):
    return mu * (eta * mu / (1 + eta * mu)) ** 2


def uce_edit(subjects, s):
    """Variant `uce` (kernels/uce.py) from Subjects and settings s."""
    c, n, k = subjects.c, subjects.n, subjects.keep
    m = uce.multiplier(
        scapre.gram(c),
        scapre.cross_gram(n, c),
        scapre.gram(k),
        s["anchor"],
        s["erase"],
        s["preserve"],
    )
    left, right = uce.factors(m)
    return LayerEdit(
        up=lambda w0: w0.float() @ left.float(), down=right.float().contiguous(), right_multiplier=m
    )


def paper(stats, s, channels=None):
    """Variant `paper` (kernels/sylvester.py, kernels/bures.py) from Statistics and settings s; alpha is 1 in every row without channels.

    as_printed: eq (9) to the letter, without the anchor at W0 and without a keep list.
    """
    d = len(stats.preserve_gram)
    a = (
        s["anchor"] * torch.eye(d, dtype=torch.float64)
        + s["erase"] * stats.concept_gram
        + scapre.spectral_trace(stats.concepts)
    )
    if not s["as_printed"]:
        a = a + s["preserve"] * stats.preserve_gram
    values, vectors = sylvester.spectrum(a)

    def delta(w0):
        w0 = w0.double()
        alpha = channels(w0) if channels else torch.ones(len(w0), dtype=torch.float64)
        if s["as_printed"]:
            w = sylvester.printed(
                w0, alpha, values, vectors, s["erase"] * (stats.target_shift + stats.concept_gram)
            )
        else:
            w = w0 + sylvester.edit(w0, alpha, values, vectors, s["erase"] * stats.target_shift)
        return bures.geodesic(w, w0, s["step"]) - w0

    return LayerEdit(delta=delta)


def editor(which, subjects, blocks, s, seed=0):
    """Variants `released-A` and `released-B` (kernels/released.py) from Subjects, the blocks of `statistics.blocks` and settings s."""
    o, n, empty = blocks
    generator = torch.Generator().manual_seed(seed)
    noisy = lambda x, k: (
        x + NOISE * torch.randn(k, len(x), generator=generator, dtype=torch.float64)
    )
    c = subjects.c.T

    def delta(w0):
        w0 = w0.double()
        act = lambda x: x @ w0.T
        masks = torch.stack(
            [
                released.mask(act(noisy(x, POINTS)), act(noisy(empty, POINTS)), s["power"])
                for x in subjects.c
            ]
        )
        h = released.entropy(torch.cat([act(noisy(x, int(s["samples"]))) for x in subjects.c]))
        if which == "released-A":
            svd = (1.0, 1.0) if s["svd"] else None
            return (
                released.editor_a(w0, masks, o, n, c, h, eta=s["erase"], a_min=s["floor"], svd=svd)
                - w0
            )
        r = released.ased(c, float(h.mean()), 1.0, s["power"]) if s["spectral"] else None
        return (
            released.editor_b(w0, masks, o, n, c, h, eta=s["erase"], r=r, steps=int(s["steps"]))
            - w0
        )

    return LayerEdit(delta=delta)


def cut(deltas, energy=1 - 1e-5):
    """(ups, down [r, d], lost) of dense changes [d_out, d] of all layers: one shared basis of their rows that carries `energy` of the
    sum of their squares; lost is the share given up."""
    total = sum((x.float().T @ x.float()).double() for x in deltas)
    values, vectors = torch.linalg.eigh(total)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if float(values.sum()) <= 0:
        return [torch.zeros(len(x), 0) for x in deltas], torch.zeros(0, len(total)), 0.0
    rank = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
    down = vectors[:, :rank].T.float().contiguous()
    return [x.float() @ down.T for x in deltas], down, float(values[rank:].sum() / values.sum())


def solve_variant(name, clip, plan, fetch, stats, settings, channels=None, hard=0.0):
    """The Change of the variant `name`; everything it needs comes from the one Plan."""
    if name == "anchored":
        return anchored(stats, settings, channels, hard)
    if name == "paper":
        return paper(stats, settings, channels)
    who = token_statistics.subjects(plan, fetch)
    return (
        uce_edit(who, settings)
        if name == "uce"
        else editor(name, who, token_statistics.blocks(clip, plan), settings)
    )
