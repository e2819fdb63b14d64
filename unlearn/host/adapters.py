"""The three edits a patch consists of, as weight adapters of ComfyUI's patcher.

The patcher rebuilds an adapter as `type(a)(a.loaded_keys, a.weights)`, so all state is in
`weights`. With an offset it passes a view and drops the return value, so the weight is changed in
place. That weight is the patcher's own copy, never the loaded model's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from comfy.weight_adapter import WeightAdapterBase


class WeightEdit(WeightAdapterBase):
    """An edit of one weight matrix [d_out, d_in]."""

    weights: Any  # a tuple, whose parts each kind of edit names below

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple | None,
        function: Callable[[torch.Tensor], torch.Tensor] | None,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adds the edit to `weight` in place, as the patcher calls it."""
        change = self.change(weight, strength)
        if function is not None:
            change = function(change)
        weight.copy_(weight.float() + change)  # a float32 sum, rounded once to the weight's dtype
        return weight

    def change(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """What is added to the weight [d_out, d_in]: float32 [d_out, d_in]."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(d_out, d_in) of the weight this edit is for."""
        raise NotImplementedError


class Prune(WeightEdit):
    """W <- W * (1 - strength * mask), exactly zero at strength 1.

    weights = (packed uint8 [ceil(n / 8)], d_out, d_in, granularity). The mask is bit-packed, with
    one bit for each connection, row or column, as the granularity says.
    """

    name = "unlearn_prune"

    @classmethod
    def of(
        cls, mask: torch.Tensor, d_out: int, d_in: int, granularity: str = "connection"
    ) -> Prune:
        """From a bool mask: [d_out, d_in] of connections, [d_out] of rows, [d_in] of columns."""
        expected = {"connection": (d_out, d_in), "row": (d_out,), "column": (d_in,)}[granularity]
        if tuple(mask.shape) != expected:
            raise ValueError(
                f"a {granularity} mask for a [{d_out}, {d_in}] weight must be {list(expected)}, "
                f"not {list(mask.shape)}"
            )
        packed = torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy(), bitorder="little"))
        return cls(set(), (packed, d_out, d_in, granularity))

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights[1], self.weights[2]

    def mask(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The bool mask, in a shape that broadcasts to [d_out, d_in]."""
        packed, d_out, d_in, granularity = self.weights
        bits = (packed.to(device)[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
        shape = {"connection": (d_out, d_in), "row": (d_out, 1), "column": (1, d_in)}[granularity]
        return bits.flatten()[: shape[0] * shape[1]].view(shape).bool()

    def change(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        return torch.where(self.mask(weight.device), weight.float() * -strength, 0.0)


class LowRank(WeightEdit):
    """W <- W + strength * up @ down; weights = (up [d_out, r], down [r, d_in]).

    Layers whose edits have the same `down` share one tensor.
    """

    name = "unlearn_lowrank"

    @classmethod
    def of(cls, up: torch.Tensor, down: torch.Tensor) -> LowRank:
        """From both factors; a contiguous `down` on the CPU is shared, not copied."""
        if down.device.type != "cpu" or not down.is_contiguous():
            down = down.cpu().contiguous()
        return cls(set(), (up.to("cpu").contiguous(), down))

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights[0].shape[0], self.weights[1].shape[1]

    def change(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        up, down = (w.to(weight.device, torch.float32) for w in self.weights)
        return (up @ down).mul_(strength)


class Delta(WeightEdit):
    """W <- W + strength * D; weights = (values, indices, d_out, d_in).

    `indices` are int32 into the flattened D, or None when all of D is stored.
    """

    name = "unlearn_delta"
    # Share of nonzero entries below which indices are stored: with float16 values an index takes
    # twice the bytes of a value. Not measured.
    SPARSE_BELOW = 0.25

    @classmethod
    def of(cls, delta: torch.Tensor) -> Delta:
        """From the matrix D [d_out, d_in]."""
        d_out, d_in = delta.shape
        flat = delta.detach().to("cpu").flatten()
        places = flat.nonzero().flatten()
        if len(places) < cls.SPARSE_BELOW * flat.numel():
            return cls(set(), (flat[places].contiguous(), places.int(), d_out, d_in))
        return cls(set(), (flat.clone(), None, d_out, d_in))

    @property
    def shape(self) -> tuple[int, int]:
        return self.weights[2], self.weights[3]

    def change(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        values, indices, d_out, d_in = self.weights
        values = values.to(weight.device, torch.float32) * strength
        if indices is None:
            return values.view(d_out, d_in)
        dense = torch.zeros(d_out * d_in, device=weight.device)
        dense[indices.to(weight.device).long()] = values
        return dense.view(d_out, d_in)
