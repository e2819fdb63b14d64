"""Arrays that come step by step and are added up later, kept outside of memory.

Of an array [c_out, c_in] only what is above zero is kept: a bit for each entry, and the numbers in
order. A little stays in memory. The rest goes to a temporary file, which vanishes with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import UnlearnError
from . import tuning


class Kept(NamedTuple):
    """An array [c_out, c_in] as it was written, and its entries above zero [n] in order."""

    array: torch.Tensor
    positive: torch.Tensor


class StepLog:
    """A log of float32 arrays by key, each of which may be written many times.

    Raises UnlearnError when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        """folder: where the temporary file goes."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # It lives as long as the log, so no `with` can hold it.
        self._file: Any = tempfile.SpooledTemporaryFile(
            max_size=tuning.STEP_LOG_IN_MEMORY, dir=str(folder)
        )
        self._places: dict[Hashable, list[tuple[int, int]]] = {}
        self.nbytes = 0

    def write(self, key: Hashable, array: torch.Tensor) -> None:
        """Adds an array without negative entries, from any device."""
        above = array > 0
        positive = array[above].cpu().numpy()
        bits = np.packbits(above.cpu().numpy().reshape(-1), bitorder="little")
        place = self.nbytes, len(positive)
        try:
            self._file.seek(self.nbytes)
            self._file.write(bits.data)
            self._file.write(positive.data)
        except OSError as error:
            raise UnlearnError(
                f"What the score 'paper' sets aside does not fit into '{self.folder}' "
                f"({error.strerror}); free disk space, use score 'wanda', or measure fewer "
                "concepts at once and join them with Merge Concept Saliency."
            ) from error
        self.nbytes += bits.nbytes + positive.nbytes
        self._places.setdefault(key, []).append(place)

    def read(
        self, key: Hashable, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Iterator[Kept]:
        """The arrays of a key on a device, in the order in which they were written."""
        entries = int(np.prod(shape))
        for at, count in self._places.get(key, ()):
            self._file.seek(at)
            bits = np.frombuffer(self._file.read(-(-entries // 8)), np.uint8)
            above = np.unpackbits(bits, count=entries, bitorder="little").view(np.bool_)
            numbers = np.frombuffer(self._file.read(4 * count), np.float32).copy()
            positive = torch.from_numpy(numbers).to(device)
            placed = torch.from_numpy(above).view(*shape).to(device)
            array = torch.zeros(*shape, device=device).masked_scatter_(placed, positive)
            yield Kept(array, positive)

    def close(self) -> None:
        """Gives up the file."""
        self._file.close()
        self._places = {}
