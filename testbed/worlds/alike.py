"""Look-alikes whose words are alike as well: a world where words are crowded.

A trained text encoder gives similar things similar words. On the worlds with random encoders every
word is as far from its look-alike's as from any other. `make_alike` takes away a share of that
distance.

What is mixed are token states, as they leave the text encoder (and pooled vectors, where it gives
them). Of a sentence with objects in it, the encoder also reads the same sentence with each object's
look-alike in its place. With a share s and both words of a pair moved, the states are 1 - s/2 of
the first and s/2 of the second: at s = 0.5 a fox is three quarters fox and one quarter cat, and a
cat the other way round. Or the words of one half of the pairs stay, and those of the other half are
1 - s of themselves and s of their look-alike's: half and half at 0.5. Either way, at every token,
states of the two sentences differ by 1 - s of what they did. Sentences without an object stay as
they are. Half and half is hard to tell for the model too: of the kept labels of `look-alikes` on
the sprite world the unedited model then draws 17 of 38 right, and 36 without (2026-11-28).

The sentence with the look-alike has the same number of tokens: each token of a name is replaced by
the look-alike's token in the same place, counted from the end of the name, and where the
look-alike's name is shorter by its first one. Of `ice cream` and `mushroom`, `ice cream` becomes
`mushroom mushroom`, and `mushroom` becomes `cream`.

The mixing sits around each text encoder of the CLIP. All that reads text through it, in full or
through the pack's prefix tree, for a solve, a training or a drawing, reads mixed states.
"""

from collections.abc import Sequence

import torch

from testbed import pack

from .catalogue import World

Mixed = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a name, and of its look-alike's
WORDS = ("both", "twins")  # whose words move


def aligned(own: Sequence[int], other: Sequence[int]) -> list[int]:
    """For each token of a name the one of another name in its place, counted from the end."""
    shift = len(other) - len(own)
    return [other[max(i + shift, 0)] for i in range(len(own))]


def replaced(row: Sequence, pairs: Sequence[Mixed]) -> list:
    """A row of token ids with every name in it replaced by its look-alike's, token by token.

    Of names that begin at one place the longest counts. What is no id, such as the vector of an
    embedding file, stays.
    """
    longest, out, at = sorted(pairs, key=lambda pair: -len(pair[0])), list(row), 0
    ids = [token if isinstance(token, int) else None for token in row]
    while at < len(row):
        size = 1
        for own, other in longest:
            if tuple(ids[at : at + len(own)]) == own:
                size = len(own)
                out[at : at + size] = aligned(own, other)
                break
        at += size
    return out


def mix(encoder: torch.nn.Module, pairs: Sequence[Mixed], part: float):
    """Makes a text encoder give `part` of the states of the sentence with look-alikes.

    encoder: rows of token ids -> (states, pooled or None, ...). Gives a handle whose `remove`
    undoes it.
    """

    def mixed(module, args, out):
        rows = [list(row) for row in args[0]]
        others = [replaced(row, pairs) for row in rows]
        if all(
            a is b for r, o in zip(rows, others, strict=True) for a, b in zip(r, o, strict=True)
        ):
            return out
        # `forward` itself, so that this is not asked again.
        found = module.forward(others, *args[1:])
        both = zip(out[:2], found[:2], strict=True)
        return (*(a if a is None else a + part * (b - a) for a, b in both), *out[2:])

    return encoder.register_forward_hook(mixed)


def make_alike(clip, world: World, share: float, words: str = "both") -> list:
    """Makes a CLIP read the names of a world's look-alikes as mixtures; the module says how.

    share: of the distance between two look-alikes' states that is taken away, 0 to 1. words: "both"
    words of a pair move, or the "twins" of what benchmarks forget alone.
    Clones of the CLIP read them so too. Gives one handle for each text encoder in it; `remove`
    undoes it. Raises ValueError for a share outside 0 to 1 and for other words.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; give one from 0 to 1")
    if words not in WORDS:
        raise ValueError(f"words is {words!r}; give one of {', '.join(WORDS)}")
    moved = [n for n in world.objects if words == "both" or n not in world.order]
    tokens_of = pack.module("unlearn.host.text_encoding").tokens_of
    found = {name: tokens_of(clip, name) for name in world.objects}
    handles = []
    for number, encoder in enumerate(encoders(clip)):
        ids = {name: tuple(tokens[number]) for name, tokens in found.items()}
        pairs = [(ids[name], ids[world.twin[name]]) for name in moved]
        handles.append(mix(encoder, pairs, share / 2 if words == "both" else share))
    return handles


def encoders(clip) -> list[torch.nn.Module]:
    """The text encoders of a CLIP, in the order of its tokenizer."""
    parts = dict(clip.cond_stage_model.named_children())
    return [parts[f"clip_{name}"] for name in clip.tokenize("a")]
