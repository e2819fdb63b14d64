"""Which sentences a closed-form solve studies.

Each concept stands in several sentences. The same sentences with a neutral word in its place tell
what the concept adds to a sentence. The plan also names what is kept: the keep list, everyday
captions and common words (the general prior). Sentences that are not studied serve to check how
much of a concept an edit leaves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from ..analysis.prior_words import packed_words
from ..concepts.name_variants import name_variants
from ..concepts.sentences import (
    CHECKED,
    COMMON,
    KEPT,
    MEASURED,
    TEMPLATES,
    forgotten_words,
    mentioned,
    prior_sentences,
)
from ..host import text_encoding
from ..host.model_types import Clip
from ..host.text_encoding import Prompt
from ..types import Concept, ConceptSet
from . import same_names, tuning

Item = TypeVar("Item")
Locate = Callable[[str, str], Prompt]  # (template, name) -> the sentence and where the name stands


class SentencePair(NamedTuple):
    """A sentence with a concept, and the same sentence with a neutral word in its place."""

    concept: int  # index in the ConceptSet
    weight: float  # share of the concept's weight
    prompt: Prompt
    neutral: Prompt


class NamePair(NamedTuple):
    """A name of a concept and its neutral word, each alone or in a sentence not studied."""

    concept: int  # index in the ConceptSet
    prompt: Prompt
    neutral: Prompt


class Beside(NamedTuple):
    """Words in the place of one neutral word, each in all sentences.

    concepts: indices of those with this neutral word; kept: the sentence pairs of each entry of the
    keep list; nouns: those of each common noun.
    """

    concepts: tuple[int, ...]
    kept: tuple[tuple[SentencePair, ...], ...]
    nouns: tuple[tuple[SentencePair, ...], ...]

    @property
    def pairs(self) -> tuple[SentencePair, ...]:
        """All sentence pairs."""
        return tuple(pair for word in (*self.kept, *self.nouns) for pair in word)

    def with_pairs(self, of: Callable[[SentencePair], Iterable[SentencePair]]) -> "Beside":
        """The same with other sentence pairs in the place of each."""
        kept, nouns = (
            tuple(tuple(new for pair in word for new in of(pair)) for word in words)
            for words in (self.kept, self.nouns)
        )
        return Beside(self.concepts, kept, nouns)


def _pooled_pair(pair: SentencePair) -> tuple[SentencePair]:
    seen = text_encoding.as_pooled
    return (pair._replace(prompt=seen(pair.prompt), neutral=seen(pair.neutral)),)


@dataclass(frozen=True)
class SentencePlan:
    """The sentences in which a ConceptSet is studied, and what is kept.

    pairs: the sentences that are studied; kept: the prompts that are kept, the empty prompt first;
    names, kinds: of the concepts; listed: those of `kept` that stand for the keep list. bare_names:
    every name alone; bare_keep: the keep list's entries alone. checked: concepts in sentences that
    are not studied. beside: for each neutral word of the concepts, the keep list and common nouns
    in its place; nothing where there is no keep list. measured: kept words in sentences that tell
    how far an edit moves what is kept. packed: prompts of common words, each with its (word,
    position) pairs; forgotten words are among them and are left out when the states are read.
    """

    pairs: tuple[SentencePair, ...]
    kept: tuple[Prompt, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    listed: tuple[Prompt, ...] = ()
    bare_names: tuple[NamePair, ...] = ()
    bare_keep: tuple[Prompt, ...] = ()
    checked: tuple[NamePair, ...] = ()
    beside: tuple[Beside, ...] = ()
    measured: tuple[Prompt, ...] = ()
    packed: tuple[tuple[Prompt, tuple[tuple[str, int], ...]], ...] = ()
    forgotten: frozenset[str] = frozenset()

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that must be encoded, once each."""
        found = [prompt.text for pair in self.pairs for prompt in (pair.prompt, pair.neutral)]
        found += [prompt.text for prompt in self.kept]
        found += [prompt.text for prompt, _ in self.packed]
        for pair in (*self.bare_names, *self.checked):
            found += [pair.prompt.text, pair.neutral.text]
        for pair in (pair for beside in self.beside for pair in beside.pairs):
            found += [pair.prompt.text, pair.neutral.text]
        found += [prompt.text for prompt in (*self.bare_keep, *self.measured)]
        return tuple(dict.fromkeys(found))

    def as_pooled(self) -> "SentencePlan":
        """The plan as pooled text vectors show it: one state for each prompt, and no words.

        A sentence changes the whole vector, so what a concept adds is not averaged over sentences.
        The sentences that check how much is left are studied too: a push past zero, which they
        serve, would be all that is left of a concept in a vector of one state.
        """
        seen = text_encoding.as_pooled
        found = [(pair.concept, pair.prompt, pair.neutral) for pair in (*self.pairs, *self.checked)]
        sentences = Counter(concept for concept, _, _ in found)
        total: dict[int, float] = {}
        for pair in self.pairs:
            total[pair.concept] = total.get(pair.concept, 0.0) + pair.weight
        pairs = [
            SentencePair(i, total[i] / sentences[i], seen(prompt), seen(neutral))
            for i, prompt, neutral in sorted(found, key=lambda pair: pair[0])
        ]

        return replace(
            self,
            pairs=tuple(pairs),
            kept=tuple(map(seen, self.kept)),
            listed=tuple(map(seen, self.listed)),
            bare_names=tuple(
                NamePair(i, seen(prompt), seen(neutral)) for i, prompt, neutral in self.bare_names
            ),
            bare_keep=tuple(map(seen, self.bare_keep)),
            checked=(),
            beside=tuple(beside.with_pairs(_pooled_pair) for beside in self.beside),
            measured=tuple(map(seen, self.measured)),
            packed=(),
        )


def plan(
    clip: Clip,
    concept_set: ConceptSet,
    templates: Sequence[str] | None = None,
    prior: bool = True,
    expand: bool = False,
    check: bool = True,
    locate_by: Locate | None = None,
) -> SentencePlan:
    """The SentencePlan for a ConceptSet.

    templates: own sentences with {concept} in them, or None for the built-in ones of each
    concept's kind. prior: also keep everyday captions and words. expand: also study plurals and
    joined forms of the names. check: also plan sentences that are not studied.
    locate_by: finds a name in a sentence, None for CLIP's tokens; common words are then left out.
    Raises UnlearnError for a concept that has no tokens, a text over 75 tokens, and names that are
    the same to the text encoder.
    """
    counted: text_encoding.Counted = {}  # sentences begin alike, and names end many of them
    locate: Locate = locate_by or cache(
        lambda template, name: text_encoding.locate(clip, template, name, counted)
    )
    taken = same_names.by_tokens(clip, concept_set)
    pairs: list[SentencePair] = []
    bare_names: list[NamePair] = []
    for index, concept in enumerate(concept_set.concepts):
        forms = _unused_variants(clip, concept, taken) if expand else ()
        studied = {name: templates or TEMPLATES[concept.kind] for name in concept.names}
        studied |= {form: templates or KEPT for form in forms}
        pairs += _studied_pairs(locate, index, concept, studied)
        bare_names += [
            NamePair(index, locate("{concept}", name), locate("{concept}", concept.superclass))
            for name in studied
        ]
    read_in = tuple(templates or KEPT)
    listed = [
        locate(text_encoding.fix_article(template, entry), entry)
        for entry in concept_set.keep
        for template in read_in
    ]
    return SentencePlan(
        pairs=tuple(pairs),
        kept=_kept_prompts(locate, concept_set, listed, pairs, prior),
        names=tuple(concept.name for concept in concept_set.concepts),
        kinds=tuple(concept.kind for concept in concept_set.concepts),
        listed=tuple(listed),
        bare_names=tuple(bare_names),
        bare_keep=tuple(locate("{concept}", entry) for entry in concept_set.keep),
        checked=_checked_pairs(locate, concept_set.concepts) if check else (),
        beside=_beside(locate, concept_set, read_in),
        measured=_measured_prompts(locate, concept_set),
        packed=packed_words(clip) if prior and locate_by is None else (),
        forgotten=forgotten_words(pair.prompt.name for pair in bare_names),
    )


def _studied_pairs(
    locate: Locate, index: int, concept: Concept, studied: dict[str, Sequence[str]]
) -> list[SentencePair]:
    """The sentence pairs of one concept; `studied` has the sentences of each of its names."""
    pairs = []
    for name, sentences in studied.items():
        weight = concept.weight / (len(studied) * len(sentences))
        for sentence in sentences:
            template = text_encoding.fix_article(sentence, name)
            neutral = locate(template, concept.superclass)
            pairs.append(SentencePair(index, weight, locate(template, name), neutral))
    return pairs


def evenly(items: Iterable[Item], count: int) -> list[Item]:
    """At most `count` of the items, spread evenly, the first and the last among them."""
    every = list(items)
    places = torch.linspace(0, len(every) - 1, min(count, len(every))).long().unique()
    return [every[i] for i in places.tolist()]


def _beside(
    locate: Locate, concept_set: ConceptSet, templates: Sequence[str]
) -> tuple[Beside, ...]:
    """The Beside of each neutral word; of very many words an even choice."""
    of_word: dict[str, list[int]] = {}
    for index, concept in enumerate(concept_set.concepts):
        of_word.setdefault(concept.superclass, []).append(index)

    def pairs(word: str, neutral: str) -> tuple[SentencePair, ...]:
        found = []
        for template in templates:
            sentence = text_encoding.fix_article(template, word)
            both = locate(sentence, word), locate(sentence, neutral)
            found.append(SentencePair(0, 1 / len(templates), *both))
        return tuple(found)

    found = []
    for neutral in evenly(of_word, tuning.CONTRASTED) if concept_set.keep else ():
        kept, nouns = (
            tuple(pairs(word, neutral) for word in words if word != neutral)
            for words in (concept_set.keep, _common(concept_set))
        )
        found.append(Beside(tuple(of_word[neutral]), kept, nouns))
    return tuple(found)


def _common(concept_set: ConceptSet) -> list[str]:
    """Common nouns that are not to be forgotten."""
    forgotten = {name.lower() for concept in concept_set.concepts for name in concept.names}
    return [noun for noun in COMMON if noun not in forgotten]


def _measured_prompts(locate: Locate, concept_set: ConceptSet) -> tuple[Prompt, ...]:
    """Kept words in the sentences that tell how far what is kept moves; of many an even choice.

    Common nouns fill up a list of fewer than 12, so that it is not told from two look-alikes alone.
    """
    words = evenly(concept_set.keep, tuning.MEASURED_WORDS)
    nouns = [noun for noun in _common(concept_set) if noun not in words]
    words += nouns[: max(0, len(COMMON) - len(words))]
    return tuple(
        locate(text_encoding.fix_article(template, word), word)
        for word in words
        for template in MEASURED
    )


def _checked_pairs(locate: Locate, concepts: Sequence[Concept]) -> tuple[NamePair, ...]:
    """Concepts in sentences that are not studied; of very many concepts an even choice."""
    chosen = evenly(range(len(concepts)), tuning.CHECKED_CONCEPTS)
    sentences = 2 if len(concepts) <= tuning.CHECKED_TWICE else 1
    pairs = []
    for index in chosen:
        concept = concepts[index]
        for sentence in CHECKED[concept.kind][:sentences]:
            template = text_encoding.fix_article(sentence, concept.name)
            # Only their end tokens are looked at.
            with_it, without = (
                locate(template, name)._replace(padded=False)
                for name in (concept.name, concept.superclass)
            )
            pairs.append(NamePair(index, with_it, without))
    return tuple(pairs)


def _kept_prompts(
    locate: Locate,
    concept_set: ConceptSet,
    listed: list[Prompt],
    pairs: list[SentencePair],
    prior: bool,
) -> tuple[Prompt, ...]:
    """Every prompt that is kept, once each, the empty prompt first."""
    names_a_concept = mentioned(
        [name for concept in concept_set.concepts for name in concept.names]
    )
    captions = [s for s in prior_sentences() if not names_a_concept(s)] if prior else []
    kept = [locate("{concept}", ""), *listed]
    kept += [locate("{concept}", caption) for caption in captions]
    kept += [pair.neutral for pair in pairs]
    return tuple({prompt.text: prompt for prompt in kept}.values())


def _unused_variants(
    clip: Clip, concept: Concept, taken: dict[tuple[int, ...], str]
) -> tuple[str, ...]:
    """Other forms of a concept's names, neither named nor kept; they are added to `taken`."""
    forms = [form for name in concept.names for form in name_variants(name, concept.kind)]
    unused = {form: text_encoding.word_token_ids(clip, form) for form in dict.fromkeys(forms)}
    unused = {form: tokens for form, tokens in unused.items() if tokens not in taken}
    taken |= {tokens: form for form, tokens in unused.items()}
    return tuple(unused)
