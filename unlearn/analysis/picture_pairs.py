"""Which prompts the Erasure Report draws with both models."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..concepts import sentences
from ..errors import UnlearnError, quoted
from ..host import text_encoding
from ..host.model_types import Clip
from ..types import ConceptSet
from . import tuning

# (CLIP, template, concept); raises UnlearnError where the text encoder cannot read it.
Reads = Callable[[Clip, str, str], Any]
EVERYDAY = "everyday"  # the name of captions that stand for everything nobody listed


@dataclass(frozen=True)
class PicturePair:
    """One prompt and seed that both models draw. `name` is the concept or the kept text in it."""

    name: str
    prompt: str
    seed: int
    forgotten: bool


@dataclass(frozen=True)
class Drawing:
    """What one model drew of all pairs, in their order, on the CPU."""

    latents: torch.Tensor  # [n, c, h, w] float32, of a model of videos [n, c, 1, h, w]
    pictures: torch.Tensor  # [n, height, width, 3] float32 in [0, 1]


def build_comparisons(
    clip: Clip,
    concepts: ConceptSet,
    templates: Sequence[str] = (),
    kept: int = 4,
    seeds: Sequence[int] = (7,),
    reads: Reads = text_encoding.locate,
) -> list[PicturePair]:
    """The PicturePairs of a concept list, each prompt with every seed.

    Every concept is drawn in every template, or in that of its kind when there are none. Then come
    `kept` prompts of the keep list, filled up with everyday captions. Raises UnlearnError for a
    template without {concept} and for text that the text encoder cannot read.
    """
    for line in templates:
        if "{concept}" not in line:
            raise UnlearnError(
                f"The line {quoted(line)} of 'templates' has no {{concept}} in it; "
                "write {concept} where the concept goes."
            )
    fill = functools.partial(_filled, clip, reads)
    prompts = [
        *_forgotten_prompts(fill, concepts, templates),
        *_kept_prompts(fill, concepts, templates, kept),
        *_everyday_prompts(concepts, kept - len(concepts.keep)),
    ]
    pairs = []
    for name, prompt, forgotten in prompts:
        pairs += [PicturePair(name, prompt, seed, forgotten) for seed in seeds]
    return pairs


def _forgotten_prompts(
    fill: Callable[[str, str], str], concepts: ConceptSet, templates: Sequence[str]
) -> list[tuple[str, str, bool]]:
    prompts = []
    for concept in concepts.concepts:
        for template in templates or sentences.REPORT_TEMPLATES[concept.kind]:
            prompts.append((concept.name, fill(template, concept.name), True))
    return prompts


def _kept_prompts(
    fill: Callable[[str, str], str], concepts: ConceptSet, templates: Sequence[str], count: int
) -> list[tuple[str, str, bool]]:
    template = (templates or sentences.REPORT_TEMPLATES[concepts.concepts[0].kind])[0]
    prompts = []
    for line in concepts.keep[:count]:
        if len(line.split()) >= tuning.MIN_SENTENCE_WORDS:
            prompt = fill("{concept}", line)
        else:
            prompt = fill(template, line)
        prompts.append((line, prompt, False))
    return prompts


def _everyday_prompts(concepts: ConceptSet, count: int) -> list[tuple[str, str, bool]]:
    names = [name.casefold() for concept in concepts.concepts for name in concept.names]
    unrelated = (
        caption
        for caption in sentences.prior_sentences()
        if not any(name in caption.casefold() for name in names)
    )
    return [(EVERYDAY, caption, False) for caption in itertools.islice(unrelated, max(0, count))]


def _filled(clip: Clip, reads: Reads, template: str, name: str) -> str:
    """The template with a name in it; raises UnlearnError when the text encoder cannot read it."""
    template = text_encoding.fix_article(template, name)
    reads(clip, template, name)
    return text_encoding.prompt_of(template, name)
