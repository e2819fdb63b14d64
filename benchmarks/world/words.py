"""What a world's text encoder makes of words: `dev.py bench world --text`.

States of `a photo of a X` for the world's objects X, at the end token and at the object's own last
token. A trained CLIP crowds the end-token states: cosines of 0.6 to 0.9 between different nouns,
and more between neighbours.
"""

import torch

from testbed.worlds import captions

SENTENCE = "a photo of {a}"
LISTED = 10  # words whose neighbours are listed
NEIGHBOURS = 4


def states(studio, words):
    """(end-token states [n, d], own-token states [n, d]) of the words in the sentence."""
    texts = [SENTENCE.format(a=captions.a(word)) for word in words]
    found = studio.encode(texts)
    counts = []
    for text in texts:
        chunk = next(iter(studio.clip.tokenize(text).values()))[0]
        ids = [entry[0] for entry in chunk]
        counts.append(ids.index(49407))
    every, end = torch.arange(len(words)), torch.tensor(counts)
    return found[every, end], found[every, end - 1]


def cosines(rows):
    """[n, n] with ones on the diagonal."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def figures(rows, groups):
    """Means over pairs of words: all, nearest neighbours, and centred within and between groups."""
    raw, centred = cosines(rows), cosines(rows - rows.mean(0))
    n = len(rows)
    apart = ~torch.eye(n, dtype=torch.bool)
    same = torch.tensor([[a == b for a in groups] for b in groups]) & apart
    return {
        "mean": raw[apart].mean().item(),
        "neighbour": raw.masked_fill(~apart, -2).amax(1).mean().item(),
        "same": centred[same].mean().item(),
        "other": centred[apart & ~same].mean().item(),
    }


def neighbours(rows, words):
    """word -> its nearest words, (word, cosine) each, the nearest first."""
    near = cosines(rows).fill_diagonal_(-2).topk(NEIGHBOURS)
    return {
        word: [(words[j], value) for value, j in zip(values, places, strict=True)]
        for word, values, places in zip(words, *(v.tolist() for v in near), strict=True)
    }


def report(studio):
    """The figures and the neighbours of ten words, as lines of text; and the figures."""
    world = studio.judge.world
    words = list(world.objects)
    groups = [world.superclass[word] for word in words]
    end, own = states(studio, words)
    table = {"end token": figures(end, groups), "own token": figures(own, groups)}
    lines = [
        f"cosines of '{SENTENCE.format(a='X')}' for {len(words)} objects X",
        f"{'':10} {'all pairs':>10} {'nearest':>10} {'centred, one superclass':>25} {'others':>10}",
    ]
    for place, found in table.items():
        lines.append(
            f"{place:10} {found['mean']:10.3f} {found['neighbour']:10.3f} "
            f"{found['same']:25.3f} {found['other']:10.3f}"
        )
    lines.append("nearest at the end token:")
    for word, near in list(neighbours(end, words).items())[:: max(1, len(words) // LISTED)][
        :LISTED
    ]:
        lines.append(f"{word:14} {', '.join(f'{other} {value:.3f}' for other, value in near)}")
    return lines, table
