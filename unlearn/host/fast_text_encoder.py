"""A text encoder that reads what texts have in common once, and skips most of the padding: 16 positions for a prompt of five words,
not 77.

The encoder is causal: a state is decided by what stands before it. So prompts that begin alike share the states of their beginnings: a
batch is read as one tree, in which each position sees its own ancestors only; all of that is exact. Of the padding behind the end token a
few positions are computed, dense at first and wider later, and in every attention each of them counts for all that it stands for (its
logit rises by the logarithm of how many), as merged tokens do in Token Merging (arXiv 2210.09461, eq 1). Every one stands for those just
before it, so that none is seen ahead of time.

ComfyUI's own modules do all of it: its CLIP is copied down to the transformer's stack of layers, weights shared, and only what that stack
is fed is cut. An encoder in which this does not hold, by its build or by what it says of two probe sentences, is read in full.
"""

import copy

import torch

from . import text_encoding

DENSE = (
    2,
    4,
    9,
)  # positions behind the end token that are computed beside those that are read; more were measured to add nothing
TREE = 320  # positions of all texts in a batch: every one is compared with every other, which grows with the square
EXACT = 1e-3  # largest relative RMS error of states up to the end token ..
NEAR = 0.15  # .. and of the padding that is read; measured: 0.09, and at 0.22 kept pictures changed more


class PrefixTreeEncoder(torch.nn.Module):
    """The transformer's stack of layers, fed a tree. chosen: for each text of the batch the positions that are computed, ascending, all up
    to the end token among them."""

    def __init__(self, whole):
        super().__init__()
        self.whole, self.chosen = whole, []

    def forward(self, x, mask=None, **rest):
        if mask is None or mask.dim() != 2 or len(x) != len(self.chosen):
            return self.whole(x, mask=mask, **rest)
        alike = [
            0,
            *(x[1:] == x[:-1]).all(-1).cumprod(1).sum(1).tolist(),
        ]  # positions in which a text begins as the one before it
        owner, places, paths = [], [], []
        for b, chosen in enumerate(self.chosen):
            new = chosen[alike[b] :]
            paths.append(
                [*(paths[-1][: alike[b]] if b else ()), *range(len(places), len(places) + len(new))]
            )
            owner, places = owner + [b] * len(new), places + new
        seen = torch.full(
            (len(places), len(places)),
            -torch.finfo(mask.dtype).max,
            dtype=mask.dtype,
            device=mask.device,
        )
        spread = []
        for path, chosen in zip(paths, self.chosen, strict=True):
            path, at = torch.tensor(path, device=x.device), torch.tensor(chosen, device=x.device)
            seen[path[:, None], path] = mask[at[:, None], at] + _counts(at).log().to(mask)
            spread.append(path[torch.searchsorted(at, torch.arange(x.shape[1], device=x.device))])
        found = self.whole(x[owner, places][None], mask=seen, **rest)
        return tuple(
            part if part is None else torch.stack([part[0].index_select(-2, s) for s in spread])
            for part in found
        )


def _counts(at):
    """How many positions each of some ascending ones [k] stands for: itself and those between it and the one before."""
    return at.diff(prepend=at.new_tensor([-1]))


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
        if (
            getattr(text_model, "encoder", None) is None
            or getattr(text_model, "embeddings", None) is None
        ):
            return None
        stacks.append(PrefixTreeEncoder(text_model.encoder))
        text_model = _copied(text_model, encoder=stacks[-1])
        encoders[name] = _copied(encoder, transformer=_copied(transformer, text_model=text_model))
    if not stacks:
        return None
    out = copy.copy(clip)  # with its patcher, so that ComfyUI knows it is loaded
    out.cond_stage_model = _copied(model, **encoders)
    return out, stacks


def _batches(chosen):
    """Lists of texts, of text -> positions: neighbours begin alike, and no batch is of more than TREE positions or BATCH texts."""
    batch, size = [], 0
    for text in sorted(chosen):
        if batch and (size + len(chosen[text]) > TREE or len(batch) == text_encoding.BATCH):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(chosen[text])
    if batch:
        yield batch


class FastTextEncoder:
    """Reads prompts through a CLIP whose padding is cut. positions: (end, length) -> the positions that are read."""

    def __init__(self, clip, positions):
        self.clip, self.stacks = _cut(clip)
        self.positions = positions

    def encode(self, wanted, progress=None):
        """Text -> token states float32 [length, d] of Prompts; what was not computed holds the state of the next position that was.

        Raises what prompts.encode raises."""
        found, chosen = {}, {p.text: self._chosen(p) for p in wanted}
        for batch in _batches(chosen):
            for stack in self.stacks:
                stack.chosen = [chosen[text] for text in batch]
            found |= text_encoding.encode(self.clip, batch, progress)
        return found

    def _chosen(self, prompt):
        """The positions of a Prompt that are computed."""
        end, length = text_encoding.eos_position(self.clip, prompt)
        return (
            sorted({*self.positions(end, length), *(end + k for k in DENSE if end + k < length)})
            if end
            else [*range(length)]
        )

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
    found = FastTextEncoder(clip, positions)
    return (
        found
        if found.holds([text_encoding.locate(clip, "{concept}", s) for s in truth], truth)
        else None
    )
