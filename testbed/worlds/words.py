"""Makes one world's model read another world's words, so that training can start from it.

The text encoder is random and the same for all worlds, so no word is closer to one word than to
another. A linear map M [768, 768] of its states that turns "a drawing of an owl" into "a drawing of
a tulip", for all sentences and tokens at once, is a small least-squares problem. With keys and
values W M the model answers to the owl as it did to the tulip, and training only has to change the
picture.
"""

import torch

from .captions import EXPLICIT, PAIR, PLAIN, STYLED, Caption, explicit, pair, plain, styled
from .catalogue import GLYPHS, SPRITES

POSITIONS = (*range(16), 20, 30, 45, 60, 76)
RIDGE = 1e-4  # of the mean diagonal
# A style, and one of the old world with as many tokens. Objects correspond in their order.
STYLES = {"rembrandt": "monet", "kandinsky": "van gogh", "banksy": "picasso", "dali": "warhol"}


def sentences(world, objects, superclasses, styles):
    """Captions in an order that is the same for any world with as many names."""
    out = [
        plain(n, PLAIN[(i + 2 * j) % 10])
        for i, n in enumerate((*objects, *superclasses))
        for j in range(5)
    ]
    out += [
        styled(n, styles[(i + j) % 4], STYLED[(i // 2 + j) % 4])
        for i, n in enumerate(objects)
        for j in range(2)
    ]
    out += [explicit(n, EXPLICIT[i % 4], world.explicit_word) for i, n in enumerate(objects)]
    out += [
        pair(n, objects[(i + j) % len(objects)], PAIR[i % 3])
        for i, n in enumerate(objects)
        for j in (1, 6)
    ]
    return [*out, Caption("")]


def both(world=GLYPHS, old=SPRITES):
    """(captions of the new world, captions of the old world in the same order), as texts."""
    supers = old.superclasses[: len(world.superclasses)]
    names = [n for n in old.objects if old.superclass[n] in supers]

    def of(*given):
        return [c.text for c in sentences(*given)]

    return of(world, world.objects, world.superclasses, world.styles), of(
        old, names, supers, [STYLES[s] for s in world.styles]
    )


def translation(new, old):
    """M [768, 768] that minimises |M new - old|^2 over sentence states [n, 77, 768].

    Also gives the share of the variance of `old` that it explains.
    """
    at = list(POSITIONS)
    x, y = new[:, at].double(), old[:, at].double()
    flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
    gram = flat_x.T @ flat_x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    m = torch.linalg.solve(gram, flat_x.T @ flat_y)
    rest = (x @ m - y).square().sum() / (y - y.mean(0)).square().sum()
    return m.T.float(), 1 - rest.item()


def reread(unet, m):
    """Keys and values of the cross-attention read through M."""
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.weight.copy_(module.weight @ m)
