"""The rows of the table: which method at which setting, and what it is given.

A closed form has three: `official`, at the setting of its paper or official code for the kind of
concepts; `sweep`, at the best of a small sweep (sweeps.py); and `same information`, its own solve
of what ours reads (_information.py), at the best of a sweep too. The other methods have one.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import __path__, _information, _shared

OURS, OFFICIAL, SWEEP, SAME = "ours", "official", "sweep", "same information"
EARLIER, PACK = "earlier", "pack"
GROUPS = {
    OFFICIAL: "Official settings",
    SWEEP: "Best of a sweep",
    SAME: "Same information as ours",
    PACK: "Other methods of the pack",
    EARLIER: "As earlier versions of this benchmark set them",
}
NO_METHODS = {"__main__", "attacks", "protocols", "rows", "scores", "sweeps"}
UNCHANGED = ("negative_prompt", "perp_neg")  # they have no setting, so old results hold
OF_PACK = ("text_encoder",)  # erasers of the pack that are no diffusion model's


class Row(NamedTuple):
    """One row. id: in files of results; peer: its file here; group: OURS or a key of GROUPS.

    steps: most training steps, None for all.
    """

    id: str
    peer: str
    group: str
    steps: int | None = None

    @property
    def module(self):
        return importlib.import_module(f"{__package__}.{self.peer}")


class Method(NamedTuple):
    """A row that is ready to run: `erase(model, clip, concepts, seed, size)`."""

    name: str
    erase: Callable


def peers():
    """Names of the files here that hold a method, ours first."""
    names = sorted(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if m.name not in NO_METHODS and not m.name.startswith("_")
    )
    return sorted(names, key=lambda n: n != OURS)


def known(steps=None):
    """Name on the command line -> Row. A peer's name alone is its official row.

    steps: most training steps, None for all.
    """
    found = {}
    for peer in peers():
        if peer == OURS or peer in UNCHANGED:
            found[peer] = Row(peer, peer, OURS if peer == OURS else OFFICIAL)
            continue
        if peer in OF_PACK:
            found[peer] = Row(peer, peer, PACK)
            continue
        module = importlib.import_module(f"{__package__}.{peer}")
        if steps and hasattr(module, "official_steps"):
            found[peer] = Row(f"{peer}, {steps} steps", peer, OFFICIAL, steps)
            continue
        found[peer] = Row(f"{peer} {OFFICIAL}", peer, OFFICIAL)
        if hasattr(module, "grid"):
            found |= {
                f"{peer} {group}": Row(f"{peer} {group}", peer, group) for group in (SWEEP, SAME)
            }
    return found


def grid(row, kind):
    """The settings among which a row's is chosen, of a kind of concepts."""
    return row.module.SAME if row.group == SAME else row.module.grid(kind)


def read(row, clip, concepts, kind):
    """What a row reads of a ConceptSet, whatever its setting."""
    if row.group == SAME:
        return _information.read(clip, concepts)
    return row.module.read(clip, concepts, kind)


def erased(row, model, concepts, found, setting, seed):
    """Erased of what a row has read, at a setting."""
    solve = row.module.same_edits if row.group == SAME else row.module.edits
    return _shared.erased(model, row.module.NAME, concepts, solve(model, found, setting, seed))


def method(row, concepts, setting=None):
    """The Method of a row; concepts: the first ConceptSet. setting: of a row that is tuned."""
    module = row.module
    if row.steps:
        official = module.official_steps(concepts)
        steps = min(row.steps, official)
        name = module.NAME
        if steps < official:
            name = f"{name} ({steps} of {official} steps)"

        def shorter(model, clip, concepts, seed, size):
            return module.erase(model, clip, concepts, seed=seed, size=size, steps=steps)

        return Method(name, shorter)
    if setting is None:
        return Method(module.NAME, module.erase)

    def tuned(model, clip, concepts, seed, size):
        with torch.inference_mode():
            kind = _shared.kind_of(concepts)
            found = read(row, clip, concepts, kind)
            return erased(row, model, concepts, found, setting, seed)

    return Method(module.NAME, tuned)


def group_of(row_id, row):
    """The group of a row in a file of results. Older files do not name one."""
    if row_id == OURS:
        return OURS
    return row.get("group", OFFICIAL if row_id in UNCHANGED else EARLIER)


def among(table, group):
    """The rows of one group and ours: protocol -> row id -> row, where the group has any."""
    found = {
        protocol: {i: row for i, row in by.items() if group_of(i, row) in (OURS, group)}
        for protocol, by in table.items()
    }
    return {protocol: by for protocol, by in found.items() if set(by) - {OURS}}
