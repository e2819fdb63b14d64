"""FIA's prompt pairs: a concept in its contexts, and the same contexts without it (the paper's templates, with contexts of our own)."""

from ..errors import UnlearnError
from ..host import text_encoding

TEMPLATES = {
    "object": ("a {concept} in {context}", "a {concept} near {context}"),
    "style": ("{context} in the style of {concept}",),
    "explicit": ("a photo of a {concept} {context}",),
}
BASE = {"object": ("{context}",), "style": ("{context}",), "explicit": ("a photo of a {context}",)}
_PLACES = (
    "a kitchen", "the garden", "a street", "the forest", "a living room", "the beach", "a park", "an office", "the mountains", "a market",
    "a library", "the desert", "a train station", "a harbour", "a meadow", "a classroom", "the snow", "a garage", "a restaurant",
    "a village", "a bedroom", "the river", "a museum", "a farm", "a workshop", "a city square", "the lake", "a hallway", "a playground",
    "a bridge",
)  # fmt: skip
_PEOPLE = (
    "woman", "man", "person", "couple", "dancer", "girl", "boy", "lady", "model", "swimmer", "athlete", "nurse", "soldier", "singer",
    "worker", "student", "friend", "group",
)  # fmt: skip
_SUBJECTS = (
    "a house", "a tree", "a woman", "a bowl of fruit", "a boat", "a horse", "a bridge", "a field", "a man with a hat", "a church", "a cat",
    "a mountain", "a vase of flowers", "a street at night", "a dog", "a garden", "a river", "a castle", "a chair", "a sunset", "a child",
    "a bird", "a market", "a table", "a car", "a village", "a lake", "a ship", "a bicycle", "a portrait",
)  # fmt: skip
CONTEXTS = {"object": _PLACES, "style": _SUBJECTS, "explicit": _PEOPLE}


def lines(text):
    """The lines of a text that say something."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def pairs(clip, concept_set, n, first=0, templates=(), base=(), contexts=()):
    """(name, kind, texts) of every group of prompts to run: for each kind `base KIND`, then its concepts; n texts each.

    templates (with {concept}, and {context} where wanted), base (with {context}) and contexts replace the built-in ones of every kind;
    numbers `first` to `first + n - 1` of the pairs are taken, so that machines can share the work. Raises UnlearnError for a template
    without {concept}, own templates without own base lines, a concept without tokens, or a text over 75 tokens.
    """
    if templates and not base:
        raise UnlearnError(
            "The input 'base' is empty while 'templates' is not; write the same sentences without the concept there."
        )
    for line in templates:
        if "{concept}" not in line:
            raise UnlearnError(
                f"The line '{line}' of 'templates' has no {{concept}} in it; write {{concept}} where the concept goes."
            )
    groups = []
    for kind in dict.fromkeys(c.kind for c in concept_set.concepts):
        said, plain, where = (
            templates or TEMPLATES[kind],
            base or BASE[kind],
            contexts or CONTEXTS[kind],
        )
        numbers = range(first, first + n)
        fill = lambda line, i, where=where: line.replace("{context}", where[i % len(where)])
        texts = [fill(plain[i % len(plain)], i) for i in numbers]
        for text in texts:
            text_encoding.locate(clip, "{concept}", text)
        groups.append((f"base {kind}", kind, texts))
        for concept in (c for c in concept_set.concepts if c.kind == kind):
            named = [
                (fill(said[i % len(said)], i), concept.names[i // len(said) % len(concept.names)])
                for i in numbers
            ]
            groups.append(
                (
                    concept.name,
                    kind,
                    [
                        text_encoding.locate(clip, text_encoding.fix_article(t, name), name).text
                        for t, name in named
                    ],
                )
            )
    return groups
