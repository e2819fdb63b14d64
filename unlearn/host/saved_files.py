"""What the save nodes have written, so that a file that was changed or deleted is written again.

ComfyUI does not run a node again whose inputs are as they were. Its `fingerprint_inputs` is asked
each time, so a save node answers there with `state`, which changes when the disk does not hold
any more what the node wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnlearnError
from . import folders

LOADED_FROM = ("checkpoints", "diffusion_models")  # kinds of folders that checkpoints are moved to


@dataclass
class _Saved:
    path: Path
    stamp: tuple[int, int] | None
    digest: str
    changes: int = 0


_saved: dict[str, _Saved] = {}


def place(kind: str, name: str | None) -> str | None:
    """The place of a new file of a kind, None for a name that only the graph's run will tell."""
    if name is None:
        return None
    try:
        return str(folders.new(kind, name))
    except UnlearnError:  # the node says it when it runs
        return name


def wrote(where: str, path: Path, numbered: bool = False) -> None:
    """Remembers that a node has just written a file for a place.

    where: what names the file in the node's inputs, as `state` is asked for it. numbered: each run
    writes a file of its own.
    """
    before = _saved.get(where)
    now = _Saved(path, _stamp(path), "" if numbered else _digest(path))
    if before is not None:
        # Where other inputs wrote this file before, what is kept of their run holds no more.
        now.changes = before.changes + (not numbered and before.digest != now.digest)
    _saved[where] = now


def state(where: str | None) -> float:
    """A number that is another one when the file of a place is not as it was written.

    NaN, which is never as it was, where the place is not known before the graph runs (None).
    """
    if where is None:
        return math.nan
    found = _saved.get(where)
    if found is None:
        return 0
    if _stamp(found.path) != found.stamp and not _was_moved(found):
        found.changes += 1
    return found.changes


def _was_moved(saved: _Saved) -> bool:
    """Whether a checkpoint lies where loaders find it now, as its node asks the artist to do."""
    if saved.stamp is None or saved.path.exists():
        return False
    moved = [folder / saved.path.name for kind in LOADED_FROM for folder in folders.folders(kind)]
    return any((stamp := _stamp(path)) and stamp[1] == saved.stamp[1] for path in moved)


def _stamp(path: Path) -> tuple[int, int] | None:
    """(time of change in ns, size in bytes) of a file, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _digest(path: Path) -> str:
    """Hex digest of a .safetensors file, whose header comes in another order at each writing."""
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        h.update(json.dumps(header, sort_keys=True).encode())
        while part := file.read(2**20):
            h.update(part)
    return h.hexdigest()
