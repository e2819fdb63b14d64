"""What a phrase adds to a sentence: its token states less those of a sentence without it."""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import torch

from ..files import text_cache
from ..host import phrase_places
from ..host.architectures import Spans, text_spans
from ..host.text_encoding import Prompt

SentencePair = tuple[int, float, Prompt, Prompt]
"""Index of a concept, the sentence's share, the sentence with the concept and the neutral one."""


class Contrast(NamedTuple):
    """What one concept adds to its sentences, averaged over them by role of the token.

    Roles are the concept's own tokens one by one, the words behind it, the end token and the
    padding, apart for each text encoder whose states stand one after another.
    """

    rows: torch.Tensor  # [n, d] float64
    weights: torch.Tensor  # [n] float64
    concept_states: torch.Tensor  # [k, d] float32, of every sentence and token
    neutral_states: torch.Tensor  # [k, d] float32, what stands there in the neutral sentence
    is_end: list[bool]  # for each of the n rows, whether it is of the end token


class _TokenPair(NamedTuple):
    """A token of the sentence with the concept, and what stands in its place in the neutral one."""

    role: Hashable
    position: int
    neutral_position: int
    weight: float


def _token_pairs(sentence: Prompt, concept: Spans, neutral: Spans, tokens: str) -> list[_TokenPair]:
    """The tokens of a sentence that are compared with the neutral one, each with its weight.

    The padding weighs as much as one token in total, because superclasses were lost when each of
    its positions had a token's weight. What stands before the concept is left out where the text
    encoder is causal, because the concept does not change it there.
    """
    last = concept.own.stop - 1
    shift = neutral.own.stop - concept.own.stop
    # Where nothing stands in the concept's place, the next token is compared.
    stand_in = max(neutral.own.stop - 1, neutral.own.start)
    found = []
    for position in concept.own if tokens == "all" else concept.own[-1:]:
        said = sentence.own[position - concept.own.start] if sentence.own else None
        found.append(_TokenPair(("own", position - last, said), position, stand_in, 1.0))
    if not sentence.causal:
        before = min(concept.own.start, neutral.own.start)
        for position in range(before):
            found.append(_TokenPair("before", position, position, 1.0 / before))
    for position in concept.after:
        found.append(_TokenPair("word", position, position + shift, 1.0 / len(concept.after)))
    if concept.end is not None:
        other_end = concept.end + shift if neutral.end is None else neutral.end
        found.append(_TokenPair("end", concept.end, other_end, 1.0))
    pads = text_cache.samples_of(concept.padding)
    neutral_pads = text_cache.samples_of(neutral.padding)
    count = min(len(pads), len(neutral_pads))
    for position, other in zip(pads, neutral_pads, strict=False):
        found.append(_TokenPair("pad", position, other, 1.0 / count))
    return found


def contrast(
    pairs: Iterable[SentencePair],
    states: Mapping[str, torch.Tensor],
    tokens: str,
    scale: float,
) -> Contrast:
    """The Contrast of one concept's sentence pairs.

    states: text -> token states [77, d]. tokens: "all" of the concept's own tokens or only the
    "last". scale: what all states are divided by.
    """
    groups, with_concept, without, weights = [], [], [], []
    for _, share, sentence, neutral in pairs:
        said, other = states[sentence.text], states[neutral.text]
        segment = phrase_places.segment_of(sentence.text)[1]
        spans = text_spans(sentence, len(said))
        compared = _token_pairs(sentence, spans, text_spans(neutral, len(other)), tokens)
        total = sum(pair.weight for pair in compared)
        for pair in compared:
            groups.append((sentence.name, segment, pair.role))
            weights.append(share * pair.weight / total)
        with_concept.append(said[[pair.position for pair in compared]])
        last = len(other) - 1
        without.append(other[[min(pair.neutral_position, last) for pair in compared]])
    concept_states = torch.cat(with_concept).double() / scale
    neutral_states = torch.cat(without).double() / scale
    rows, row_weights = _means(
        concept_states - neutral_states, torch.tensor(weights, dtype=torch.float64), groups
    )
    return Contrast(
        rows,
        row_weights,
        concept_states.float(),
        neutral_states.float(),
        [role == "end" for *_, role in dict.fromkeys(groups)],
    )


def _means(
    rows: torch.Tensor, weights: torch.Tensor, groups: list
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean of the rows of each group, and the sum of their weights."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([numbers[group] for group in groups])
    total = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, index, weights)
    sums = torch.zeros(len(numbers), rows.shape[1], dtype=torch.float64)
    sums = sums.index_add(0, index, rows * weights[:, None])
    return sums / total[:, None], total
