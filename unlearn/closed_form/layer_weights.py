"""The matrices that a solve edits, each read from the model once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..host import memory, weights
from ..host.model_types import Model
from . import tuning

if TYPE_CHECKING:
    from ..host.architectures import Layer


class LayerWeights:
    """The matrices of one group of a MODEL's layers, as float32, in any number of passes.

    All of them read the same input. Of a layer that reads other things beside it, only the columns
    of that input are read. With a basis [d, r] given, the input is in its coordinates, and so are
    the matrices [d_out, r].

    Reading may mean to dequantise a matrix and to apply LoRAs to it, so each matrix is kept after
    the first pass: in half precision where that is exact, as in most checkpoints. Matrices that do
    not fit into half of the free memory are read again in each pass.
    """

    def __init__(
        self, model: Model, layers: Sequence[Layer], basis: torch.Tensor | None = None
    ) -> None:
        self.model, self.layers, self.basis = model, tuple(layers), basis
        self._kept: dict[str, torch.Tensor] = {}
        self._budget = tuning.CACHE_SHARE * memory.free_bytes(torch.device("cpu"))

    def __iter__(self) -> Iterator[tuple[Layer, torch.Tensor]]:
        """Each layer with its matrix, float32 [d_out, d]. The matrix must not be changed.

        Raises UnlearnError on NaN or infinite weights.
        """
        for layer in self.layers:
            yield layer, self._read(layer)

    @property
    def width(self) -> int:
        """Width d of the input that the layers read, r in the coordinates of a basis."""
        return self.input_width if self.basis is None else self.basis.shape[1]

    @property
    def input_width(self) -> int:
        """Width d of the input that the layers read."""
        first = self.layers[0]
        if first.columns is not None:
            return first.columns[1] - first.columns[0]
        return weights.shape(self.model, first.key)[1]

    def _read(self, layer: Layer) -> torch.Tensor:
        key = layer.key
        if key in self._kept:
            return self._kept[key].float()
        w0 = self._of_input(layer, weights.read(self.model, key))
        compact = smallest_exact(w0)
        size = compact.numel() * compact.element_size()
        if size <= self._budget:
            self._budget -= size
            self._kept[key] = compact
        return w0

    def before_earlier_patches(self, layer: Layer) -> torch.Tensor:
        """The matrix of a layer as it was before all patches of this pack, float32 [d_out, d]."""
        return self._of_input(layer, weights.read(self.model, layer.key, edited=False))

    def _of_input(self, layer: Layer, weight: torch.Tensor) -> torch.Tensor:
        found = of_input(layer, weight)
        return found if self.basis is None else found @ self.basis

    def whole(self, layer: Layer, down: torch.Tensor) -> torch.Tensor:
        """`down` [r, d] of an edit over all columns of a layer: 0 where it reads other things."""
        if layer.columns is None:
            return down
        out = down.new_zeros(len(down), weights.shape(self.model, layer.key)[1])
        out[:, slice(*layer.columns)] = down
        return out

    def have_earlier_patches(self) -> bool:
        """Whether a patch of this pack is on one of the layers."""
        return any(weights.edited(self.model, layer.key) for layer in self.layers)


def of_input(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """The columns [d_out, d] of a layer's weight [d_out, d_in] that read the group's input."""
    if layer.columns is None:
        return weight
    return weight[:, slice(*layer.columns)].contiguous()


def smallest_exact(w0: torch.Tensor) -> torch.Tensor:
    """A float32 matrix in half precision where that loses nothing, else the matrix itself."""
    for dtype in (torch.float16, torch.bfloat16):
        half = w0.to(dtype)
        if torch.equal(half.float(), w0):
            return half
    return w0
