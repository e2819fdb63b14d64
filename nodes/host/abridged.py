"""A text encoder that skips most of the padding: a prompt of eight words is read in some 20 positions and not in 77.

What stands up to the end token is exact, for the encoder is causal. Of the padding behind it a few positions are computed, dense at first
and wider later, and in every attention each of them counts for all that it stands for (its logit rises by the logarithm of how many), as
merged tokens do in Token Merging (arXiv 2210.09461, eq 1). Every one stands for those just before it, so that none is seen ahead of time.

ComfyUI's own modules do all of it: its CLIP is copied down to the transformer's stack of layers, weights shared, and only what that stack
is fed is cut. An encoder in which this does not hold, by its build or by what it says of two probe sentences, is read in full.
"""

import copy
from itertools import groupby

import torch

from . import prompts

DENSE = (2, 3, 5, 9)  # positions behind the end token that are computed beside those that are read
EXACT = 1e-3  # largest relative RMS error of states up to the end token ..
NEAR = 0.15  # .. and of the padding that is read; measured: 0.08, and at 0.2 kept pictures change more


class _Stack(torch.nn.Module):
    """The transformer's stack of layers, fed `chosen` positions [k] of which each counts `count` [k] times."""

    def __init__(self, whole):
        super().__init__()
        self.whole, self.chosen, self.count = whole, None, None

    def forward(self, x, mask=None, **rest):
        at = self.chosen.to(x.device)
        seen = mask[..., at, :][..., at] + self.count.log().to(mask)
        spread = torch.searchsorted(at, torch.arange(x.shape[1], device=x.device))
        return tuple(part if part is None else part[..., spread, :] for part in self.whole(x[:, at], mask=seen, **rest))


def _copied(module, **parts):
    """A shallow copy of a module that shares everything with it but for the named `parts`."""
    out = copy.copy(module)
    out._modules = {**module._modules, **parts}
    return out


def _cut(clip):
    """(CLIP that shares its weights with clip, its _Stacks), or None where an encoder is not built as CLIP's are."""
    model, encoders, stacks = getattr(clip, "cond_stage_model", None), {}, []
    for name, encoder in getattr(model, "_modules", {}).items():
        transformer = getattr(encoder, "transformer", None)
        text_model = getattr(transformer, "text_model", None)
        if getattr(text_model, "encoder", None) is None or getattr(text_model, "embeddings", None) is None:
            return None
        stacks.append(_Stack(text_model.encoder))
        text_model = _copied(text_model, encoder=stacks[-1])
        encoders[name] = _copied(encoder, transformer=_copied(transformer, text_model=text_model))
    if not stacks:
        return None
    out = copy.copy(clip)  # with its patcher, so that ComfyUI knows it is loaded
    out.cond_stage_model = _copied(model, **encoders)
    return out, stacks


class Reader:
    """Reads prompts through a CLIP whose padding is cut. positions: (end, length) -> the positions that are read."""

    def __init__(self, clip, positions):
        self.clip, self.stacks = _cut(clip)
        self.positions = positions

    def encode(self, wanted, progress=None):
        """Text -> token states float32 [length, d] of Prompts; what was not computed holds the state of the next position that was.

        Raises what prompts.encode raises."""
        found = {}
        plain = {p.text: prompts.plain(self.clip, p) for p in wanted}
        for (end, length), group in groupby(sorted(wanted, key=lambda p: plain[p.text]), key=lambda p: plain[p.text]):
            chosen = sorted({*self.positions(end, length), *(end + k for k in DENSE if end + k < length)} if end else range(length))
            for stack in self.stacks:
                stack.chosen = torch.tensor(chosen)
                stack.count = stack.chosen.diff(prepend=torch.tensor([-1])).float()
            found |= prompts.encode(self.clip, [p.text for p in group], progress)
        return found

    def holds(self, probes, truth):
        """Whether it says of Prompts what the whole encoder says, text -> states `truth`, near enough."""
        found = self.encode(probes)
        for p in probes:
            where = torch.tensor(self.positions(p.end, len(truth[p.text])))
            a, b = found[p.text][where].double(), truth[p.text][where].double()
            for part, limit in ((where <= p.end, EXACT), (where > p.end, NEAR)):
                if not float((a[part] - b[part]).norm()) <= limit * float(b[part].norm()):
                    return False
        return True


def reader(clip, positions, truth):
    """A Reader that agrees with what the CLIP says of some sentences, text -> states `truth`, or None: it must be read in full."""
    if _cut(clip) is None:
        return None
    found = Reader(clip, positions)
    return found if found.holds([prompts.locate(clip, "{concept}", s) for s in truth], truth) else None
