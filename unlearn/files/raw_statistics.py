"""Raw statistics of the score `paper` in files, so that they can be merged later."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..host import folders
from ..types import Group
from . import safetensors_io, saliency_file


class RawWriter:
    """Writes the moments of each group at each step into a folder of their own.

    Files of the same name are replaced. `nbytes` is the size of all files together. Raises
    UnlearnError when the disk has no room for them.
    """

    def __init__(
        self,
        path: Path,
        layers: Sequence[tuple[str, int, int]],
        groups: Sequence[Group],
        window: int,
    ) -> None:
        """layers: (weight key, c_out, c_in) of each layer. window: number of steps."""
        self.path = Path(path)
        arrays = sum(2 if group.is_baseline else 1 for group in groups)
        self.nbytes = 4 * window * arrays * sum(c_out * c_in for _, c_out, c_in in layers)
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < self.nbytes * 1.02:
            raise UnlearnError(
                f"The raw statistics need {self.nbytes / 2**30:.1f} GB and the disk has "
                f"{free / 2**30:.1f} GB; leave 'raw_statistics' empty, or use fewer concepts or "
                "steps."
            )

    def write(self, step: int, group: Group, moments: Sequence[fia.RunningMoments]) -> None:
        """Writes the moments [c_out, c_in] of every layer for one group at one step."""
        tensors = {f"mean.{i}": m.mean.cpu() for i, m in enumerate(moments)}
        tensors |= {f"m2.{i}": m.m2.cpu() for i, m in enumerate(moments) if m.m2 is not None}
        safetensors_io.write(self.path / raw_name(step, group), tensors, {"n": str(moments[0].n)})


def raw_name(step: int, group: Group) -> str:
    """Name of the file of one group at one step."""
    digest = hashlib.blake2b(group.key.encode(), digest_size=12).hexdigest()
    return f"{step:03}_{digest}.safetensors"


def read_raw(folders: Sequence[str], group: Group, step: int, layer: int) -> fia.RunningMoments:
    """The moments of one layer at one step, merged over raw folders.

    folders: names under the models folder. Raises UnlearnError when a file is missing or damaged.
    """
    parts = [_read_part(folder, group, step, layer) for folder in folders]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


def _read_part(folder: str, group: Group, step: int, layer: int) -> fia.RunningMoments:
    """The moments of one layer at one step from one folder."""
    path = folders.inside(saliency_file.models_folder(), folder) / raw_name(step, group)
    if not path.exists():
        raise UnlearnError(
            f"The raw statistics '{folder}' of '{group.title}' are not in the models folder "
            f"{saliency_file.FOLDER}; copy them there."
        )
    try:
        with safetensors_io.opened(path) as (metadata, header, read):
            mean = read(f"mean.{layer}")
            m2 = read(f"m2.{layer}") if f"m2.{layer}" in header else None
            n = int(metadata["n"])
        _validate(mean, m2, n, group)
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The raw statistics '{path.name}' in '{folder}' are damaged "
            f"({safetensors_io.reason(error)}); measure them again."
        ) from error
    return fia.RunningMoments(mean, m2, n)


def _validate(mean: torch.Tensor, m2: torch.Tensor | None, n: int, group: Group) -> None:
    """ValueError where moments cannot be those of a group."""
    if n < 1 or mean.dim() != 2 or not torch.isfinite(mean).all():
        raise ValueError("numbers")
    if m2 is None:
        if group.is_baseline:
            raise ValueError("deviations")
    elif m2.shape != mean.shape:
        raise ValueError("numbers")
