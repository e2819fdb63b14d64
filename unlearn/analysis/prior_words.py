"""Token states of the common words of the general prior."""

from collections.abc import Collection, Iterable
from typing import Protocol

import torch

from ..concepts import sentences
from ..host import text_encoding
from ..host.model_types import Clip
from ..host.progress import Progress
from . import tuning

PackedPrompt = tuple[text_encoding.Prompt, tuple[tuple[str, int], ...]]
"""A prompt of many words, with each word and the position of its last token."""


class Fetch(Protocol):
    """Reads token states of prompts: text -> [77, d] float32. `TextStateCache.get` is one."""

    def __call__(
        self, wanted: Iterable[text_encoding.Prompt], progress: Progress | None = None
    ) -> dict[str, torch.Tensor]: ...


def packed_words(clip: Clip) -> tuple[PackedPrompt, ...]:
    """The words of the general prior, many to a prompt.

    The prompts are always the same, so that a text encoder reads them once and finds them in its
    cache later. In a causal encoder the state of a word is mostly its own.
    """
    prompts, rest = [], sentences.prior_words()
    while rest:
        part = rest[: tuning.WORDS_PER_PROMPT]
        positions, end = text_encoding.word_positions(clip, part)
        while positions is None:  # words of the artist's own may have several tokens each
            part = part[: len(part) * 3 // 4]
            positions, end = text_encoding.word_positions(clip, part)
        prompt = text_encoding.Prompt(" ".join(part), "", 1, end - 1, end, padded=False)
        prompts.append((prompt, tuple(zip(part, positions, strict=True))))
        rest = rest[len(part) :]
    return tuple(prompts)


def word_states(
    packed: Iterable[PackedPrompt],
    forgotten: Collection[str],
    fetch: Fetch,
    progress: Progress | None = None,
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The words that are not forgotten, and their token states [n, d] float64."""
    packed = tuple(packed)
    words, states = [], []
    read = fetch([prompt for prompt, _ in packed], progress) if packed else {}
    for prompt, places in packed:
        for word, position in places:
            if word not in forgotten:
                words.append(word)
                states.append(read[prompt.text][position])
    if not states:
        return (), torch.zeros(0, 1, dtype=torch.float64)
    return tuple(words), torch.stack(states).double()


def read_words(
    clip: Clip, fetch: Fetch, forgotten: Iterable[str] = ()
) -> tuple[tuple[str, ...], torch.Tensor]:
    """The words of the general prior and their token states [n, d] float64.

    Words that the names in `forgotten` are made of are left out.
    """
    return word_states(packed_words(clip), sentences.forgotten_words(forgotten), fetch)
