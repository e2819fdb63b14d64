"""Which sentences a closed-form solve studies: each concept in several, beside the same with a neutral word in its place; what is kept;
sentences that are not studied, to check it in; and everyday captions and words, the general prior.
"""

from dataclasses import dataclass
from functools import cache

import torch

from ..analysis.prior_words import packed_words
from ..concepts.name_variants import name_variants
from ..concepts.sentences import (
    CHECKED,
    KEPT,
    TEMPLATES,
    forgotten_words,
    mentioned,
    prior_sentences,
)
from ..errors import UnlearnError
from ..host import text_encoding

CHECKED_CONCEPTS = (
    500  # at most so many concepts are looked at in sentences not studied, evenly chosen
)
CHECKED_TWICE = 24  # up to so many concepts in two such sentences, more in one; of twelve, one was measured to give the same pictures


@dataclass(frozen=True)
class SentencePlan:
    """Which sentences a ConceptSet is studied in, as pairs of (concept index, share of its weight, Prompt, neutral Prompt), which
    prompts are kept, which of them stand for the keep list, and the prior's words packed into prompts.

    plain: (concept index, Prompt, neutral Prompt) of every name alone; plain_keep: Prompts of the keep list's entries alone.
    checked: the same as plain, in sentences that are not studied.
    packed: (Prompt, ((word, position), ..)); forgotten words are in them, and are left out when they are read.
    """

    pairs: tuple[tuple[int, float, text_encoding.Prompt, text_encoding.Prompt], ...]
    kept: tuple[text_encoding.Prompt, ...]
    names: tuple[str, ...]
    listed: tuple[text_encoding.Prompt, ...] = ()
    plain: tuple[tuple[int, text_encoding.Prompt, text_encoding.Prompt], ...] = ()
    plain_keep: tuple[text_encoding.Prompt, ...] = ()
    checked: tuple[tuple[int, text_encoding.Prompt, text_encoding.Prompt], ...] = ()
    packed: tuple[tuple[text_encoding.Prompt, tuple[tuple[str, int], ...]], ...] = ()
    forgotten: frozenset[str] = frozenset()

    @property
    def texts(self):
        """Every text that must be encoded, once each."""
        found = (
            [t.text for _, _, *pair in self.pairs for t in pair]
            + [t.text for t in self.kept]
            + [t.text for t, _ in self.packed]
        )
        found += [t.text for _, *pair in (*self.plain, *self.checked) for t in pair]
        return tuple(dict.fromkeys(found + [t.text for t in self.plain_keep]))


def plan(clip, concept_set, templates=None, prior=True, expand=False, check=True):
    """The Plan for a ConceptSet. templates: own sentences with {concept}, or None for those of each concept's kind; prior: also
    keep everyday captions and words; expand: study plural and joined forms of the names as well; check: plan sentences that are not
    studied too. Raises UnlearnError for a concept that has no tokens, a text over 75 tokens, and names that are the same to the text
    encoder."""
    located = cache(lambda template, name: text_encoding.locate(clip, template, name))
    names = _distinct(clip, concept_set)
    pairs, plain = [], []
    for i, concept in enumerate(concept_set.concepts):
        extra = [f for n in concept.names for f in name_variants(n, concept.kind)] if expand else []
        extra = [
            f for f in dict.fromkeys(extra) if text_encoding.word_token_ids(clip, f) not in names
        ]  # neither named already nor kept
        names |= {text_encoding.word_token_ids(clip, f): f for f in extra}
        studied = {n: templates or TEMPLATES[concept.kind] for n in concept.names} | {
            f: templates or KEPT for f in extra
        }
        for name, sentences in studied.items():
            share = concept.weight / (len(studied) * len(sentences))
            for template in (text_encoding.fix_article(t, name) for t in sentences):
                pairs.append(
                    (i, share, located(template, name), located(template, concept.superclass))
                )
            plain.append((i, located("{concept}", name), located("{concept}", concept.superclass)))
    some = concept_set.concepts if check else ()
    chosen = set(torch.linspace(0, len(some) - 1, min(CHECKED_CONCEPTS, len(some))).long().tolist())
    checked = [
        (i, located(template, concept.name), located(template, concept.superclass))
        for i, concept in enumerate(some)
        if i in chosen
        for template in (
            text_encoding.fix_article(t, concept.name)
            for t in CHECKED[concept.kind][: 2 if len(some) <= CHECKED_TWICE else 1]
        )
    ]
    spoken = mentioned([n for concept in concept_set.concepts for n in concept.names])
    listed = [
        located(text_encoding.fix_article(t, k), k)
        for k in concept_set.keep
        for t in templates or KEPT
    ]
    captions = [s for s in prior_sentences() if not spoken(s)] if prior else []
    kept = {
        p.text: p
        for p in (
            located("{concept}", ""),
            *listed,
            *(located("{concept}", s) for s in captions),
            *(n for *_, n in pairs),
        )
    }
    return SentencePlan(
        pairs=tuple(pairs),
        kept=tuple(kept.values()),
        names=tuple(c.name for c in concept_set.concepts),
        listed=tuple(listed),
        plain=tuple(plain),
        plain_keep=tuple(located("{concept}", k) for k in concept_set.keep),
        checked=tuple(checked),
        packed=packed_words(clip) if prior else (),
        forgotten=forgotten_words(p.name for _, p, _ in plain),
    )


def _distinct(clip, concept_set):
    """Tokens -> name of everything named; raises UnlearnError where two names are one to the text encoder."""
    kept = {text_encoding.word_token_ids(clip, k): k for k in concept_set.keep}
    found = {}
    for name in (n for c in concept_set.concepts for n in c.names):
        tokens = text_encoding.word_token_ids(clip, name)
        if tokens and tokens in kept:
            raise UnlearnError(
                f"'{name}' is to be forgotten and '{kept[tokens]}' kept, but the text encoder reads both alike; drop one."
            )
        if tokens and tokens in found:
            raise UnlearnError(
                f"'{name}' and '{found[tokens]}' are the same to the text encoder; take one out of the forget list."
            )
        found[tokens] = name
    return kept | found
