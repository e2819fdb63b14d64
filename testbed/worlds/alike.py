"""Look-alikes whose words are alike as well: a world where words are crowded.

A trained text encoder gives similar things similar words. On the worlds with random encoders every
word is as far from its look-alike's as from any other. `make_alike` takes away a share of that
distance.

What is mixed are token embeddings, as they enter the text encoder: with a share s, each token of an
object's name is read as (1 - s/2) of itself and s/2 of the look-alike's token in the same place,
counted from the end of the name. So at s = 0.5 a fox is three quarters fox and one quarter cat, a
cat the other way round, and their embeddings differ by half as much as before; at 1 they would be
the same. Every other token, and the same token in another phrase, is read as before. Where names
have different numbers of tokens, the first token of the shorter one stands for what it lacks.

The mixing sits in the text encoder's embedding layer. All that reads text through this CLIP, in
full, through the pack's prefix tree, for a solve, a training or a drawing, reads mixed words.
"""

from collections.abc import Sequence

import torch

from testbed import pack

from .catalogue import World

Mixed = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a name, and of its look-alike's


def aligned(own: Sequence[int], other: Sequence[int]) -> list[int]:
    """For each token of a name the one of another name in its place, counted from the end."""
    shift = len(other) - len(own)
    return [other[max(i + shift, 0)] for i in range(len(own))]


def replaced(row: Sequence[int], pairs: Sequence[Mixed]) -> list[int]:
    """A row of token ids with every name in it replaced by its look-alike's, token by token.

    Of names that begin at one place the longest counts.
    """
    longest, out, at = sorted(pairs, key=lambda pair: -len(pair[0])), list(row), 0
    while at < len(row):
        size = 1
        for own, other in longest:
            if tuple(row[at : at + len(own)]) == own:
                size = len(own)
                out[at : at + size] = aligned(own, other)
                break
        at += size
    return out


def mix(embedding: torch.nn.Module, pairs: Sequence[Mixed], share: float):
    """Makes an embedding layer read names as mixtures; gives a handle whose `remove` undoes it."""

    def mixed(module, args, options, out):
        ids = args[0]
        rows = [replaced(row, pairs) for row in ids.reshape(-1, ids.shape[-1]).tolist()]
        others = torch.tensor(rows, dtype=ids.dtype, device=ids.device).view(ids.shape)
        if torch.equal(others, ids):
            return out
        # `forward` itself, so that this is not asked again.
        return out + share / 2 * (module.forward(others, *args[1:], **options) - out)

    return embedding.register_forward_hook(mixed, with_kwargs=True)


def make_alike(clip, world: World, share: float) -> list:
    """Makes a CLIP read the names of a world's look-alikes as mixtures of both.

    share: of the distance between two look-alikes' embeddings that is taken away, 0 to 1.
    Clones of the CLIP read them so too. Gives one handle for each text encoder in it; `remove`
    undoes it. Raises ValueError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; give one from 0 to 1")
    tokens_of = pack.module("unlearn.host.text_encoding").tokens_of
    found = {name: tokens_of(clip, name) for name in world.objects}
    handles = []
    for number, (_, encoder) in enumerate(encoders(clip)):
        ids = {name: tuple(tokens[number]) for name, tokens in found.items()}
        pairs = [(ids[name], ids[world.twin[name]]) for name in world.objects]
        handles.append(mix(encoder.transformer.get_input_embeddings(), pairs, share))
    return handles


def encoders(clip):
    """(name, text encoder) of each that a CLIP has, in the order of its tokenizer."""
    parts = dict(clip.cond_stage_model.named_children())
    return [(name, parts[f"clip_{name}"]) for name in clip.tokenize("a")]
