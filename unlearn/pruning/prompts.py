"""FIA's prompts: a concept in its contexts, and the same contexts without it.

The templates are the paper's, and the contexts are our own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import UnlearnError, quoted
from ..host import text_encoding
from ..host.model_types import Clip
from ..types import Concept, Group

Check = Callable[[Clip, str, str], Any]  # (clip, template, concept)
TEMPLATES = {
    "object": ("a {concept} in {context}", "a {concept} near {context}"),
    "style": ("{context} in the style of {concept}",),
    "explicit": ("a photo of a {concept} {context}",),
}
BASE = {"object": ("{context}",), "style": ("{context}",), "explicit": ("a photo of a {context}",)}
_PLACES = (
    "a kitchen", "the garden", "a street", "the forest", "a living room", "the beach",
    "a park", "an office", "the mountains", "a market", "a library", "the desert",
    "a train station", "a harbour", "a meadow", "a classroom", "the snow", "a garage",
    "a restaurant", "a village", "a bedroom", "the river", "a museum", "a farm", "a workshop",
    "a city square", "the lake", "a hallway", "a playground", "a bridge",
)  # fmt: skip
_PEOPLE = (
    "woman", "man", "person", "couple", "dancer", "girl", "boy", "lady", "model", "swimmer",
    "athlete", "nurse", "soldier", "singer", "worker", "student", "friend", "group",
)  # fmt: skip
_SUBJECTS = (
    "a house", "a tree", "a woman", "a bowl of fruit", "a boat", "a horse", "a bridge",
    "a field", "a man with a hat", "a church", "a cat", "a mountain", "a vase of flowers",
    "a street at night", "a dog", "a garden", "a river", "a castle", "a chair", "a sunset",
    "a child", "a bird", "a market", "a table", "a car", "a village", "a lake", "a ship",
    "a bicycle", "a portrait",
)  # fmt: skip
CONTEXTS = {"object": _PLACES, "style": _SUBJECTS, "explicit": _PEOPLE}


class OwnLines(NamedTuple):
    """An artist's own lines in place of the built-in ones, for every kind of concept.

    templates: sentences with {concept}, and {context} where wanted. base: the same sentences
    without the concept. contexts: what stands for {context}. What is empty is taken from the
    built-in lines.
    """

    templates: Sequence[str] = ()
    base: Sequence[str] = ()
    contexts: Sequence[str] = ()


BUILT_IN = OwnLines()


class PromptGroup(NamedTuple):
    """The prompts of one group."""

    group: Group
    texts: tuple[str, ...]


def build_groups(
    clip: Clip,
    concepts: Sequence[Concept],
    count: int,
    first: int = 0,
    own: OwnLines = BUILT_IN,
    check: Check = text_encoding.locate,
) -> list[PromptGroup]:
    """The groups of prompts to run: for each kind its baseline, and then its concepts.

    Each group has `count` texts, numbered from `first`, so that machines can share the work. Text
    i of a concept has the same context as text i of its baseline. check: raises UnlearnError where
    the CLIP cannot read a concept in a sentence, or the sentence is too long. Raises it too for a
    template without {concept}, and own templates without own base lines.
    """
    if own.templates and not own.base:
        raise UnlearnError(
            "The input 'base' is empty while 'templates' is not; "
            "write the same sentences without the concept there."
        )
    for line in own.templates:
        if "{concept}" not in line:
            raise UnlearnError(
                f"The line {quoted(line)} of 'templates' has no {{concept}} in it; "
                "write {concept} where the concept goes."
            )
    numbers = range(first, first + count)
    groups = []
    for kind in dict.fromkeys(c.kind for c in concepts):
        contexts = own.contexts or CONTEXTS[kind]
        texts = _filled(own.base or BASE[kind], contexts, numbers)
        for text in texts:
            check(clip, "{concept}", text)
        groups.append(PromptGroup(Group(kind), tuple(texts)))
        templates = own.templates or TEMPLATES[kind]
        sentences = _filled(templates, contexts, numbers)
        for concept in concepts:
            if concept.kind == kind:
                turns = [i // len(templates) for i in numbers]
                named = _named(clip, concept, sentences, turns, check)
                groups.append(PromptGroup(Group(kind, concept.name), named))
    return groups


def _filled(lines: Sequence[str], contexts: Sequence[str], numbers: range) -> list[str]:
    """For each number its line, with its context filled in."""
    return [
        lines[i % len(lines)].replace("{context}", contexts[i % len(contexts)]) for i in numbers
    ]


def _named(
    clip: Clip, concept: Concept, sentences: Sequence[str], turns: Sequence[int], check: Check
) -> tuple[str, ...]:
    """The sentences with the concept filled in; turns: which of its names is used in each."""
    texts = []
    for sentence, turn in zip(sentences, turns, strict=True):
        name = concept.names[turn % len(concept.names)]
        template = text_encoding.fix_article(sentence, name)
        check(clip, template, name)
        texts.append(text_encoding.prompt_of(template, name))
    return tuple(texts)
