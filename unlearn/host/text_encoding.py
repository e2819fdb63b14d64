"""Token states of prompts, and where the concept stands in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ..errors import UnlearnError, quoted
from . import embeddings, pooled_text, reading_batch
from .memory import BatchSize, raise_if_cancelled
from .model_types import Clip
from .progress import Progress

# What to change where a single prompt does not fit into memory.
REMEDY = "free memory (Edit, Unload Models), or load the CLIP on the CPU"
SHOWN = 60  # letters of a prompt in an error message
LETTERS = "LNPS"  # Unicode categories of what a text encoder reads: letters, numbers, signs
Chunks = dict[str, list[list[tuple]]]  # encoder -> chunks of 77 entries (token, weight, word id)
Counted = dict[str, tuple[int, int]]  # text -> its word tokens, and its chunks


class Prompt(NamedTuple):
    """A text, the concept in it, and where its tokens stand.

    The concept's tokens have the positions `first` to `last` (inclusive), the end token has `end`.
    A concept without tokens has `last` = `first` - 1. causal: whether what stands before the
    concept is the same with another one in its place. own: the concept's tokens, where they may be
    others at the beginning of a sentence than within it; () where they are always the same.
    padded: whether anybody reads the padding after the end token; without it the rest is read
    faster.
    """

    text: str
    name: str
    first: int
    last: int
    end: int
    causal: bool = True
    own: tuple[Hashable, ...] = ()
    padded: bool = True


def escaped(text: str) -> str:
    """Parentheses as letters: they are part of the name, not ComfyUI's emphasis."""
    return text.replace("(", "\\(").replace(")", "\\)")


def prompt_of(template: str, concept: str) -> str:
    """The template with the concept in it, as one writes a prompt for ComfyUI.

    The parentheses of the concept are letters, those of the template are emphasis.
    """
    return template.replace("{concept}", escaped(concept))


def _chunks(clip: Clip, text: str) -> Chunks:
    return clip.tokenize(escaped(text), return_word_ids=True)


def _count(clip: Clip, text: str) -> tuple[int, int]:
    """How many word tokens a text has in the first encoder, and in how many chunks."""
    chunks = next(iter(_chunks(clip, text).values()))
    return sum(entry[2] > 0 for chunk in chunks for entry in chunk), len(chunks)


def tokens_of(clip: Clip, text: str) -> list[tuple]:
    """The word tokens of a text, for each encoder."""
    return [
        tuple(token for chunk in chunks for token, _, *word in chunk if word != [0])
        for chunks in _chunks(clip, text).values()
    ]


def word_token_ids(clip: Clip, text: str) -> tuple:
    """The word tokens of a text in every encoder, as a value to compare.

    () where the text encoder reads nothing.
    """
    return tuple(comparable(token) for tokens in tokens_of(clip, text) for token in tokens)


def comparable(token: Any) -> Hashable:
    """A token as a value to compare: an embedding's row by what it holds."""
    if not isinstance(token, torch.Tensor):
        return token
    return token.detach().float().cpu().numpy().tobytes()


def word_positions(clip: Clip, listed: Sequence[str]) -> tuple[tuple[int, ...] | None, int]:
    """Where the words of a list stand in the prompt of all of them, separated by spaces.

    Returns (position of the last token of each, position of the end token), or (None, 0) when they
    are too many for one prompt.
    """
    total, chunks = _count(clip, " ".join(listed))
    if chunks > 1:
        return None, 0
    if total == len(listed):  # usually each has one token
        return tuple(range(1, total + 1)), total + 1
    positions, last = [], 0
    for word in listed:
        last += _count(clip, word)[0]
        positions.append(last)
    return tuple(positions), total + 1


def fix_article(template: str, concept: str) -> str:
    """`a {concept}` becomes `an {concept}` before a vowel.

    The neutral word goes into the same sentence. The letters of `embedding:name` are never read,
    so the article stays as prompts have it.
    """
    if embeddings.is_embedding(concept):
        return template
    vowel = concept[:1].lower() in tuple("aeiou")
    return re.sub(r"\b([Aa]) \{concept\}", r"\1n {concept}", template) if vowel else template


def locate(clip: Clip, template: str, concept: str, counted: Counted | None = None) -> Prompt:
    """The Prompt of a template with `{concept}` filled in.

    counted: what the text encoder counted in texts before; new ones are added.
    Raises UnlearnError when the concept has no tokens, the text is too long for one prompt, or an
    embedding in it is missing or of another kind of model.
    """
    before, found, _ = template.partition("{concept}")
    if not found:
        raise UnlearnError(
            f"The template {quoted(template)} has no {{concept}} in it; write {{concept}} where "
            "the concept goes."
        )
    text = template.replace("{concept}", concept)
    embeddings.check(clip, text)
    known: Counted = {} if counted is None else counted
    for part in (before, before + concept, text):
        if part not in known:
            known[part] = _count(clip, part)
    (start, _), (last, _), (total, chunks) = known[before], known[before + concept], known[text]
    if chunks > 1:
        raise UnlearnError(
            f"The prompt '{text[:SHOWN]}...' has {total} tokens and the text encoder reads 75; "
            "shorten the concept or the template."
        )
    readable = any(unicodedata.category(letter)[0] in LETTERS for letter in concept)
    if concept and (last <= start or not readable):
        raise UnlearnError(
            f"The concept '{concept}' has no letters the text encoder reads; write it in other "
            "characters."
        )
    return Prompt(text, concept, start + 1, last, total + 1)


def eos_position(clip: Clip, prompt: Prompt) -> tuple[int, int]:
    """(position of the end token, length) of a Prompt that all encoders read in the same places.

    (0, length) where an embedding stands in it or encoders disagree.
    """
    chunks = [chunk for chunks in _chunks(clip, prompt.text).values() for chunk in chunks]
    length = max(map(len, chunks))
    for chunk in chunks:
        words = sum(word > 0 for *_, word in chunk)
        if words + 1 != prompt.end or not all(isinstance(token, int) for token, *_ in chunk):
            return 0, length
    return prompt.end, length


def check_width(found: int, width: int) -> None:
    """Raises UnlearnError unless states of width `found` fit a model of text width `width`."""
    if found != width:
        raise UnlearnError(
            f"The input 'clip' gives states of width {found} and the model reads width {width}; "
            "connect the CLIP of the same checkpoint."
        )


def encode(
    clip: Clip,
    texts: Iterable[str],
    progress: Progress | None = None,
    pooled: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Text -> token states float32 [77, d] on the CPU, each text encoded once.

    pooled: where given, text -> pooled vector float32 [d] is added to it.
    ComfyUI encodes the chunks of one long prompt as a batch; here each chunk is a prompt of its
    own. Raises UnlearnError for a prompt of several chunks and for NaN, and where pooled vectors
    are wanted and there are none.
    """
    texts = list(dict.fromkeys(texts))
    states: dict[str, torch.Tensor] = {}
    rows, at = BatchSize(reading_batch.fitting(clip).texts, "prompt", REMEDY), 0
    while at < len(texts):
        raise_if_cancelled()
        left = texts[at:]
        count, found = rows.run(len(left), partial(encode_first, clip, left, pooled))
        states |= found
        at += count
        if progress is not None:
            progress.step(count)
    return states


def encode_first(
    clip: Clip, texts: Sequence[str], pooled: dict[str, torch.Tensor] | None, count: int
) -> dict[str, torch.Tensor]:
    """As `encode`, of the first `count` texts, all at once."""
    batch, states = texts[:count], {}
    tokens: dict[str, list] = {}
    for text in batch:
        for encoder, chunks in _chunks(clip, text).items():
            if len(chunks) > 1:
                raise UnlearnError(
                    f"The prompt '{text[:SHOWN]}...' is longer than the 75 tokens the text "
                    "encoder reads; shorten it."
                )
            tokens.setdefault(encoder, []).append([entry[:2] for entry in chunks[0]])
    out, vectors = _encode_batch(clip, tokens, len(batch), pooled is not None)
    for number, (text, state) in enumerate(zip(batch, out, strict=True)):
        finite = bool(torch.isfinite(state).all())
        if vectors is not None and pooled is not None:
            finite = finite and bool(torch.isfinite(vectors[number]).all())
            pooled[text] = vectors[number].clone()
        if not finite:
            raise UnlearnError(
                f"The input 'clip' gives NaN for '{text[:SHOWN]}'; load an undamaged text encoder."
            )
        states[text] = state.clone()
    return states


def _encode_batch(
    clip: Clip, tokens: dict[str, list], count: int, pooled: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(token states [count, 77, d], pooled vectors [count, d] where wanted), on the CPU."""
    out: Any
    vectors = None
    if pooled:
        out, vectors, _ = pooled_text.encode(clip, tokens, count)
    else:
        out = clip.encode_from_tokens(tokens)
    return out.float().cpu().view(count, -1, out.shape[-1]), vectors


def pooled_source(clip: Clip, text: str) -> str | None:
    """The name of the encoder of a CLIP that its pooled vectors come from, None if not known."""
    chunks = {
        name: [[entry[:2] for entry in found[0]]] for name, found in _chunks(clip, text).items()
    }
    return pooled_text.encode(clip, chunks, 1)[2]


def whole(clip: Clip, text: str) -> Prompt:
    """The Prompt of a text without a concept in it."""
    total, _ = _count(clip, text)
    return Prompt(text, "", total + 1, total, total + 1)


def as_pooled(prompt: Prompt) -> Prompt:
    """The Prompt as its pooled vector shows it: one state, at position 0, that holds all of it.

    All of the text is then what the state belongs to.
    """
    return Prompt(prompt.text, prompt.text, first=0, last=-1, end=0)


def clip_layer(clip: Clip) -> dict[str, int]:
    """{"clip_layer": n} of a CLIP behind CLIP Set Last Layer, for a provenance; {} of any other.

    n counts from the end: -1 is the last layer.
    """
    layer = getattr(clip, "layer_idx", None)
    return {} if layer is None else {"clip_layer": int(layer)}
