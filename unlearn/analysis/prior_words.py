"""Token states of the common words of the general prior."""

import torch

from ..concepts import sentences
from ..host import text_encoding

PACKED = 60  # words of the general prior that are encoded in one prompt


def packed_words(clip):
    """The prior's words, PACKED to a prompt, each with the position of its last token. Always the same prompts, so that they are
    encoded once for a text encoder; in a causal encoder a word's state is mostly its own."""
    out, rest = [], sentences.prior_words()
    while rest:
        part = rest[:PACKED]
        while (found := text_encoding.word_positions(clip, part))[0] is None:
            part = part[: len(part) * 3 // 4]  # words of the artist's own may have several tokens
        places, end = found
        out.append(
            (
                text_encoding.Prompt(" ".join(part), "", 1, end - 1, end),
                tuple(zip(part, places, strict=True)),
            )
        )
        rest = rest[len(part) :]
    return tuple(out)


def word_states(packed, forgotten, fetch, progress=None):
    """The prior's words that are not forgotten, and their states [n, d] float64."""
    words, rows = [], []
    read = fetch([p for p, _ in packed], progress) if packed else {}
    for prompt, places in packed:
        for word, position in places:
            if word not in forgotten:
                words.append(word), rows.append(read[prompt.text][position])
    return tuple(words), torch.stack(rows).double() if rows else torch.zeros(
        0, 1, dtype=torch.float64
    )


def read_words(clip, fetch, forgotten=()):
    """(words of the general prior, their token states [n, d] float64), without those that forgotten names are made of."""
    return word_states(packed_words(clip), sentences.forgotten_words(forgotten), fetch)
