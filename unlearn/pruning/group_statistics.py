"""What is kept of the activations of each group of prompts while they are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..files.raw_statistics import RawWriter
from ..host import memory, weights
from ..host.model_types import Model
from ..types import Group
from . import tuning
from .settings import SaliencySettings

Layers = Sequence[tuple[str, int, int]]  # (weight key, c_out, c_in) of each layer
GB = 2**30


class GroupStatistics(Protocol):
    """Statistics of groups that are measured in turn, at one denoising step after another."""

    # The folder that the raw statistics are written to, or None.
    folder: Path | None
    # A sentence for the report about the memory that was used, or ''.
    memory_note: str

    def allocate(self, device: torch.device) -> None:
        """Takes the memory, once the model is loaded on `device`."""
        ...

    def activation(
        self, module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """The activation part G of one prompt, from a layer's input and output."""
        ...

    def open(self, step: int, g: int) -> list[fia.RunningMoments]:
        """The moments of every layer that group number `g` fills at this step."""
        ...

    def close(self, step: int, g: int) -> None:
        """Takes in the filled moments of group number `g`."""
        ...

    def kept(self, g: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(mean, m2) of a group at all steps, as in ActivationStats."""
        ...


class WandaStatistics:
    """Statistics of the score `wanda`: one number for each hidden unit, group and step."""

    folder: Path | None = None
    memory_note: str = ""

    def __init__(self, layers: Layers, groups: Sequence[Group], window: int) -> None:
        self.widths = [c_in for *_, c_in in layers]
        self.groups = groups
        self.window = window

    def allocate(self, device: torch.device) -> None:
        shape = self.window, sum(self.widths)
        self.mean = [torch.zeros(shape) for _ in self.groups]
        self.m2 = [torch.zeros(shape) if g.is_baseline else None for g in self.groups]

    def activation(
        self, module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        return fia.column_norms(x.flatten(0, -2).float()).cpu()

    def open(self, step: int, g: int) -> list[fia.RunningMoments]:
        means = self.mean[g][step].split(self.widths)
        m2 = self.m2[g]
        if m2 is None:
            return [fia.RunningMoments(mean) for mean in means]
        return [
            fia.RunningMoments(mean, part)
            for mean, part in zip(means, m2[step].split(self.widths), strict=True)
        ]

    def close(self, step: int, g: int) -> None:
        pass

    def kept(self, g: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.mean[g], self.m2[g]


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that the score `paper` needs, whatever the number of prompts.

    work: two float32 arrays of all layers' weights, which all groups use in turn. sums: for every
    concept the sums over the steps, a float32 and a counter for each weight.
    """

    work: int
    sums: int

    @classmethod
    def of(cls, layers: Layers, concepts: int, window: int) -> "MemoryNeed":
        """The need for a number of concepts; window: number of steps."""
        entries = sum(c_out * c_in for _, c_out, c_in in layers)
        counter = fia.count_dtype(window).itemsize
        reserve = tuning.MEMORY_RESERVE
        return cls(int(8 * entries * reserve), int((4 + counter) * entries * concepts * reserve))

    @property
    def total(self) -> int:
        return self.work + self.sums

    def place(self, device: torch.device) -> tuple[torch.device, torch.device]:
        """(device of the work arrays, device of the sums): the fastest place that has room.

        Both lie on `device` when they fit there. Otherwise the sums lie in main memory, and after
        that both do. Raises UnlearnError when nothing has room.
        """
        cpu = torch.device("cpu")
        main = memory.free_bytes(cpu)
        room = f"{main / GB:.1f} GB of main memory are"
        if not memory.is_cpu(device):
            free = memory.free_bytes(device)
            if self.total <= free:
                return device, device
            if self.work <= free and self.sums <= main:
                return device, cpu
            room = f"{free / GB:.1f} GB of the GPU's and {main / GB:.1f} GB of main memory are"
        if self.total <= main:
            return cpu, cpu
        raise UnlearnError(
            f"The input 'score' is 'paper', which needs {self.total / GB:.1f} GB for its "
            f"statistics, and {room} free; use score 'wanda', or measure fewer concepts at once "
            "and join them with Merge Concept Saliency."
        )


class PaperStatistics:
    """Statistics of the score `paper`: arrays of the size of the layers' weights.

    There are two work arrays. A baseline fills them with its mean and deviation. Then the first
    holds the baseline's bound, and each concept in turn fills the second with its mean. Every
    concept has its sums over the steps. Nothing grows with the number of prompts or steps.
    """

    def __init__(
        self,
        model: Model,
        layers: Layers,
        groups: Sequence[Group],
        settings: SaliencySettings,
        raw: RawWriter | None = None,
    ) -> None:
        concepts = sum(not group.is_baseline for group in groups)
        self.model = model
        self.layers = layers
        self.groups = groups
        self.settings = settings
        self.need = MemoryNeed.of(layers, concepts, settings.window)
        self.raw = raw
        self.folder = raw.path if raw else None
        self.memory_note = ""

    def allocate(self, device: torch.device) -> None:
        self.device, sums = self.need.place(device)
        shapes = [shape for _, *shape in self.layers]
        self.first = [torch.zeros(shape, device=self.device) for shape in shapes]
        self.second = [torch.zeros(shape, device=self.device) for shape in shapes]
        self.sums = {
            g: [fia.SaliencyAccumulator(shape, sums, self.settings.window) for shape in shapes]
            for g, group in enumerate(self.groups)
            if not group.is_baseline
        }
        self.memory_note = self._memory_note(sums)

    def _memory_note(self, sums: torch.device) -> str:
        parts = {self.device.type: self.need.work}
        parts[sums.type] = parts.get(sums.type, 0) + self.need.sums
        where = [
            f"{size / GB:.2f} GB of {'main memory' if kind == 'cpu' else 'GPU memory'}"
            for kind, size in parts.items()
        ]
        return f"The statistics take up to {' and '.join(where)}."

    def activation(
        self, module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        y = output.flatten(0, -2).float()
        if isinstance(module.bias, torch.Tensor):
            y = y - module.bias.to(y)
        return fia.correlation(x.flatten(0, -2).float(), y).to(self.device)

    def open(self, step: int, g: int) -> list[fia.RunningMoments]:
        baseline = self.groups[g].is_baseline
        for buffer in self.second:
            buffer.zero_()
        if not baseline:
            self.moments = [fia.RunningMoments(mean) for mean in self.second]
            return self.moments
        for buffer in self.first:
            buffer.zero_()
        self.moments = [
            fia.RunningMoments(mean, m2) for mean, m2 in zip(self.first, self.second, strict=True)
        ]
        return self.moments

    def close(self, step: int, g: int) -> None:
        if self.raw is not None:
            self.raw.write(step, self.groups[g], self.moments)
        if self.groups[g].is_baseline:
            for m in self.moments:
                assert m.m2 is not None
                m.mean.add_(m.m2.div_(m.n).sqrt_())
            return
        for i, (key, *_) in enumerate(self.layers):
            w = weights.read(self.model, key, device=self.device)
            s = fia.contrast(w, self.second[i], self.first[i])
            self.sums[g][i].add(s, self.settings.r1)

    def kept(self, g: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None, None

    def saliency(self, g: int, layer: int, scale: str) -> torch.Tensor:
        """A [c_out, c_in] of one concept's group in one layer. It can be taken once."""
        return self.sums[g][layer].saliency(scale)

    def release_work(self) -> None:
        """Gives up the work arrays, which nobody needs after the last step."""
        self.first = self.second = self.moments = []
