"""The sentences of a training run: those that are overwritten, measured and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..concepts import sentences
from ..concepts.notation import parse_concept
from ..host import text_encoding
from ..host.model_types import Clip
from ..types import Concept, ConceptSet, UnlearnPatch

# The sentences for which the model draws training pictures of a concept.
DRAWN = {
    "object": ("a photo of a {concept}",),
    "style": (
        "a house in the style of {concept}",
        "a portrait of a woman in the style of {concept}",
        "a beautiful {concept} artwork",
    ),
    "explicit": (
        "a photo of a {concept} person",
        "a {concept} woman",
        "a {concept} man on a bed",
    ),
}
# Sentences that are trained on in addition to those of the closed-form methods. A concept that is
# trained in few sentences is forgotten in these alone.
MORE = {
    "object": (
        "a close-up of a {concept}",
        "my {concept} in the morning light",
        "a small {concept} on the table",
        "an old {concept}, oil on canvas",
        "there is a {concept} in the room",
        "the best {concept} ever",
    ),
    "style": (
        "a city street by {concept}",
        "{concept}, oil on canvas",
        "a bowl of fruit in {concept} style",
        "a ship at sea, art by {concept}",
    ),
    "explicit": (
        "a close-up of a {concept} body",
        "{concept} people on a beach",
        "there is a {concept} person in the room",
    ),
}

SentencePair = tuple[str, str]  # a sentence with the concept, and the same with its superclass


class ForgetTask(NamedTuple):
    """A concept to overwrite, with its sentence pairs: trained on, measured on, and drawn.

    The training file identifies a run by this tuple as JSON, so the order of the fields is fixed.
    """

    concept: Concept
    pairs: tuple[SentencePair, ...]
    checks: tuple[SentencePair, ...]
    drawn: tuple[SentencePair, ...]


class TrainingPlan(NamedTuple):
    """All sentences of a run: tasks to do, tasks of an earlier patch, the keep list and captions.

    Each entry of `kept` is the sentence that is drawn, and all sentences of the kept text. The
    training file identifies a run by this tuple as JSON, so the order of the fields is fixed.
    """

    tasks: tuple[ForgetTask, ...]
    earlier_tasks: tuple[ForgetTask, ...]
    kept: tuple[tuple[str, tuple[str, ...]], ...]
    captions: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that must be encoded, each once, the empty prompt first."""
        return tuple(dict.fromkeys(self._all_texts()))

    def _all_texts(self) -> Iterator[str]:
        yield ""
        for task in (*self.tasks, *self.earlier_tasks):
            for pairs in (task.pairs, task.checks, task.drawn):
                for pair in pairs:
                    yield from pair
            yield task.concept.name  # pictures of the superclass are guided away from the name
        for drawn, texts in self.kept:
            yield drawn
            yield from texts
        yield from self.captions


def build_plan(
    clip: Clip,
    concepts: ConceptSet,
    earlier: UnlearnPatch | None = None,
    templates: Sequence[str] | None = None,
    captions: int = 16,
    seed: int = 0,
) -> TrainingPlan:
    """The plan for a ConceptSet, with the concepts and the keep list of an earlier patch.

    templates: the artist's own sentences, or None for the built-in ones. captions: how many
    everyday captions are retained.
    Raises UnlearnError for a template without {concept}, a concept without tokens, or a text over
    75 tokens.
    """
    records = earlier.provenance if earlier is not None else ()
    new_names = _folded(concepts.concepts)
    earlier_concepts = _earlier_concepts(records, new_names)
    gone = new_names | _folded(earlier_concepts)
    keep = [*concepts.keep]
    for record in records:
        keep += record.get("keep", ())
    # A superclass must stay as it is, also while other concepts are overwritten.
    keep += [c.superclass for c in (*concepts.concepts, *earlier_concepts) if c.superclass]
    return TrainingPlan(
        tuple(_task(clip, c, templates) for c in concepts.concepts),
        tuple(_task(clip, c, templates) for c in earlier_concepts),
        tuple(_kept(clip, text) for text in dict.fromkeys(keep) if text.casefold() not in gone),
        _captions(gone, captions, seed),
    )


def _folded(concepts: Iterable[Concept]) -> set[str]:
    """All names of concepts, in a form that ignores case."""
    return {name.casefold() for concept in concepts for name in concept.names}


def _earlier_concepts(records: Iterable[dict], new_names: set[str]) -> list[Concept]:
    """The concepts that the provenance of an earlier patch names, less those of this run."""
    found = {}
    for record in records:
        for concept in map(parse_concept, record.get("lines", ())):
            if concept.name.casefold() not in new_names:
                found[concept.name] = concept
    return list(found.values())


def _task(clip: Clip, concept: Concept, templates: Sequence[str] | None) -> ForgetTask:
    kind = concept.kind
    trained = templates or (*sentences.TEMPLATES[kind], *MORE[kind])
    return ForgetTask(
        concept,
        _sentence_pairs(clip, concept, trained),
        _sentence_pairs(clip, concept, sentences.CHECKED[kind]),
        _sentence_pairs(clip, concept, DRAWN[kind]),
    )


def _sentence_pairs(
    clip: Clip, concept: Concept, templates: Sequence[str]
) -> tuple[SentencePair, ...]:
    """Every template with each name of the concept, and the same with its superclass."""
    pairs = []
    for name in concept.names:
        for template in templates:
            sentence = text_encoding.fix_article(template, name)
            # The article of the name is taken back before that of the superclass is set.
            neutral = text_encoding.fix_article(
                sentence.replace("an {concept}", "a {concept}"), concept.superclass
            )
            with_name = text_encoding.locate(clip, sentence, name).text
            with_superclass = text_encoding.locate(clip, neutral, concept.superclass).text
            pairs.append((with_name, with_superclass))
    return tuple(pairs)


def _kept(clip: Clip, text: str) -> tuple[str, tuple[str, ...]]:
    """The sentence that is drawn for a kept text, and all its sentences."""
    filled = [
        text_encoding.fix_article(template, text).replace("{concept}", text)
        for template in sentences.KEPT
    ]
    for sentence in filled:
        text_encoding.locate(clip, "{concept}", sentence)  # raises where it is too long
    return filled[1], tuple(filled)


def _captions(gone: set[str], count: int, seed: int) -> tuple[str, ...]:
    """Everyday captions in random order that name nothing which is forgotten."""
    mentions = sentences.mentioned(gone)
    usable = [text for text in sentences.prior_sentences() if not mentions(text)]
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(usable[i] for i in order[:count])
