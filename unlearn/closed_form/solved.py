"""Patches that were solved in this session, so that going back to an earlier list takes no solve.

They are kept in memory, bounded by number and bytes. A patch is found again only where everything
that the solve reads is as it was. Patches of a model that is gone are dropped; none keeps a model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import weakref
from collections import OrderedDict
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from ..analysis import tuning as analysis_tuning
from ..files import tuning as files_tuning
from ..files.text_cache import EMBEDDING
from ..host import model_identity
from ..host import tuning as host_tuning
from ..host.model_types import Clip, Model
from ..types import ConceptSet, UnlearnPatch
from ..version import VERSION
from . import tuning, variants
from .solve import SolveSettings, solve

CONSTANTS = (tuning, analysis_tuning, files_tuning, host_tuning)  # modules
AGAIN = "The same list was solved before in this session; that patch is used again."


class Solved(NamedTuple):
    """What a solve gives: the patch, the report as an IMAGE, and the report as a text."""

    patch: UnlearnPatch
    picture: torch.Tensor
    report: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.patch.nbytes + self.picture.nbytes


class SolvedPatches:
    """The last solves, by a key. Each belongs to a model's network and goes when that goes."""

    def __init__(
        self, most: int = tuning.SOLVED_PATCHES, most_bytes: int = tuning.SOLVED_BYTES
    ) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._entries: OrderedDict[str, tuple[weakref.ref[torch.nn.Module], Solved]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(solved.nbytes for _, solved in self._entries.values())

    def get(self, network: torch.nn.Module, key: str) -> Solved | None:
        """What was kept for a network under a key, None where there is nothing."""
        found = self._entries.get(key)
        if found is None or found[0]() is not network:
            return None
        self._entries.move_to_end(key)
        return found[1]._replace(picture=found[1].picture.clone())

    def put(self, network: torch.nn.Module, key: str, solved: Solved) -> None:
        """Keeps what was solved for a network. The oldest go where it is too much."""
        gone = functools.partial(_drop, weakref.ref(self), key)
        kept = solved._replace(picture=solved.picture.clone())
        self._entries.pop(key, None)
        self._entries[key] = weakref.ref(network, gone), kept
        while len(self) > self.most or (self._entries and self.nbytes > self.most_bytes):
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()

    def forget(self, key: str) -> None:
        """Drops what is kept under a key, if anything."""
        self._entries.pop(key, None)


def _drop(owner: weakref.ref[SolvedPatches], key: str, _network: Any) -> None:
    patches = owner()
    if patches is not None:
        patches.forget(key)


SESSION = SolvedPatches()


def solve_or_recall(
    model: Model,
    clip: Clip,
    concepts: ConceptSet,
    settings: SolveSettings,
    node_id: str | None = None,
    patches: SolvedPatches = SESSION,
) -> Solved:
    """What `solve` gives, from memory where the very same was solved before.

    The report then ends with a line that says so. Raises UnlearnError as `solve`.
    """
    key = key_of(model, clip, concepts, settings)
    found = None if key is None else patches.get(model.model, key)
    if found is not None:
        return found._replace(report=f"{found.report}\n{AGAIN}")
    solved = Solved(*solve(model, clip, concepts, settings, node_id=node_id))
    if key is not None:
        patches.put(model.model, key, solved)
    return solved


def key_of(model: Model, clip: Clip, concepts: ConceptSet, settings: SolveSettings) -> str | None:
    """Hex digest of everything that a solve reads, None where some of it cannot be read.

    It is None too where a text names an embedding, because its file may change.
    """
    what = {
        "concepts": asdict(concepts),
        "variant": settings.variant,
        "settings": settings.as_dict(),
        "solved by": variants.find(settings.variant).solve.__module__,
        "constants": constants(),
        "version": VERSION,
    }
    said = json.dumps(what, sort_keys=True, default=repr)
    identity = None if EMBEDDING in said else model_identity.identity(model, clip)
    if identity is None:
        return None
    return hashlib.blake2b(f"{identity}\0{said}".encode(), digest_size=16).hexdigest()


def constants() -> dict[str, str]:
    """Every measured constant by the names of its module and its own, as Python writes it."""
    return {
        f"{module.__name__}.{name}": repr(value)
        for module in CONSTANTS
        for name, value in vars(module).items()
        if name.isupper()
    }
