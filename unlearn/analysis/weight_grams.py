"""Gram matrices of a model's key and value weights before and after an edit."""

import torch

from ...kernels import forecast as kernel
from . import tuning


class WeightGrams:
    """Sums over layers of products of the weights W0 before and W after an edit, [d, d] float64.

    before = sum W0^T W0, cross = sum W0^T W, after = sum W^T W, over evenly spread rows of each
    layer. Where W0 holds earlier patches of this pack and V is the weight without them,
    base_gram = sum V^T V and base_cross = sum V^T W; they are None where there are none.
    """

    def __init__(self) -> None:
        self.before: torch.Tensor = torch.zeros((), dtype=torch.float64)
        self.cross: torch.Tensor = torch.zeros((), dtype=torch.float64)
        self.after: torch.Tensor = torch.zeros((), dtype=torch.float64)
        self.base_gram: torch.Tensor | None = None
        self.base_cross: torch.Tensor | None = None

    @staticmethod
    def rows(w0: torch.Tensor) -> torch.Tensor:
        """At most `MAX_WEIGHT_ROWS` evenly spread rows of a layer's matrix [d_out, d]."""
        return w0[:: -(-len(w0) // tuning.MAX_WEIGHT_ROWS)]

    def add_original(self, w0: torch.Tensor, unpatched: torch.Tensor | None = None) -> None:
        """Adds a layer to `before` alone.

        unpatched: the same weight without earlier patches of this pack, where there are any.
        """
        w0 = self.rows(w0).float()
        self.before = self.before + (w0.T @ w0).double()
        if unpatched is None:
            return
        v = self.rows(unpatched).float()
        gram, cross = (v.T @ v).double(), (v.T @ w0).double()
        self.base_gram = gram if self.base_gram is None else self.base_gram + gram
        self.base_cross = cross if self.base_cross is None else self.base_cross + cross

    def add_edited(self, w0: torch.Tensor, delta: torch.Tensor) -> None:
        """Adds a layer W0 and its edit W - W0, both [d_out, d]."""
        w, w0 = self.rows(w0 + delta).float(), self.rows(w0).float()
        self.before = self.before + (w0.T @ w0).double()
        self.cross = self.cross + (w0.T @ w).double()
        self.after = self.after + (w.T @ w).double()

    def after_shared_edit(self, multiplier: torch.Tensor) -> "WeightGrams":
        """The Gram matrices after every layer became W = W0 (I + M), with M [d, d]."""
        out = WeightGrams()
        out.before = self.before
        out.cross, out.after = kernel.shared(self.before, multiplier)
        if self.base_cross is not None:
            out.base_gram = self.base_gram
            out.base_cross = self.base_cross + self.base_cross @ multiplier
        return out

    def after_edit(self, mixed: torch.Tensor, square: torch.Tensor) -> "WeightGrams":
        """The Gram matrices after an edit D, mixed = sum W0^T D and square = sum D^T D."""
        out = WeightGrams()
        out.before = self.before
        out.cross = self.before + mixed
        out.after = self.before + mixed + mixed.T + square
        return out

    def drift(self, keep: torch.Tensor) -> float:
        """Relative movement (root mean square) of the keys and values of kept token states.

        keep: the second moment [d, d] of these states. With earlier patches of this pack it
        counts from the weights without them.
        """
        before, cross = self.before, self.cross
        if self.base_gram is not None and self.base_cross is not None:
            before, cross = self.base_gram, self.base_cross
        square = self.after - cross - cross.T + before
        moved = (square * keep).sum().clamp_min(0) / (before * keep).sum().clamp_min(1e-30)
        return float(moved) ** 0.5
