"""Token states of prompts, with the place of the concept in them."""

import re
import unicodedata
from typing import NamedTuple

import comfy.model_management
import torch

from ..errors import UnlearnError

BATCH = 16


class Prompt(NamedTuple):
    """A text, the concept in it, and where its tokens stand: positions `first` to `last` (inclusive) and `end`, that of the end token."""

    text: str
    name: str
    first: int
    last: int
    end: int


def _escape(text):
    """Parentheses taken literally: they are part of the name, not ComfyUI's emphasis."""
    return text.replace("(", "\\(").replace(")", "\\)")


def _chunks(clip, text):
    """Per text encoder the 77-token chunks of a text, each a list of (token, weight, word id)."""
    return clip.tokenize(_escape(text), return_word_ids=True)


def _count(clip, text):
    """How many word tokens a text has in the first encoder, and in how many chunks."""
    chunks = next(iter(_chunks(clip, text).values()))
    return sum(entry[2] > 0 for chunk in chunks for entry in chunk), len(chunks)


def word_token_ids(clip, text):
    """The word tokens of a text in every encoder, as a value to compare; () where the text encoder reads nothing."""
    return tuple(
        t
        for chunks in _chunks(clip, text).values()
        for chunk in chunks
        for t, _, word in chunk
        if word > 0
    )


def word_positions(clip, listed):
    """(position of the last token of each of some words, position of the end token) in the prompt of all of them side by side; (None, 0)
    where that is too long for one prompt."""
    total, chunks = _count(clip, " ".join(listed))
    if chunks > 1:
        return None, 0
    if total == len(listed):  # as is usual: a token each
        return tuple(range(1, total + 1)), total + 1
    lengths = [_count(clip, word)[0] for word in listed]
    return tuple(sum(lengths[: i + 1]) for i in range(len(listed))), total + 1


def fix_article(template, concept):
    """`a {concept}` becomes `an {concept}` before a vowel; the neutral word is put into the very same sentence."""
    vowel = concept[:1].lower() in tuple("aeiou")
    return re.sub(r"\b([Aa]) \{concept\}", r"\1n {concept}", template) if vowel else template


def locate(clip, template, concept):
    """The Prompt of a template with `{concept}` filled in; raises UnlearnError when the concept has no tokens or the text is too long."""
    before, found, after = template.partition("{concept}")
    if not found:
        raise UnlearnError(
            f"The template '{template}' has no {{concept}} in it; write {{concept}} where the concept goes."
        )
    text = template.replace("{concept}", concept)
    start, (until, _), (total, chunks) = (
        _count(clip, before)[0],
        _count(clip, before + concept),
        _count(clip, text),
    )
    if chunks > 1:
        raise UnlearnError(
            f"The prompt '{text[:60]}...' has {total} tokens and the text encoder reads 75; shorten the concept or the template."
        )
    if concept and (
        until <= start or not any(unicodedata.category(c)[0] in "LNPS" for c in concept)
    ):
        raise UnlearnError(
            f"The concept '{concept}' has no letters the text encoder reads; write it in other characters."
        )
    return Prompt(text, concept, start + 1, until, total + 1)


def eos_position(clip, prompt):
    """(position of the end token, length) of a Prompt where every encoder reads it in the same places, token by token; (0, length) where
    embeddings stand in it or encoders disagree."""
    chunks = [chunk for chunks in _chunks(clip, prompt.text).values() for chunk in chunks]
    same = all(
        sum(word > 0 for *_, word in c) + 1 == prompt.end and all(isinstance(t, int) for t, *_ in c)
        for c in chunks
    )
    return prompt.end if same else 0, max(map(len, chunks))


def check_width(found, width):
    """Raises UnlearnError when token states of width `found` are not what a model of text width `width` reads."""
    if found != width:
        raise UnlearnError(
            f"The input 'clip' gives states of width {found} and the model reads width {width}; connect the CLIP of the same checkpoint."
        )


def encode(clip, texts, progress=None):
    """Text -> token states float32 [77, d] on the CPU, each text encoded once, `BATCH` at a time through ComfyUI's CLIP.

    ComfyUI encodes the chunks of one long prompt as a batch; here each chunk is a prompt of its own.
    """
    texts = list(dict.fromkeys(texts))
    states = {}
    for i in range(0, len(texts), BATCH):
        comfy.model_management.throw_exception_if_processing_interrupted()
        batch = texts[i : i + BATCH]
        tokens = {}
        for text in batch:
            for encoder, chunks in _chunks(clip, text).items():
                if len(chunks) > 1:
                    raise UnlearnError(
                        f"The prompt '{text[:60]}...' is longer than the 75 tokens the text encoder reads; shorten it."
                    )
                tokens.setdefault(encoder, []).append([entry[:2] for entry in chunks[0]])
        out = clip.encode_from_tokens(tokens)
        for text, state in zip(
            batch, out.float().cpu().view(len(batch), -1, out.shape[-1]), strict=True
        ):
            if not torch.isfinite(state).all():
                raise UnlearnError(
                    f"The input 'clip' gives NaN for '{text[:60]}'; load an undamaged text encoder."
                )
            states[text] = state.clone()
        if progress is not None:
            progress.step(len(batch))
    return states
