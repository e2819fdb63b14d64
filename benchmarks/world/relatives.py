"""How well a patch works on relatives of its model, and how well one refitted to them does.

A relative is a mix of the world's UNet with the other world's (share of the other's weights), or
the UNet with random noise on every matrix (relative to the matrix' own size). No other world has a
UNet of the emoji world's shape, so there it is noise alone. Two objects are
forgotten, everything else is kept. Each line: the fingerprint's difference, and shares of pictures
in which the judge sees what was asked for, before and after the patch: forgotten objects, kept
objects, superclasses. Last line with --json: one JSON object.
"""

import argparse
import json
import time

import torch

from testbed import pack, trial
from testbed.worlds import catalogue
from testbed.worlds.checkpoint import read_compact

OTHER = {"sprites": "glyphs", "glyphs": "sprites"}
MIXES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
NOISES = (0.1, 0.2, 0.4, 0.8)


def unets(name):
    """The state dicts of a world's UNet and of the other world's if it has one, float32."""
    found = []
    for world in (name, *([OTHER[name]] if name in OTHER else [])):
        state = read_compact(catalogue.get(world).file)
        found.append({key: w.float() for key, w in state.items()})
    return found


def loaded(state):
    """A MODEL of a UNet's state dict."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict({k: w.half() for k, w in state.items()})


def mixed(name, share):
    """A MODEL with this share of the other world's weights."""
    one, other = unets(name)
    return loaded({k: (1 - share) * w + share * other[k] for k, w in one.items()})


def noisy(name, size):
    """A MODEL with noise on every matrix, of this share of the matrix' root mean square."""
    one = unets(name)[0]
    g = torch.Generator().manual_seed(7)
    for key, w in one.items():
        if w.ndim > 1:
            one[key] = w + size * w.square().mean().sqrt() * torch.randn(w.shape, generator=g)
    return loaded(one)


def lists(name):
    """(forgotten objects, forget text, kept objects that are looked at, superclasses)."""
    world = catalogue.get(name)
    gone = world.order[:2]
    text = "\n".join(f"{o} -> {world.superclass[o]}" for o in gone)
    kept = [o for o in world.objects if o not in gone]
    return gone, text, kept[:: len(kept) // 4][:4], tuple(world.superclass[o] for o in gone)


def rates(name, model, pictures):
    """Shares of pictures that show what was asked for: forgotten, kept, superclasses."""
    gone, _, kept, supers = lists(name)
    found = []
    for names in (gone, kept, supers):
        seen = [trial.rate(o, model, pictures, world=name) for o in names]
        found.append(round(sum(seen) / len(seen), 2))
    return found


def difference(patch, model):
    """The fingerprint's difference between a patch and a MODEL."""
    weights = pack.module("unlearn.host.weights")
    return patch.fingerprint.difference(weights.fingerprint(model, patch.fingerprint.samples))


def solved(name, model=None):
    """The patch of a world's lists on a MODEL, None for the world's own."""
    gone, text, _, _ = lists(name)
    return trial.solve(text, trial.everything_but(*gone, world=name), world=name, model=model)[0]


def grades(name, labels, pictures):
    """Rows: a patch of the world's own model on each of its relatives."""
    patch = solved(name)
    made = {f"mix {share:g}": (mixed, share) for share in MIXES if name in OTHER}
    made |= {f"noise {size:g}": (noisy, size) for size in NOISES}
    for label, (make, size) in made.items():
        if labels and label not in labels:
            continue
        model = make(name, size)
        patched, _ = trial.apply(patch, model=model)
        yield (
            label,
            {
                "difference": round(difference(patch, model), 3),
                "before": rates(name, model, pictures),
                "after": rates(name, patched, pictures),
            },
        )


def refits(name, labels, pictures):
    """Rows: the patch as it is, refitted, and made there from the same lists.

    "all": a patch that was made on the other world's model with this world's lists.
    """
    refit, recipe = (pack.module(f"unlearn.{m}") for m in ("closed_form.refit", "provenance"))
    own = solved(name)
    made = {"noise 0.1": (own, noisy, 0.1), "noise 0.2": (own, noisy, 0.2)}
    if name in OTHER:
        foreign = solved(name, trial.studio(OTHER[name]).model)
        made = {"mix 0.05": (own, mixed, 0.05), "mix 0.2": (own, mixed, 0.2)}
        made["all"] = (foreign, mixed, 0.0)
    for label, (patch, make, size) in made.items():
        if labels and label not in labels:
            continue
        model = make(name, size)
        how = recipe.recipe(patch.provenance[0])
        again, _ = refit.refit(model, trial.studio(name).clip, how, folder=trial.STATES)
        there = solved(name, model)
        row = {"difference": round(difference(patch, model), 3)}
        row["same as made there"] = again.digest == there.digest
        row["before"] = rates(name, model, pictures)
        for kind, applied in (("as it is", patch), ("refitted", again)):
            row[kind] = rates(name, trial.apply(applied, model=model)[0], pictures)
        yield label, row


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--part", choices=("grades", "refits"), default="grades")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--only", default="", help="rows, as in 'mix 0.1,noise 0.4'; all if empty")
    parser.add_argument("--pictures", type=int, default=8, help="of each name")
    given = parser.parse_args()
    rows = {"grades": grades, "refits": refits}[given.part]
    labels, table, start = [part for part in given.only.split(",") if part], {}, time.time()
    for label, row in rows(given.world, labels, given.pictures):
        table[label] = row
        print(f"{label}: {row} after {time.time() - start:.0f} s", flush=True)
    if given.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
