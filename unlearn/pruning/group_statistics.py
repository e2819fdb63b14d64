"""What is kept of the activations of each group of prompts while they are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..files.raw_statistics import RawWriter
from ..files.step_log import StepLog
from ..files.tuning import STEP_LOG_IN_MEMORY
from ..host import folders, memory, weights
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

    @property
    def memory_note(self) -> str:
        """A sentence for the report about the memory that was used, or ''."""
        ...

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
    """Bytes of memory that the score `paper` needs, whatever the number of prompts and concepts.

    work: two float32 arrays of all layers' weights, which all groups use in turn. step: what it
    takes to set aside a step of the largest layer. layer: what it takes to add up the steps of one
    concept there. log: what of that stays in main memory; the rest of it needs disk.
    """

    work: int
    step: int
    layer: int
    log: int

    @classmethod
    def of(cls, layers: Layers) -> "MemoryNeed":
        """The need for a model's layers."""
        sizes = [c_out * c_in for _, c_out, c_in in layers]
        largest = tuning.MEMORY_RESERVE * max(sizes)
        return cls(
            int(8 * sum(sizes) * tuning.MEMORY_RESERVE),
            int(tuning.STEP_BYTES * largest),
            int(tuning.RANKING_BYTES * largest),
            STEP_LOG_IN_MEMORY,
        )

    @property
    def total(self) -> int:
        """The most that is taken at once: the work arrays are gone when the steps are added up."""
        return max(self.work + self.step, self.layer) + self.log

    def place(self, device: torch.device) -> torch.device:
        """Where the statistics lie: on `device` where they fit, otherwise in main memory.

        Raises UnlearnError when nothing has room.
        """
        cpu = torch.device("cpu")
        main = memory.free_bytes(cpu)
        room = f"{main / GB:.1f} GB of main memory are"
        if not memory.is_cpu(device):
            free = memory.free_bytes(device)
            if self.total <= free:
                return device
            room = f"{free / GB:.1f} GB of the GPU's and {main / GB:.1f} GB of main memory are"
        if self.total <= main:
            return cpu
        raise UnlearnError(
            f"The input 'score' is 'paper', which needs {self.total / GB:.1f} GB for its "
            f"statistics, and {room} free; use score 'wanda', or close other programs."
        )


class PaperStatistics:
    """Statistics of the score `paper`: arrays of the size of the layers' weights.

    There are two work arrays. A baseline fills them with its mean and deviation. Then the first
    holds the baseline's bound, and each concept in turn fills the second with its mean. What
    stands out of the bound is set aside on disk at each step, and added up for one concept and
    layer at a time when all steps are done. So memory grows with neither prompts, steps nor
    concepts.
    """

    def __init__(
        self,
        model: Model,
        layers: Layers,
        groups: Sequence[Group],
        settings: SaliencySettings,
        raw: RawWriter | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.groups = groups
        self.settings = settings
        self.need = MemoryNeed.of(layers)
        self.raw = raw
        self.folder = raw.path if raw else None

    def allocate(self, device: torch.device) -> None:
        self.device = self.need.place(device)
        shapes = [shape for _, *shape in self.layers]
        self.first = [torch.zeros(shape, device=self.device) for shape in shapes]
        self.second = [torch.zeros(shape, device=self.device) for shape in shapes]
        self.concepts = [g for g, group in enumerate(self.groups) if not group.is_baseline]
        self.log = StepLog(folders.temporary())

    @property
    def memory_note(self) -> str:
        """What was taken, for the report."""
        where = "main memory" if self.device.type == "cpu" else "GPU memory"
        return (
            f"The statistics took up to {self.need.total / GB:.2f} GB of {where} and "
            f"{self.log.nbytes / GB:.2f} GB of disk for a while."
        )

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
            self.log.write((g, i), s)

    def kept(self, g: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None, None

    def saliency(self, g: int, layer: int, scale: str) -> torch.Tensor:
        """A [c_out, c_in] of one concept's group in one layer."""
        _, *shape = self.layers[layer]
        sums = fia.SaliencyAccumulator(shape, self.device, self.settings.window)
        for s, positive in self.log.read((g, layer), shape, self.device):
            sums.add(s, self.settings.r1, positive)
        return sums.saliency(scale)

    def release_work(self) -> None:
        """Gives up the work arrays, which nobody needs after the last step."""
        self.first = self.second = self.moments = []

    def release(self) -> None:
        """Gives up the disk, when everything is ranked."""
        self.log.close()
