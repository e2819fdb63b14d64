"""What a closed-form solve is made from: Gram matrices of token states to change and to keep.

What is changed is not a prompt's states but their difference to the same sentence with a neutral
word in the concept's place, averaged over several sentences. It holds what the concept adds, and
little of the sentence around it. Everything is summed up concept by concept, so that ten thousand
concepts need no more memory than ten.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

import torch

from ...kernels import scapre
from ..analysis import prior_words
from ..analysis.contrasts import contrast
from ..analysis.prior_words import Fetch
from ..errors import UnlearnError
from ..files import text_cache
from ..files.tuning import KEPT_PAD_SAMPLES
from ..host import text_encoding
from ..host.model_types import Clip
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from . import lookalikes, tuning
from .sentence_plan import SentencePair, SentencePlan

Item = TypeVar("Item")
SAME_STATES = 1e-10  # mean square of a difference that is nothing but rounding


@dataclass(frozen=True)
class Statistics:
    """float64 moments of token states of width d, divided by the RMS entry of the kept states.

    concept_gram S [d, d]: sum omega x x^T over rows x, what the concepts add to their sentences;
        each concept's omega sum to its weight.
    target_shift T [d, d]: sum omega (y - x) x^T, y being what x is to become: -S, as it is nothing.
    preserve_gram K [d, d]: mean k k^T over the kept states, plus those over the neutral sentences
        and over the prior's words, each by its weight.
    keep_list_gram [d, d]: mean k k^T over the keep list and the empty prompt alone.
    contrast_gram C [d, d]: sum of what kept words that are like a forgotten one add to their
        sentences, see lookalikes.py. 0 where there is no such word.
    drift_gram [d, d]: mean k k^T over the sentences that tell how far what is kept moves; K where
        there are none.
    concepts [d, m]: one mean row per concept; names: of the m concepts.
    rows [n, d], rows_weight [n]: x and omega one by one, or `concepts` where there are too many.
    ends [n] int64: the concept of each row that is of the end token, -1 for other rows; None where
        rows are not kept one by one.
    end_gram [d, d]: what the rows of the end token add to `concept_gram`.
    positives, neutral, lookalikes: float32 states [k, d] of sampled concepts (one tensor each), of
        their neutral words, and of the keep list.
    words, word_states [n, d]: the prior's words that are not to be forgotten, and their states.
    scale: the RMS entry of the kept states.
    """

    concept_gram: torch.Tensor
    target_shift: torch.Tensor
    preserve_gram: torch.Tensor
    keep_list_gram: torch.Tensor
    contrast_gram: torch.Tensor
    drift_gram: torch.Tensor
    concepts: torch.Tensor
    names: tuple[str, ...]
    rows: torch.Tensor
    rows_weight: torch.Tensor
    ends: torch.Tensor | None
    end_gram: torch.Tensor
    positives: tuple[torch.Tensor, ...]
    neutral: torch.Tensor
    lookalikes: torch.Tensor
    words: tuple[str, ...]
    word_states: torch.Tensor
    scale: float

    def overshot(self, shares: torch.Tensor) -> "Statistics":
        """The same with the end tokens pushed past zero by a share of what each concept adds.

        shares: [m] float64, one per concept. Where rows are not kept one by one, all concepts are
        pushed by the mean share.
        """
        if self.ends is None or not self.rows_weight.numel():
            push = float(shares.mean()) * self.end_gram
        else:
            end = self.ends >= 0
            push = scapre.gram(self.rows[end], self.rows_weight[end] * shares[self.ends[end]])
        return replace(self, target_shift=self.target_shift - push)

    def protecting(self, states: torch.Tensor, weight: float = 1.0) -> "Statistics":
        """The same with states [n, d] kept as well, `weight` times as heavy as all the rest.

        The states are already divided by `scale`.
        """
        more = weight * scapre.gram(states) / len(states)
        return replace(self, preserve_gram=self.preserve_gram + more)

    def erasing(self, rows: torch.Tensor, weights: torch.Tensor) -> "Statistics":
        """The same with rows [n, d] erased as well, each by its weight [n]."""
        more = scapre.gram(rows, weights)
        return replace(
            self, concept_gram=self.concept_gram + more, target_shift=self.target_shift - more
        )


def measure(
    plan: SentencePlan,
    fetch: Fetch,
    tokens: str = "all",
    progress: Progress | None = None,
    width: int | None = None,
) -> Statistics:
    """The Statistics of a SentencePlan.

    tokens: "all" words of a concept's name are erased, or only the "last". width: of the states,
    where `fetch` gives coordinates in a smaller space.
    Raises UnlearnError for a concept that is the same as its neutral word.
    """
    kept = _measure_kept(plan, fetch, progress)
    words, word_states = prior_words.word_states(plan.packed, plan.forgotten, fetch, progress)
    scale = float((kept.everything.trace() / (width or len(kept.everything))) ** 0.5)
    preserve = (kept.everything + tuning.NEUTRAL_WEIGHT * kept.neutral) / scale**2
    word_states = word_states / scale
    if len(words):
        preserve = preserve + tuning.WORDS_WEIGHT * scapre.gram(word_states) / len(words)
    sums = _ConceptSums(plan.names, tokens, scale, len(preserve))
    for block in _blocks(_by_concept(plan.pairs), tuning.BLOCK):
        prompts = [p for pairs in block for pair in pairs for p in (pair.prompt, pair.neutral)]
        sums.add(block, fetch(prompts, progress))
    rows, rows_weight = sums.separate_rows()
    contrasts = lookalikes.held_contrasts(plan, sums.means, fetch, scale, progress)
    moved = _moved_states(plan.measured, fetch, progress)
    return Statistics(
        concept_gram=sums.gram,
        target_shift=-sums.gram,
        preserve_gram=preserve,
        keep_list_gram=kept.keep_list / scale**2,
        contrast_gram=contrasts,
        drift_gram=preserve if moved is None else moved / scale**2,
        concepts=sums.means,
        names=plan.names,
        rows=rows,
        rows_weight=rows_weight,
        ends=torch.cat(sums.ends) if sums.one_by_one else None,
        end_gram=sums.end_gram,
        positives=tuple(sums.positives),
        neutral=torch.cat(sums.neutral),
        lookalikes=(kept.own_words / scale).float(),
        words=words,
        word_states=word_states,
        scale=scale,
    )


class _ConceptSums:
    """What is summed up over the concepts, block by block."""

    def __init__(self, names: tuple[str, ...], tokens: str, scale: float, width: int) -> None:
        self.names, self.tokens, self.scale = names, tokens, scale
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        self.end_gram = torch.zeros(width, width, dtype=torch.float64)
        self.means = torch.zeros(width, len(names), dtype=torch.float64)
        self.ends: list[torch.Tensor] = []
        self.positives: list[torch.Tensor] = []
        self.neutral: list[torch.Tensor] = []
        self.one_by_one = True
        self._rows: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        count = min(tuning.SAMPLED, len(names))
        self._sampled = set(torch.linspace(0, len(names) - 1, count).long().tolist())

    def add(self, block: Sequence[list[SentencePair]], states: dict[str, torch.Tensor]) -> None:
        """Adds the sentence pairs of some concepts, one list per concept."""
        found = [self._contrast(pairs, states) for pairs in block]
        rows, weights, ends = (torch.cat(part) for part in zip(*found, strict=True))
        end = ends >= 0
        self.gram += scapre.gram(rows, weights)
        self.end_gram += scapre.gram(rows[end], weights[end])
        self.ends.append(ends)
        self._rows.append(rows)
        self._weights.append(weights)
        if sum(map(len, self._rows)) > tuning.MAX_SEPARATE_ROWS:
            self.one_by_one = False
        if not self.one_by_one:
            self._rows, self._weights = [], []

    def _contrast(
        self, pairs: list[SentencePair], states: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One concept's rows [n, d], their weights [n], and its index for rows of the end token."""
        concept = pairs[0].concept
        rows, weights, with_concept, without, is_end = contrast(
            pairs, states, self.tokens, self.scale
        )
        if float(rows.square().mean()) < SAME_STATES:
            raise UnlearnError(
                f"'{self.names[concept]}' and what it should turn into are the same to the text "
                "encoder; write something wider behind '->'."
            )
        self.means[:, concept] = (rows * weights[:, None]).sum(0) / weights.sum()
        if concept in self._sampled:
            self.positives.append(with_concept)
            self.neutral.append(without)
        return rows, weights, torch.where(torch.tensor(is_end), concept, -1)

    def separate_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows [n, d] with their weights [n]; the concepts' means where there are too many."""
        if self.one_by_one:
            return torch.cat(self._rows), torch.cat(self._weights)
        return self.means.T, torch.ones(len(self.names), dtype=torch.float64)


def _moved_states(
    measured: Sequence[Prompt], fetch: Fetch, progress: Progress | None
) -> torch.Tensor | None:
    """The second moment [d, d] of the kept states of these prompts; None without any."""
    states = _MeanGram()
    for block in _blocks(measured, 4 * tuning.BLOCK):
        read = fetch(block, progress)
        states.add(torch.cat([kept_states(prompt, read[prompt.text]) for prompt in block]))
    return torch.as_tensor(states.total) / states.count if states.count else None


def in_new_sentences(
    plan: SentencePlan, fetch: Fetch, progress: Progress | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What concepts add to the end token of the sentences that are not studied, `plan.checked`.

    Returns the concept's index [s] and the differences [s, d] float64.
    """
    concepts, differences = [], []
    for block in _blocks(plan.checked, tuning.BLOCK):
        states = fetch([p for pair in block for p in (pair.prompt, pair.neutral)], progress)
        for concept, prompt, neutral in block:
            added = states[prompt.text][prompt.end] - states[neutral.text][neutral.end]
            concepts.append(concept)
            differences.append(added.double())
    return torch.tensor(concepts), torch.stack(differences)


def _by_concept(pairs: Iterable[SentencePair]) -> list[list[SentencePair]]:
    return [list(group) for _, group in groupby(pairs, lambda pair: pair.concept)]


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def kept_states(prompt: Prompt, state: torch.Tensor) -> torch.Tensor:
    """The states [n, d] of a prompt that are kept, of its states [length, d].

    These are the start token, every word, the end token, and samples of the padding.
    """
    padding = text_cache.pads(prompt.end, len(state), KEPT_PAD_SAMPLES)
    return state[[*range(prompt.end + 1), *padding]]


@dataclass
class _MeanGram:
    """A sum of x x^T over rows x, and their number."""

    total: torch.Tensor | float = 0.0
    count: int = 0

    def add(self, rows: torch.Tensor) -> None:
        rows = rows.double()
        self.total = self.total + rows.T @ rows
        self.count += len(rows)


@dataclass
class _KeptSums:
    """Sums over kept states, apart for each (is on the keep list, is a neutral sentence)."""

    parts: dict[tuple[bool, bool], _MeanGram] = field(default_factory=dict)

    def mean(self, on_keep_list: bool = False, neutral: bool = False) -> torch.Tensor:
        """The mean [d, d] over all kept states, or over those of which what is asked for holds."""
        chosen = [
            part
            for (is_listed, is_neutral), part in self.parts.items()
            if is_listed >= on_keep_list and is_neutral >= neutral
        ]
        total = torch.stack([torch.as_tensor(part.total) for part in chosen]).sum(0)
        return total / sum(part.count for part in chosen)


@dataclass(frozen=True)
class _Kept:
    """Mean x x^T [d, d] over all kept states, over the keep list with the empty prompt, and over
    the neutral sentences; and the states [n, d] of the keep list's own words."""

    everything: torch.Tensor
    keep_list: torch.Tensor
    neutral: torch.Tensor
    own_words: torch.Tensor


def _measure_kept(plan: SentencePlan, fetch: Fetch, progress: Progress | None) -> _Kept:
    on_keep_list = {prompt.text for prompt in (*plan.listed, *plan.kept[:1])}
    neutral = {pair.neutral.text for pair in plan.pairs}
    listed = {prompt.text: prompt for prompt in plan.listed}
    sums, own_words = _KeptSums(), []
    for block in _blocks(plan.kept, 4 * tuning.BLOCK):
        states = fetch(block, progress)
        groups: dict[tuple[bool, bool], list[torch.Tensor]] = {}
        for prompt in block:
            group = (prompt.text in on_keep_list, prompt.text in neutral)
            groups.setdefault(group, []).append(kept_states(prompt, states[prompt.text]))
            if own := listed.get(prompt.text):
                positions = [*range(own.first, own.last + 1), own.end]
                own_words.append(states[prompt.text][positions])
        for group, rows in groups.items():
            sums.parts.setdefault(group, _MeanGram()).add(torch.cat(rows))
    everything = sums.mean()
    return _Kept(
        everything=everything,
        keep_list=sums.mean(on_keep_list=True),
        neutral=sums.mean(neutral=True),
        own_words=torch.cat(own_words) if own_words else torch.zeros(0, len(everything)),
    )


@dataclass(frozen=True)
class NameStates:
    """What UCE and the released editors read, float64, in the text encoder's own units.

    names, replacements [m, d]: states of each name's last token, and of what stands in for it;
    keep [k, d]: those of the keep list.
    """

    names: torch.Tensor
    replacements: torch.Tensor
    keep: torch.Tensor


def name_states(plan: SentencePlan, fetch: Fetch) -> NameStates:
    """The NameStates of a SentencePlan, from every name alone."""
    pairs = plan.bare_names
    states = fetch([prompt for pair in pairs for prompt in (pair.prompt, pair.neutral)])
    names = [states[p.prompt.text][p.prompt.last] for p in pairs]
    # With nothing in the concept's place, the token that comes next stands in for it.
    stand_ins = [states[p.neutral.text][max(p.neutral.first, p.neutral.last)] for p in pairs]
    names, stand_ins = torch.stack(names).double(), torch.stack(stand_ins).double()
    if not plan.bare_keep:
        return NameStates(names, stand_ins, names[:0])
    states = fetch(plan.bare_keep)
    keep = torch.stack([states[prompt.text][prompt.last] for prompt in plan.bare_keep])
    return NameStates(names, stand_ins, keep.double())


@dataclass(frozen=True)
class NameBlocks:
    """What the released editors read beside NameStates, float64.

    names: per name alone its states [n_k, d] from its last token to the end of the padding;
    replacements: as many states of the text ' ' from its start; empty [d]: the end token's state
    of the empty prompt. Of pooled text vectors there is one for each text.
    """

    names: list[torch.Tensor]
    replacements: list[torch.Tensor]
    empty: torch.Tensor


def name_blocks(clip: Clip, plan: SentencePlan, fetch: Fetch, pooled: bool = False) -> NameBlocks:
    """The NameBlocks of a SentencePlan. They need all of the padding, which is not kept on disk.

    pooled: the plan and `fetch` are those of pooled text vectors.
    """
    prompts = [pair.prompt for pair in plan.bare_names]
    if pooled:
        others = [text_encoding.as_pooled(text_encoding.whole(clip, text)) for text in (" ", "")]
        states = fetch([*others, *prompts])
    else:
        states = text_encoding.encode(clip, [" ", "", *(prompt.text for prompt in prompts)])
    names = [states[prompt.text][prompt.last :].double() for prompt in prompts]
    replacements = [states[" "][: len(block)].double() for block in names]
    return NameBlocks(names, replacements, states[""][: 2 - pooled][-1].double())
