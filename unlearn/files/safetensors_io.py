"""Reading and writing .safetensors files.

A file is written completely or not at all, and all that it declares is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import UnlearnError
from ..host import memory
from ..host.folders import ENDING

KEY = re.compile(r"diffusion_model(\.\w+)+\.weight")  # of a weight that a file may name
LARGEST_HEADER = 50_000_000  # bytes; safetensors itself reads twice that
LARGEST_ENTRIES = 2**62  # entries of a tensor that torch can count
STALE = 3600  # seconds after which an unfinished file belongs to no running process
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")  # what safetensors names its own unfinished files
# What a damaged file may raise while it is read.
DAMAGE = (
    SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    OverflowError,
    RuntimeError,
)
Header = dict[str, tuple[str, tuple[int, ...]]]  # tensor name -> (dtype, shape)
Reader = Callable[[str], torch.Tensor]  # tensor name -> the tensor
Ours = Callable[[Mapping[str, str]], bool]  # metadata of a file -> whether this pack made it


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[dict[str, str], Header, Reader]]:
    """(metadata, header, read) of a .safetensors file; read(name) gives a tensor of its own memory.

    One handle reads everything and nothing is mapped into memory. So a file that another process
    replaces meanwhile is read as it was, and one that is cut while it is read counts as damaged.
    Every declared size is checked before memory is taken.

    Raises UnlearnError when the machine has no room for the file, and one of DAMAGE when it is
    damaged.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a pipe would never end
        raise ValueError("it is no ordinary file")
    with open(path, "rb") as f:
        size, n = os.fstat(f.fileno()).st_size, _header_length(f)
        if n > min(LARGEST_HEADER, size - 8):
            raise ValueError("its header is longer than the file or than any of ours")
        _check_room(Path(path).name, size)
        declared = json.loads(f.read(n).decode())
        metadata = declared.pop("__metadata__", {})
        places = _places(declared, size - 8 - n)
        if not isinstance(metadata, dict):
            raise ValueError("its metadata")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata")

        def read(name: str) -> torch.Tensor:
            dtype, shape, begin = places[name]
            tensor = torch.empty(shape, dtype=DTYPES[dtype])
            f.seek(8 + n + begin)
            if tensor.numel():
                if f.readinto(tensor.view(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
                    raise ValueError("it was cut while it was read")
            return tensor

        header = {name: (dtype, shape) for name, (dtype, shape, _) in places.items()}
        yield metadata, header, read


def _header_length(f: BinaryIO) -> int:
    head = f.read(8)
    if len(head) < 8:
        raise ValueError("it is shorter than its header")
    return int.from_bytes(head, "little")


def _check_room(name: str, size: int) -> None:
    """Raises UnlearnError when a file of `size` bytes does not fit into free memory."""
    free = memory.free_bytes(torch.device("cpu"))
    if size > free:
        raise UnlearnError(
            f"The file '{name}' holds {size / 2**30:.1f} GB and {free / 2**30:.1f} GB of memory "
            "are free; close other programs."
        )


def _places(declared: Mapping[str, Any], size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Tensor name -> (dtype, shape, first byte) of a header.

    Raises ValueError unless the tensors fill the `size` bytes of data one after another.
    """
    places, end = {}, 0
    for name, entry in sorted(declared.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, until) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if any(type(x) is not int or x < 0 for x in (*shape, begin, until)):
            raise ValueError("shapes and places of its tensors")
        right_length = until - begin == math.prod(shape) * DTYPES[dtype].itemsize
        countable = math.prod(filter(None, shape)) <= LARGEST_ENTRIES
        if begin != end or until > size or not right_length or not countable:
            raise ValueError("shapes and places of its tensors")
        places[name], end = (dtype, tuple(shape), begin), until
    if end != size:
        raise ValueError("its length")
    return places


def reason(error: BaseException) -> str:
    """How a message names one of the errors in DAMAGE: the pack's own words, else its kind."""
    return str(error) if type(error) is ValueError else type(error).__name__


def check_replaceable(path: str | os.PathLike, ours: Ours) -> None:
    """Raises UnlearnError where there is a file of the name that is not one of ours.

    ours: tells from a file's metadata whether this pack made it, as the same kind of file.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    found = None
    if path.is_file():
        with contextlib.suppress(*DAMAGE), open(path, "rb") as f:
            n = _header_length(f)
            if n <= LARGEST_HEADER:
                found = json.loads(f.read(n).decode()).get("__metadata__", {})
    if not isinstance(found, dict) or not ours(found):
        raise UnlearnError(
            f"There is a file '{path.name}' already that this node did not make; choose another "
            "name, or move that file away first."
        )


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    ours: Ours | None = None,
) -> None:
    """Writes a .safetensors file completely or not at all, and makes its folder.

    An old file of the name is replaced; behind a link, where the link points. With `ours`, only a
    file that `check_replaceable` lets pass. Raises UnlearnError when it cannot be written.
    """
    if ours is not None:
        check_replaceable(path, ours)
    path = Path(os.path.realpath(path))
    # Processes and threads may write the same name at the same time. The last rename wins.
    part = path.with_name(f"{path.name}.part{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f"{path.name}.part")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, dict(metadata))
        with open(part, "rb") as f:
            if _header_length(f) > LARGEST_HEADER:
                raise UnlearnError(
                    f"The file '{path.name}' would need more than {LARGEST_HEADER // 10**6} MB of "
                    "metadata; use fewer prompts."
                )
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UnlearnError(
            f"The file '{path.name}' cannot be written ({error}); free disk space or choose "
            "another name."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike, start: str = "") -> None:
    """Removes the unfinished files that killed processes left in a folder.

    Only those whose names begin with `start`; in folders of this pack also those of safetensors,
    which writes under a name of its own first.
    """
    ours = any(part.startswith(("unlearn_", "__unlearn")) for part in Path(folder).parts)
    for file in Path(folder).iterdir():
        with contextlib.suppress(OSError):  # another process may have been faster
            unfinished = file.name.startswith(start) and f"{ENDING}.part" in file.name
            if ours and _OF_SAFETENSORS.fullmatch(file.name):
                unfinished = True
            if unfinished and file.stat().st_mtime < time.time() - STALE:
                file.unlink()
