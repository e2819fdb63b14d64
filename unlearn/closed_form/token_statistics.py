"""What the closed-form solves are made from: Gram matrices of token states to change and of token states to keep.

What generalises (measured, see README): not a prompt's states themselves but their difference to the same sentence with a neutral
word in the concept's place, averaged over several sentences; it holds what the concept adds, and little of the sentence around it.
Everything is summed up concept by concept, so that ten thousand concepts need no more memory than ten.
"""

import itertools
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from ...kernels import scapre
from ..analysis import prior_words
from ..analysis.contrasts import contrast
from ..errors import UnlearnError
from ..files import text_cache
from ..host import text_encoding

BLOCK = 32  # concepts, or prompts to keep, whose states are in memory at a time
SAMPLED = 48  # concepts whose states Informax weights are estimated from
MAX_SEPARATE_ROWS = 4096  # rows of concepts kept one by one
NEUTRAL_WEIGHT = 1.0  # of the neutral sentences, beside everything kept, themselves among it; measured: without, superclasses were lost
WORDS_WEIGHT = 0.1  # of the words' second moment beside that of everything else kept; measured: at 1 forgotten things came back


@dataclass(frozen=True)
class Statistics:
    """float64 moments over token states of width d, all divided by the RMS entry of the kept states (`scale`).

    erase, move [d, d]: S = sum omega x x^T and T = sum omega (y - x) x^T of rows x whose output should become that of y; each
    concept's omega sum to its weight. keep [d, d]: mean of k k^T over kept states, that over the neutral sentences, and that over the
    prior's words. listed [d, d]:
    the mean over the keep list and the empty prompt alone. concepts [d, m]: one mean row per concept; names: the m concepts.
    rows [n, d], rows_weight [n]: the x and omega one by one where there are at most ROWS, else `concepts`; ends [n] int64: the concept
    of each row of the former that is of the end token, -1 for others, else None; erase_ends [d, d]: what these rows give to `erase`.
    positives: per sampled concept float32 [n_k, d] states of it; neutral, lookalikes float32 [n, d]: of what stands in for them, and of
    the keep list. words, word_states [n, d]: the prior's words that are not to be forgotten, and what the text encoder says of them.
    """

    concept_gram: torch.Tensor
    target_shift: torch.Tensor
    preserve_gram: torch.Tensor
    keep_list_gram: torch.Tensor
    concepts: torch.Tensor
    names: tuple[str, ...]
    rows: torch.Tensor
    rows_weight: torch.Tensor
    ends: torch.Tensor | None
    erase_ends: torch.Tensor
    positives: tuple[torch.Tensor, ...]
    neutral: torch.Tensor
    lookalikes: torch.Tensor
    words: tuple[str, ...]
    word_states: torch.Tensor
    scale: float

    def overshot(self, shares):
        """The same with what concepts add to the end token pushed past zero by these shares of itself, [m] float64, one to a concept; where
        rows are not kept one by one by their mean."""
        if self.ends is None or not self.rows_weight.numel():
            return replace(
                self, target_shift=self.target_shift - float(shares.mean()) * self.erase_ends
            )
        end = self.ends >= 0
        return replace(
            self,
            target_shift=self.target_shift
            - scapre.gram(self.rows[end], self.rows_weight[end] * shares[self.ends[end]]),
        )

    def protecting(self, states, weight=1.0):
        """The same with states [n, d] (already divided by `scale`) kept as well, as heavy as `weight` times all the rest."""
        return replace(
            self, preserve_gram=self.preserve_gram + weight * scapre.gram(states) / len(states)
        )

    def erasing(self, rows, weights):
        """The same with rows [n, d] erased to nothing as well, each of its weight [n]."""
        more = scapre.gram(rows, weights)
        return replace(
            self, concept_gram=self.concept_gram + more, target_shift=self.target_shift - more
        )


def measure(plan, fetch, tokens="all", target="difference", progress=None):
    """Statistics of a Plan. fetch: text -> [length, d] of all its texts, or a function of Prompts that gives it, as TextStateCache.get.

    tokens: 'all' or only the 'last' of the concept's own; target: 'difference' (erase what the concept adds to a sentence, averaged
    over the sentences) or 'state' (map the concept's states to the neutral ones, sentence by sentence).
    Raises UnlearnError for a concept that is the same as what it should turn into.
    """
    if isinstance(given := fetch, dict):
        fetch = lambda wanted, progress=None: given
    keep, listed, neutrals, lookalikes = _kept(plan, fetch, progress)
    words, word_states = prior_words.word_states(plan.packed, plan.forgotten, fetch, progress)
    scale = float((keep.diagonal().mean()) ** 0.5)
    keep, listed, word_states = (
        (keep + NEUTRAL_WEIGHT * neutrals) / scale**2,
        listed / scale**2,
        word_states / scale,
    )
    if len(words):
        keep = keep + WORDS_WEIGHT * scapre.gram(word_states) / len(words)
    d = len(keep)
    erase, erase_ends, move = (torch.zeros(d, d, dtype=torch.float64) for _ in range(3))
    mean = torch.zeros(d, len(plan.names), dtype=torch.float64)
    sampled = set(
        torch.linspace(0, len(plan.names) - 1, min(SAMPLED, len(plan.names))).long().tolist()
    )
    kept_rows, kept_weights, ends, positives, neutral, one_by_one = [], [], [], [], [], True
    for _, block in groupby(enumerate(_by_concept(plan.pairs)), lambda x: x[0] // BLOCK):
        block = [pairs for _, pairs in block]
        read = fetch([p for pairs in block for _, _, *pair in pairs for p in pair], progress)
        found = []
        for pairs in block:
            i = pairs[0][0]
            x, weights, c, n, end = contrast(pairs, read, tokens, scale)
            if float(x.square().mean()) < 1e-10:
                raise UnlearnError(
                    f"'{plan.names[i]}' and what it should turn into are the same to the text encoder; write something wider behind '->'."
                )
            found.append((x, weights))
            mean[:, i] = (x * weights[:, None]).sum(0) / weights.sum()
            ends.append(torch.where(torch.tensor(end), i, -1))
            if i in sampled:
                positives.append(c), neutral.append(n)
        x, weights = (torch.cat(part) for part in zip(*found, strict=True))
        own = scapre.gram(x, weights)
        erase += own
        end = torch.cat(ends[-len(block) :]) >= 0
        erase_ends += scapre.gram(x[end], weights[end])
        move -= own  # what a concept adds is to become nothing
        kept_rows.append(x), kept_weights.append(weights)
        if sum(map(len, kept_rows)) > MAX_SEPARATE_ROWS:
            one_by_one = False
        if not one_by_one:
            kept_rows, kept_weights = [], []
    if not one_by_one:
        kept_rows, kept_weights = [mean.T], [torch.ones(len(plan.names), dtype=torch.float64)]
    return Statistics(
        concept_gram=erase,
        target_shift=move,
        preserve_gram=keep,
        keep_list_gram=listed,
        concepts=mean,
        names=plan.names,
        rows=torch.cat(kept_rows),
        rows_weight=torch.cat(kept_weights),
        ends=torch.cat(ends) if one_by_one else None,
        erase_ends=erase_ends,
        positives=tuple(positives),
        neutral=torch.cat(neutral),
        lookalikes=(lookalikes / scale).float(),
        words=words,
        word_states=word_states,
        scale=scale,
    )


def in_new_sentences(plan, fetch, progress=None):
    """What concepts add to the end token of the sentences of `plan.checked`, which are not studied: (concept index [s], contrasts [s, d]
    float64)."""
    owner, contrasts = [], []
    for start in range(0, len(plan.checked), BLOCK):
        block = plan.checked[start : start + BLOCK]
        read = fetch([p for _, *pair in block for p in pair], progress)
        for i, a, b in block:
            owner.append(i), contrasts.append((read[a.text][a.end] - read[b.text][b.end]).double())
    return torch.tensor(owner), torch.stack(contrasts)


def _by_concept(pairs):
    return (list(group) for _, group in groupby(pairs, lambda pair: pair[0]))


def kept_states(prompt, state):
    """The states of a kept Prompt that are held [n, d]: the start token, every word, the end token, and samples of the padding."""
    return state[
        [
            *range(prompt.end + 1),
            *text_cache.pads(prompt.end, len(state), text_cache.KEPT_PAD_SAMPLES),
        ]
    ]


def _kept(plan, fetch, progress):
    """Second moments [d, d] of all kept states, of those of the keep list with the empty prompt, and of the neutral sentences; and the
    keep list's own words [n, d]."""
    groups, total, count, own = (
        ({p.text for p in (*plan.listed, *plan.kept[:1])}, {n.text for *_, n in plan.pairs}),
        {},
        {},
        [],
    )
    names = {p.text: p for p in plan.listed}
    for start in range(0, len(plan.kept), 4 * BLOCK):
        block = plan.kept[start : start + 4 * BLOCK]
        read = fetch(block, progress)
        for part in itertools.product((True, False), repeat=2):
            rows = [
                kept_states(p, read[p.text])
                for p in block
                if tuple(p.text in group for group in groups) == part
            ]
            if rows:
                rows = torch.cat(rows).double()
                total[part], count[part] = (
                    total.get(part, 0) + rows.T @ rows,
                    count.get(part, 0) + len(rows),
                )
        own += [
            read[t][[*range(names[t].first, names[t].last + 1), names[t].end]]
            for t in (p.text for p in block)
            if t in names
        ]
    mean = lambda *parts: sum(total[p] for p in parts) / sum(count[p] for p in parts)
    everything, *moments = mean(*total), *(mean(*(p for p in total if p[j])) for j in range(2))
    return everything, *moments, torch.cat(own) if own else torch.zeros(0, len(everything))


@dataclass(frozen=True)
class Subjects:
    """What UCE and the released editors read, in the text encoder's own units, float64: c, n [m, d] the states of each name's last token
    and of what stands in for it; keep [k, d] those of the keep list."""

    c: torch.Tensor
    n: torch.Tensor
    keep: torch.Tensor


def subjects(plan, fetch):
    """Subjects of a Plan, from every name alone."""
    read = fetch([p for _, *pair in plan.plain for p in pair])
    c = torch.stack([read[a.text][a.last] for _, a, _ in plan.plain]).double()
    n = torch.stack([read[b.text][max(b.first, b.last)] for _, _, b in plan.plain]).double()
    read = fetch(plan.plain_keep) if plan.plain_keep else {}
    keep = [read[k.text][k.last] for k in plan.plain_keep]
    return Subjects(
        c,
        n,
        torch.stack(keep).double() if keep else torch.zeros(0, c.shape[1], dtype=torch.float64),
    )


def blocks(clip, plan):
    """What the released editors read: per name alone the states O_k from its last token to the very end, and as many of the
    replacement text ' ' from its start (lists of [n_k, d] float64), and the end token's state of the empty prompt [d]."""
    read = text_encoding.encode(clip, [" ", "", *(a.text for _, a, _ in plan.plain)])
    o = [read[a.text][a.last :].double() for _, a, _ in plan.plain]
    return o, [read[" "][: len(x)].double() for x in o], read[""][1].double()
