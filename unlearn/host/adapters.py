"""The three edits a patch is made of, as weight adapters of ComfyUI's patcher.

The patcher rebuilds an adapter as `type(a)(a.loaded_keys, a.weights)`, so all state is in `weights`; with an offset it passes a
view and drops the return value, so the weight is changed in place (it is the patcher's own copy, never the loaded model's).
"""

import numpy as np
import torch
from comfy.weight_adapter import WeightAdapterBase


class Edit(WeightAdapterBase):
    """An edit of one weight matrix [d_out, d_in]; subclasses give `change(weight, strength)` -> float32 [d_out, d_in]."""

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        change = self.change(weight, strength)
        if function is not None:
            change = function(change)
        weight.copy_(weight.float() + change)  # float32 sum, rounded once to the weight's dtype
        return weight

    def change(self, weight, strength):
        raise NotImplementedError

    @property
    def shape(self):
        """Shape of the weight matrix this edit is for."""
        raise NotImplementedError


class Prune(Edit):
    """W <- W * (1 - strength * mask), exactly zero at strength 1; mask bit-packed, one bit per connection, row or column.

    weights = (packed uint8 [ceil(n / 8)], d_out, d_in, granularity), granularity 'connection', 'row' or 'column'.
    """

    name = "unlearn_prune"

    @classmethod
    def of(cls, mask, d_out, d_in, granularity="connection"):
        """From a bool mask: [d_out, d_in] for connections, [d_out] for rows, [d_in] for columns."""
        want = {"connection": (d_out, d_in), "row": (d_out,), "column": (d_in,)}[granularity]
        if tuple(mask.shape) != want:
            raise ValueError(
                f"a {granularity} mask for a [{d_out}, {d_in}] weight must be {list(want)}, not {list(mask.shape)}"
            )
        packed = torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy(), bitorder="little"))
        return cls(set(), (packed, d_out, d_in, granularity))

    @property
    def shape(self):
        return tuple(self.weights[1:3])

    def mask(self, device="cpu"):
        """The bool mask, broadcastable to [d_out, d_in]."""
        packed, d_out, d_in, granularity = self.weights
        bits = (packed.to(device)[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
        shape = {"connection": (d_out, d_in), "row": (d_out, 1), "column": (1, d_in)}[granularity]
        return bits.flatten()[: shape[0] * shape[1]].view(shape).bool()

    def change(self, weight, strength):
        return torch.where(self.mask(weight.device), weight.float() * -strength, 0.0)


class LowRank(Edit):
    """W <- W + strength * up @ down; weights = (up [d_out, r], down [r, d_in]), `down` shared among layers where the maths shares it."""

    name = "unlearn_lowrank"

    @classmethod
    def of(cls, up, down):
        return cls(
            set(),
            (
                up.to("cpu").contiguous(),
                down
                if down.is_contiguous() and down.device.type == "cpu"
                else down.cpu().contiguous(),
            ),
        )

    @property
    def shape(self):
        return self.weights[0].shape[0], self.weights[1].shape[1]

    def change(self, weight, strength):
        up, down = (w.to(weight.device, torch.float32) for w in self.weights)
        return (up @ down).mul_(strength)


class Delta(Edit):
    """W <- W + strength * D; weights = (values, indices, d_out, d_in), indices int32 into the flattened D, or None when D is dense."""

    name = "unlearn_delta"
    SPARSE_BELOW = 0.25

    @classmethod
    def of(cls, delta):
        d_out, d_in = delta.shape
        flat = delta.detach().to("cpu").flatten()
        where = flat.nonzero().flatten()
        if len(where) < cls.SPARSE_BELOW * flat.numel():
            return cls(set(), (flat[where].contiguous(), where.int(), d_out, d_in))
        return cls(set(), (flat.clone(), None, d_out, d_in))

    @property
    def shape(self):
        return tuple(self.weights[2:])

    def change(self, weight, strength):
        values, indices, d_out, d_in = self.weights
        values = values.to(weight.device, torch.float32) * strength
        if indices is None:
            return values.view(d_out, d_in)
        dense = torch.zeros(d_out * d_in, device=weight.device)
        dense[indices.to(weight.device).long()] = values
        return dense.view(d_out, d_in)
