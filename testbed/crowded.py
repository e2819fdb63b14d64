"""A text encoder whose words are as crowded as a trained CLIP's, made of random numbers.

Squared length of each part of a token state, 1.05 in all (a trained CLIP-L was the pattern,
2026-11-28):

| part | squared length | what it is |
|---|---|---|
| common | 0.70 | the same for every token of its kind (word, end token, padding) |
| cluster | 0.15 | the same for all words of one cluster; a superclass is one |
| word | 0.10 | the word's own; of look-alikes half is the same |
| context | 0.10 | the words before it, and how they go with this one |

End tokens of `a photo of a X` have cosines of about 0.64 far apart, 0.74 within a cluster and 0.92
between look-alikes. The start token is the same in all sentences and has two huge
entries. The end token and the padding have the sentence's clusters and words, each by how much it
says.
"""

import torch
from torch.nn import functional as F

from .tiny import tokenizer

START, END, LENGTH = 49406, 49407, 77
COMMON, CLUSTER, WORD, CONTEXT = 0.70, 0.15, 0.10, 0.10
ALIKE = 0.7  # share of a look-alike's word part that is its twin's
MIXED = 0.6  # share of the context part that words do together and not each for itself
OUTLIERS = {138: -28.0, 378: 33.0}  # entries of the start token
CLUSTERS = 40  # that words of no known cluster fall into
LIGHT = (  # words that say little of what a sentence is about
    "a an the of in on at by with and or to from for is are this that its his her their it two "
    "three one into over under near behind through between next some very"
).split()
MIDDLING = (
    "photo picture image drawing painting portrait photograph art style artwork sharp focus "
    "detailed beautiful landscape close up black white old young new large small"
).split()
SAYS = {"light": 0.05, "middling": 0.4, "other": 1.0}
FADING = 0.8  # of a word's part in the context, for each token that follows
PADDING = 0.5  # share of its content that the last padding has lost


class Clip:
    """ComfyUI's tokenizer, and the states described above. See tiny.Clip.

    world: its superclasses are clusters, and its look-alikes are alike.
    """

    def __init__(self, world, width=768, seed=0):
        self.width = width
        self.g = torch.Generator().manual_seed(seed)
        self.commons = F.normalize(self._drawn(4, width), dim=1)  # word, end, padding, start
        self.words = F.normalize(self._drawn(END + 1, width), dim=1)
        clusters = F.normalize(self._drawn(CLUSTERS + len(world.superclasses), width), dim=1)
        self.left, self.right = (self._drawn(width, width) / width**0.5 for _ in "lr")
        cluster_of = torch.arange(END + 1) % CLUSTERS
        for number, wider in enumerate(world.superclasses):
            named = [n for n in world.objects if world.superclass[n] == wider]
            for name in (wider, *named):
                cluster_of[self._ids(name)] = CLUSTERS + number
        self.clusters = clusters[cluster_of]
        self.says = torch.full((END + 1,), SAYS["other"])
        for how, listed in (("light", LIGHT), ("middling", MIDDLING)):
            self.says[[i for word in listed for i in self._ids(word)]] = SAYS[how]
        self._make_alike(world)

    def _drawn(self, *shape):
        return torch.randn(*shape, generator=self.g)

    def _make_alike(self, world):
        """Gives each look-alike that is kept half of the word part of its twin."""
        own = self.words.clone()
        for name in world.order:
            twin = world.twin[name]
            for a, b in zip(reversed(self._ids(twin)), reversed(self._ids(name)), strict=False):
                self.words[a] = (1 - ALIKE**2) ** 0.5 * own[a] + ALIKE * own[b]

    @staticmethod
    def _ids(words):
        chunk = tokenizer().tokenize_with_weights(words, False)["l"][0]
        ids = [entry[0] for entry in chunk]
        return ids[1 : ids.index(END)]

    def tokenize(self, words, return_word_ids=False):
        return tokenizer().tokenize_with_weights(words, return_word_ids)

    def encode_from_tokens(self, tokens):
        return torch.cat([self._states([t[0] for t in chunk]) for chunk in tokens["l"]])[None]

    def encode_from_tokens_scheduled(self, tokens):
        states = self.encode_from_tokens(tokens)
        return [[states, {"pooled_output": states[:, 5]}]]

    def _states(self, ids):
        """Token states [77, width] of a prompt's token ids."""
        end = ids.index(END)
        inner = torch.tensor(ids[1:end], dtype=torch.long)
        word = self._composed(
            self.commons[0], self.clusters[inner], self.words[inner], *self._contexts(inner)
        )
        says = self.says[inner][:, None]
        cluster, meaning = ((says * of[inner]).sum(0) for of in (self.clusters, self.words))
        linear, together = (part[-1] for part in self._contexts(torch.tensor([*ids[1:end], END])))
        last = (_unit(cluster), _unit(meaning), linear, together)
        rest = LENGTH - end - 1
        fade = torch.linspace(0, PADDING, max(rest, 1))[:rest, None]
        ends = self._composed(self.commons[1], *(part[None] for part in last))
        pads = self._composed(self.commons[2], *(part[None].expand(rest, -1) for part in last))
        blank = self.commons[2].expand(rest, -1)
        pads = pads * (1 - fade) + fade * blank
        states = torch.cat([self.commons[3:], word, ends, pads]) * self.width**0.5
        for entry, value in OUTLIERS.items():
            states[0, entry % self.width] = value
        return states

    def _composed(self, common, cluster, word, linear, together):
        parts = (
            COMMON**0.5 * common + CLUSTER**0.5 * cluster + WORD**0.5 * word,
            (CONTEXT * (1 - MIXED)) ** 0.5 * linear + (CONTEXT * MIXED) ** 0.5 * together,
        )
        return parts[0] + parts[1]

    def _contexts(self, ids):
        """For each token [n, width] twice: the words before it, and how they go with it."""
        if not len(ids):
            return torch.zeros(0, self.width), torch.zeros(0, self.width)
        own = self.words[ids]
        at = torch.arange(len(ids))
        ago = (at[:, None] - at).clamp_min(0)
        seen = FADING**ago * self.says[ids] * (at[None] < at[:, None])
        before = seen @ own
        both = _unit(before) + own
        return _unit(before), _unit((both @ self.left) * (both @ self.right))


def _unit(x):
    return F.normalize(x, dim=-1)
