"""A text encoder that reads common beginnings of prompts once and skips most of the padding.

A prompt of five words needs 16 positions, not 77.

CLIP's encoder is causal: a state depends only on what stands before it. So prompts that begin alike
share the states of their beginnings, and a batch is read as one prefix tree in which each position
sees its own ancestors only. All of that is exact. Of the padding after the end token a few
positions are computed, close together at first and further apart later. In attention each counts
for all positions that it stands for (its logit rises by the logarithm of how many), as merged
tokens do in Token Merging (arXiv 2210.09461, eq 1). Each stands for those just before it, so none
is seen ahead of time.

ComfyUI's own modules do all the work. Its CLIP is copied down to the transformer's stack of layers,
with shared weights, and only what enters that stack is cut. An encoder of another build, or one
that fails on two probe sentences, is read in full.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from . import reading_batch, text_encoding
from .memory import BatchSize, raise_if_cancelled
from .model_types import Clip
from .pooled_text import shallow_copy
from .progress import Progress
from .reading_batch import ReadingBatch
from .text_encoding import Prompt
from .tuning import DENSE, EXACT, NEAR

Positions = Callable[[int, int], list[int]]  # (end, length) -> positions that are read


class PrefixTreeEncoder(torch.nn.Module):
    """The transformer's stack of layers, which reads a batch of texts as one prefix tree.

    chosen: for each text of the batch the positions that are computed, in ascending order. All
    positions up to the end token are among them.
    """

    def __init__(self, full: torch.nn.Module) -> None:
        super().__init__()
        self.full = full
        self.chosen: list[list[int]] = []

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, **rest: Any
    ) -> tuple[torch.Tensor | None, ...]:
        """States [b, n, d] of embedded texts x [b, n, d]; skipped positions repeat the next one."""
        if mask is None or mask.dim() != 2 or len(x) != len(self.chosen):
            return self.full(x, mask=mask, **rest)
        owner, places, paths = self._tree(x)
        lowest = -torch.finfo(mask.dtype).max
        seen = mask.new_full((len(places), len(places)), lowest)
        spread = []
        for path, chosen in zip(paths, self.chosen, strict=True):
            nodes = torch.tensor(path, device=x.device)
            at = torch.tensor(chosen, device=x.device)
            seen[nodes[:, None], nodes] = mask[at[:, None], at] + _counts(at).log().to(mask)
            every = torch.arange(x.shape[1], device=x.device)
            # Behind the last position that is computed there is nothing that anybody reads.
            spread.append(nodes[torch.searchsorted(at, every).clamp_max(len(at) - 1)])
        found = self.full(x[owner, places][None], mask=seen, **rest)
        return tuple(part if part is None else _spread(part, spread) for part in found)

    def _tree(self, x: torch.Tensor) -> tuple[list[int], list[int], list[list[int]]]:
        """The tree's nodes as (text of each, position of each, and the nodes of each text)."""
        # How many positions a text shares with the one before it, from the start.
        shared = [0, *(x[1:] == x[:-1]).all(-1).cumprod(1).sum(1).tolist()]
        owner: list[int] = []
        places: list[int] = []
        paths: list[list[int]] = []
        for text, chosen in enumerate(self.chosen):
            old = paths[-1][: shared[text]] if text else []
            new = chosen[shared[text] :]
            paths.append([*old, *range(len(places), len(places) + len(new))])
            owner += [text] * len(new)
            places += new
        return owner, places, paths


def _spread(states: torch.Tensor, nodes: Sequence[torch.Tensor]) -> torch.Tensor:
    """States [b, ..., n, d] of the texts from those of the tree [1, ..., nodes, d]."""
    return torch.stack([states[0].index_select(-2, chosen) for chosen in nodes])


def _counts(at: torch.Tensor) -> torch.Tensor:
    """How many positions each of some ascending ones [k] stands for.

    These are itself and those between it and the one before.
    """
    return at.diff(prepend=at.new_tensor([-1]))


def _cut(clip: Clip) -> tuple[Clip, list[PrefixTreeEncoder]] | None:
    """(a CLIP that shares its weights with `clip`, its prefix tree encoders).

    None where an encoder is not built as CLIP's are.
    """
    model: Any = getattr(clip, "cond_stage_model", None)
    encoders: dict[str, torch.nn.Module] = {}
    stacks = []
    for name, encoder in getattr(model, "_modules", {}).items():
        transformer = getattr(encoder, "transformer", None)
        text_model = getattr(transformer, "text_model", None)
        full = getattr(text_model, "encoder", None)
        if full is None or getattr(text_model, "embeddings", None) is None:
            return None
        stacks.append(PrefixTreeEncoder(full))
        text_model = shallow_copy(text_model, encoder=stacks[-1])
        encoders[name] = shallow_copy(
            encoder, transformer=shallow_copy(transformer, text_model=text_model)
        )
    if not stacks:
        return None
    out = copy.copy(clip)  # with its patcher, so that ComfyUI knows that it is loaded
    out.cond_stage_model = shallow_copy(model, **encoders)
    return out, stacks


def _batches(chosen: Mapping[str, Sequence[int]], most: ReadingBatch) -> Iterator[list[str]]:
    """Lists of texts from text -> positions: neighbours begin alike.

    No batch has more than `most`, unless it is a single text.
    """
    batch: list[str] = []
    size = 0
    for text in sorted(chosen):
        too_large = size + len(chosen[text]) > most.positions or len(batch) == most.texts
        if batch and too_large:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(chosen[text])
    if batch:
        yield batch


class FastTextEncoder:
    """Encodes prompts through a CLIP whose padding is cut. Make one with `build`."""

    def __init__(self, clip: Clip, stacks: list[PrefixTreeEncoder], positions: Positions) -> None:
        self.clip = clip
        self.stacks = stacks
        self.positions = positions

    def encode(
        self,
        wanted: Sequence[Prompt],
        progress: Progress | None = None,
        pooled: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Text -> token states float32 [length, d] of Prompts.

        A position that was not computed holds the state of the next one that was. Of a Prompt whose
        padding nobody reads there are the states up to the end token, [end + 1, d]. pooled: where
        given, text -> pooled vector is added to it. Raises what `text_encoding.encode` raises.
        """
        found: dict[str, torch.Tensor] = {}
        chosen = {p.text: self._chosen(p) for p in wanted}
        most = reading_batch.fitting(self.clip)
        rows = BatchSize(most.texts, "prompt", text_encoding.REMEDY)
        for batch in _batches(chosen, most):
            at = 0
            while at < len(batch):
                raise_if_cancelled()
                left = batch[at:]
                count, some = rows.run(len(left), partial(self._first, left, chosen, pooled))
                found |= some
                at += count
                if progress is not None:
                    progress.step(count)
        for p in wanted:
            if not p.padded:
                found[p.text] = found[p.text][: chosen[p.text][-1] + 1]
        return found

    def _first(
        self,
        texts: Sequence[str],
        chosen: Mapping[str, Sequence[int]],
        pooled: dict[str, torch.Tensor] | None,
        count: int,
    ) -> dict[str, torch.Tensor]:
        """The states of the first `count` texts, at the positions `chosen`."""
        for stack in self.stacks:
            stack.chosen = [list(chosen[text]) for text in texts[:count]]
        return text_encoding.encode_first(self.clip, texts, pooled, count)

    def _chosen(self, prompt: Prompt) -> list[int]:
        """The positions of a Prompt that are computed."""
        end, length = text_encoding.eos_position(self.clip, prompt)
        if not end:
            return list(range(length))
        if not prompt.padded:
            return list(range(end + 1))
        dense = [end + k for k in DENSE if end + k < length]
        return sorted({*self.positions(end, length), *dense})

    def matches_full_encoder(
        self, probes: Sequence[Prompt], states: Mapping[str, torch.Tensor]
    ) -> bool:
        """Whether its states of Prompts are near enough to those of the full encoder.

        states: text -> states [length, d] of the full encoder.
        """
        found = self.encode(probes)
        for p in probes:
            where = torch.tensor(self.positions(p.end, len(states[p.text])))
            mine, full = found[p.text][where].double(), states[p.text][where].double()
            for part, limit in ((where <= p.end, EXACT), (where > p.end, NEAR)):
                error = float((mine[part] - full[part]).norm())
                if not error <= limit * float(full[part].norm()):
                    return False
        return True


def unchecked(clip: Clip, positions: Positions) -> FastTextEncoder | None:
    """A FastTextEncoder of a CLIP that is built as CLIP's are, else None."""
    cut = _cut(clip)
    return None if cut is None else FastTextEncoder(*cut, positions)


def build(
    clip: Clip, positions: Positions, states: Mapping[str, torch.Tensor]
) -> FastTextEncoder | None:
    """A FastTextEncoder that agrees with the CLIP's own states of some sentences.

    It is chosen on every device, because reading in full gives other states of the padding, and a
    patch would depend on the device. On one core it was four times faster: 40 captions took 1.6 s
    and in full 6.5 s (2026-11-29). No other device was measured; `dev.py bench gpu`, part
    `reading`, times both.

    None when the CLIP must be read in full. positions: which are read of a prompt. states: text ->
    states [length, d].
    """
    encoder = unchecked(clip, positions)
    if encoder is None:
        return None
    probes = [text_encoding.locate(clip, "{concept}", text) for text in states]
    return encoder if encoder.matches_full_encoder(probes, states) else None
