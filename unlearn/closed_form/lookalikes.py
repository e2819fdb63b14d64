"""Kept words that are like a forgotten one, and what they add to a sentence.

Token states are alike in most of their energy, so a second moment of kept states hardly holds what
tells a kept word from a forgotten one that is like it. So what such a word adds to its sentences is
held as well, by how like it is:

    C = sum_k near_k sum_t omega_t x_kt x_kt^T,      near_k = max_f cos^2(x_k - c, x_f - c).

x_k is what kept word k adds in the place of a forgotten word's neutral word, and x_f what forgotten
word f adds there. c is what any word adds, the mean over some common nouns. A word that is like no
forgotten one adds nothing to C. Holding it too leaves the edit fewer directions, which was measured
to lose pictures of what is kept. Of a long keep list only the words that are likest in one sentence
are read in all sentences.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional as F

from ...kernels import scapre
from ..analysis.contrasts import Contrast, contrast
from ..analysis.prior_words import Fetch
from ..host import phrase_places
from ..host.progress import Progress
from . import tuning
from .sentence_plan import SentencePair, SentencePlan


def likeness(kept: torch.Tensor, forgotten: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """near [k], 0 to 1, of kept words' rows [k, d] beside forgotten ones' [f, d].

    common [n, d]: rows of common nouns.
    """
    centre = common.mean(0)
    cosines = F.normalize(kept - centre, dim=1) @ F.normalize(forgotten - centre, dim=1).T
    return cosines.clamp_min(0).square().amax(1)


def held_contrasts(
    plan: SentencePlan,
    forgotten: torch.Tensor,
    fetch: Fetch,
    scale: float,
    progress: Progress | None = None,
) -> torch.Tensor:
    """C [d, d] float64 of what stands in a plan's `beside`; 0 where nothing is kept.

    forgotten [d, m] float64: what each concept adds, one mean row per concept, divided by `scale`.
    """
    read = partial(_of_words, fetch=fetch, scale=scale, progress=progress)
    total = torch.zeros(len(forgotten), len(forgotten), dtype=torch.float64)
    for concepts, kept, nouns in plan.beside:
        if not (kept and nouns):
            continue
        erased, any_word = forgotten[:, [*concepts]].T, _mean_rows(read(nouns))
        if len(kept) > tuning.LOOKALIKES:
            firsts = [_of_first_sentence(pairs) for pairs in kept]
            rough = likeness(_mean_rows(read(firsts)), erased, any_word)
            kept = [kept[i] for i in rough.topk(tuning.LOOKALIKES).indices.tolist()]
        found = read(kept)
        near = likeness(_mean_rows(found), erased, any_word)
        weights = torch.cat([one.weights * like for one, like in zip(found, near, strict=True)])
        total += scapre.gram(torch.cat([one.rows for one in found]), weights)
    return total


def _of_first_sentence(pairs: Sequence[SentencePair]) -> list[SentencePair]:
    """The first sentence of a word, in every text encoder that reads it."""
    first = phrase_places.segment_of(pairs[0].prompt.text)[0]
    return [pair for pair in pairs if phrase_places.segment_of(pair.prompt.text)[0] == first]


def _of_words(
    words: Sequence[Sequence[SentencePair]],
    fetch: Fetch,
    scale: float,
    progress: Progress | None,
) -> list[Contrast]:
    """The Contrast of each word's sentence pairs."""
    found = []
    for start in range(0, len(words), tuning.BLOCK):
        block = words[start : start + tuning.BLOCK]
        texts = [p for pairs in block for pair in pairs for p in (pair.prompt, pair.neutral)]
        states = fetch(texts, progress)
        found += [contrast(pairs, states, "all", scale) for pairs in block]
    return found


def _mean_rows(contrasts: Sequence[Contrast]) -> torch.Tensor:
    """The weighted mean row of each, [n, d]."""
    return torch.stack([(c.rows * c.weights[:, None]).sum(0) / c.weights.sum() for c in contrasts])
