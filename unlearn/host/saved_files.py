"""What the save nodes have written, so that a file that was changed or deleted is written again.

ComfyUI does not run a node again whose inputs are as they were. Its `fingerprint_inputs` is asked
each time, so a save node answers there with `state`, which changes when the disk does not hold
any more what the node wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnlearnError
from . import folders

LOADED_FROM = ("checkpoints", "diffusion_models")  # kinds of folders that checkpoints are moved to


EXISTING = ("replace", "count up")  # what a save node does with a name that is taken


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


@dataclass(frozen=True)
class Target:
    """A file that a save node is about to write. Made before it, asked what it did after it.

    kind: of its folder. where: as `state` is asked for it. replaced: when the file that it replaces
    was written, in seconds since the epoch, None where there is none.
    """

    kind: str
    path: Path
    where: str
    replaced: float | None

    @classmethod
    def of(cls, kind: str, name: str, existing: str) -> Target:
        """The file for a name. `existing` is one of EXISTING.

        'count up' takes NAME where it is free, else NAME_00002, NAME_00003 and so on: one more
        than the highest number there. Raises UnlearnError for a name that is none on every system.
        """
        path = folders.new(kind, name)
        where = _where(str(path), existing)
        if existing == "count up":
            path = _uncounted(path)
        stamp = _stamp(path)
        return cls(kind, path, where, None if stamp is None else stamp[0] / 1e9)

    @property
    def listed(self) -> str:
        """The name under which menus list the file."""
        return folders.name_of(self.kind, self.path)

    def written(self) -> str:
        """Remembers that the file has just been written, and says so in one sentence."""
        wrote(self.where, self.path, numbered=self.where != str(self.path))
        size = f"{self.path.stat().st_size / 2**20:.2f} MB"
        if self.replaced is None:
            return f"Saved {self.listed}, {size}."
        then = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.replaced))
        return f"Replaced {self.listed} of {then}, now {size}."


def of_name(kind: str, name: str | None, existing: str | None) -> float:
    """`state` of the file that a save node of a kind wrote for a name."""
    found = place(kind, name)
    return state(None if found is None or existing is None else _where(found, existing))


def _where(path: str, existing: str) -> str:
    return path if existing == "replace" else f"{path}: {existing}"


def _uncounted(path: Path) -> Path:
    """The path itself where nothing is there, else with the next number behind its name."""
    counted = re.compile(re.escape(path.stem) + r"_(\d{5,9})" + re.escape(path.suffix))
    try:
        names = [file.name for file in path.parent.iterdir()]
    except OSError:  # the folder is made when the file is written
        return path
    numbers = [int(found[1]) for found in map(counted.fullmatch, names) if found]
    if path.name not in names and not numbers:
        return path
    return path.with_name(f"{path.stem}_{max([1, *numbers]) + 1:05}{path.suffix}")


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
