"""Names that are different texts and the same tokens, all found at once."""

from ..concepts.notation import short
from ..concepts.pasted import quoted
from ..errors import UnlearnError
from ..host import text_encoding
from ..host.model_types import Clip
from ..types import ConceptSet

SHOWN = 10  # pairs of names that a message repeats


def by_tokens(clip: Clip, concept_set: ConceptSet) -> dict[tuple[int, ...], str]:
    """Everything named, by its tokens.

    Raises UnlearnError, with all of them, where names to forget have the tokens of what is kept
    or of another name.
    """
    kept = {text_encoding.word_token_ids(clip, entry): entry for entry in concept_set.keep}
    found: dict[tuple[int, ...], str] = {}
    also_kept: list[tuple[str, str]] = []
    alike: list[tuple[str, str]] = []
    for name in (name for concept in concept_set.concepts for name in concept.names):
        tokens = text_encoding.word_token_ids(clip, name)
        if tokens and tokens in kept:
            also_kept.append((name, kept[tokens]))
        elif tokens and tokens in found:
            alike.append((name, found[tokens]))
        found.setdefault(tokens, name)
    if also_kept:
        names, entries = zip(*also_kept[:SHOWN], strict=True)
        raise UnlearnError(
            f"{quoted(names)}{_more(also_kept)} {_is(names)} to be forgotten and {quoted(entries)} "
            "kept, but the text encoder reads both alike; drop one."
        )
    if alike:
        pairs = "; ".join(f"'{short(a)}' and '{short(b)}'" for a, b in alike[:SHOWN])
        raise UnlearnError(
            f"{pairs}{_more(alike)} are the same to the text encoder; take one out of the forget "
            "list."
        )
    return kept | found


def _more(pairs: list[tuple[str, str]]) -> str:
    return f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"
