"""The rows of one training step: noised latents under texts, and their targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch


class Term(NamedTuple):
    """A term of the loss over some rows: name, targets [n, ...], and the weight of each row."""

    name: str
    target: torch.Tensor
    weight: float


class Rows(NamedTuple):
    """Latents x [n, ...] at noise levels sigma [n] under texts, with the terms over all of them.

    states: token states [n, t, d] in place of the texts' own, or None.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    text_ids: Sequence[int]
    terms: tuple[Term, ...]
    states: torch.Tensor | None = None


class PlacedTerm(NamedTuple):
    """A term, and the numbers of its first row and of the one behind its last in a batch."""

    term: Term
    first: int
    end: int


class Batch:
    """Several Rows in one, to be predicted together."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.x = torch.cat([part.x for part in parts])
        self.sigma = torch.cat([part.sigma for part in parts])
        self.text_ids = [text_id for part in parts for text_id in part.text_ids]
        self.placed: list[PlacedTerm] = []
        self.states: list[torch.Tensor | None] = []  # for each row
        first = 0
        for part in parts:
            end = first + len(part.x)
            self.states += [None] * len(part.x) if part.states is None else [*part.states]
            self.placed += [PlacedTerm(term, first, end) for term in part.terms]
            first = end

    def __len__(self) -> int:
        return len(self.x)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The batch in pieces of at most `size` rows."""
        for first in range(0, len(self), size):
            yield Chunk(self, first, min(len(self), first + size))


class Chunk:
    """The rows `first` to `end` of a batch, and the parts of the terms that fall on them.

    index: for each row of each term its row in the chunk. target and weights: in the same order.
    """

    def __init__(self, batch: Batch, first: int, end: int) -> None:
        self.x = batch.x[first:end]
        self.sigma = batch.sigma[first:end]
        self.text_ids = batch.text_ids[first:end]
        self.states = batch.states[first:end]
        index, targets, weights = [], [], []
        self.lengths: list[int] = []
        for term, start, stop in batch.placed:
            low, high = max(first, start), max(first, start, min(end, stop))
            index.append(torch.arange(low - first, high - first))
            targets.append(term.target[low - start : high - start])
            self.lengths.append(high - low)
            weights.append(torch.full((self.lengths[-1],), term.weight))
        self.index = torch.cat(index).to(batch.x.device)
        self.target = torch.cat(targets)
        self.weights = torch.cat(weights).to(batch.x.device)

    def by_term(self, errors: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the rows' errors for each term [n], on the device."""
        parts = (errors * self.weights).split(self.lengths)
        return torch.stack([part.sum() for part in parts])
