"""Is the collateral forecast true? On the sprite world, without a keep list: which objects lose accuracy, and which were foretold to.

Several forget sets; an object is harmed when its accuracy falls by at least `--drop`. AUC: the chance that a harmed object was ranked
worse than an unharmed one, by each measure. Then auto-protect: what it does to kept and forgot. Last line with --json: one JSON object.
"""

import argparse
import json

import torch

import pack
from world.sprites import OBJECTS

from .scapre_world import CACHE, ORDER, Bench, shots
from .world import studio

forecast = pack.module("nodes.host.forecast")
kernel = pack.module("kernels.forecast")
states = pack.module("nodes.host.states")
weights = pack.module("nodes.host.weights")
layers = pack.module("nodes.host.layers")

MEASURES = ("survival", "change of states", "survival of length", "own token survival")


def auc(values, harmed):
    """The chance that a harmed one has the smaller value, ties counted half; None where all or none are harmed."""
    bad, good = [v for v, h in zip(values, harmed, strict=True) if h], [v for v, h in zip(values, harmed, strict=True) if not h]
    if not bad or not good:
        return None
    return sum((b < g) + 0.5 * (b == g) for b in bad for g in good) / (len(bad) * len(good))


def moments_of(model, patch):
    edits, out = dict(patch.edits), forecast.Moments()
    for layer in layers.cross_attention(model):
        w0 = weights.read(model, layer.key)
        out.edited(w0, edits[layer.key].change(w0, 1.0))
    return out


def measured(studied, m):
    """measure -> value of one word, smaller where more harm is expected."""
    x, w = studied
    length = ((((x @ m.after) * x).sum(1) * w).sum() / (((x @ m.before) * x).sum(1) * w).sum()).sqrt()
    return {
        "survival": float(kernel.survival(x[None], m.before, m.cross, w[None])),
        "change of states": -float((kernel.change(x, m.before, m.cross, m.after) * w).sum() / w.sum()),
        "survival of length": float(length),
        "own token survival": float(kernel.survival(x[:1], m.before, m.cross)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--sets", type=int, default=4, help="how many forget sets")
    parser.add_argument("--count", type=int, default=4, help="objects in each")
    parser.add_argument("--pictures", type=int, default=4, help="of every object")
    parser.add_argument("--drop", type=float, default=0.25)
    parser.add_argument("--preserve", type=float, default=0.02, help="low, so that something is harmed")
    parser.add_argument("--protect", type=float, default=0.8)
    given = parser.parse_args()
    bench = Bench(studio(), shots(plain=given.pictures, styled=0))
    s, before = bench.studio, bench.objects(bench.before)
    fetch = states.States(s.clip, CACHE).fetch
    with torch.inference_mode():
        studied = forecast.study(s.clip, fetch, OBJECTS)
    values, harmed, table = {k: [] for k in MEASURES}, [], []
    for k in range(given.sets):
        order = ORDER[3 * k % len(ORDER) :] + ORDER
        forget = order[: given.count]
        how = {"order": order, "keep": False, "prior": False, "preserve": given.preserve}
        with torch.inference_mode():
            patch, _, _ = bench.solve(given.count, **how)
            m = moments_of(s.model, patch)
            plain = bench.score(patch, forget)
            safe = bench.run(f"set {k} auto-protect {given.protect}", given.count, protect=given.protect, **how)
        for name in OBJECTS:
            if name not in forget:
                harmed.append(before[name] - plain.objects[name] >= given.drop)
                for key, value in measured(studied[name], m).items():
                    values[key].append(value)
        table.append({"forget": forget, "plain": plain[:2], "protected": safe[:2]})
        print(
            f"set {k}: {', '.join(forget)}: forgot {plain.forgot:.2f} kept {plain.kept:.2f}; harmed so far {sum(harmed)} of {len(harmed)}",
            flush=True,
        )
    result = {"auc": {k: auc(v, harmed) for k, v in values.items()}, "harmed": sum(harmed), "objects": len(harmed), "sets": table}
    print(json.dumps(result) if given.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
