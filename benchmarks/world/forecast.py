"""Is the collateral forecast true? On the sprite world, without a keep list: which objects lose accuracy, and which were foretold to.

Forget sets of four objects, each forgotten by plain UCE and by our solve with hardly anything held, for edits that harm nothing tell
nothing. An object is harmed when its accuracy falls by at least `--drop`. AUC: the chance that a harmed object was ranked worse than an
unharmed one, by each measure, over all edits and as the mean within each. Then auto-protect: what it does to kept and forgot. Last line
with --json: one JSON object.
"""

import argparse
import json

import torch

from testbed import pack
from testbed.worlds.sprites import OBJECTS
from testbed.worlds.studio import studio

from .scapre_world import CACHE, ORDER, Bench, patching, shots

forecast = pack.module("unlearn.analysis.forecast")
kernel = pack.module("kernels.forecast")
states = pack.module("unlearn.files.text_cache")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")

HARMFUL = {"uce": {"variant": "uce"}, "loose": {"preserve": 0.001, "anchor": 0.005, "drift": 1.0}}


def auc(values, harmed):
    """The chance that a harmed one has the smaller value, ties counted half; None where all or none are harmed."""
    bad, good = (
        [v for v, h in zip(values, harmed, strict=True) if h],
        [v for v, h in zip(values, harmed, strict=True) if not h],
    )
    if not bad or not good:
        return None
    return sum((b < g) + 0.5 * (b == g) for b in bad for g in good) / (len(bad) * len(good))


def moments_of(model, patch):
    edits, out = dict(patch.edits), forecast.WeightGrams()
    for layer in layers.cross_attention(model):
        w0 = weights.read(model, layer.key)
        out.add_edited(w0, edits[layer.key].change(w0, 1.0))
    return out


def measured(s, patch, names, studied):
    """measure -> {name: value}, smaller where more harm is expected."""
    m = moments_of(s.model, patch)
    hits = [forecast.WordImpact(n, 1.0, False) for n in names]
    seen = forecast.glanced(s.model, patching.apply(s.model, patch)[0], s.clip, hits, 64)
    return {
        "glance": {h.name: h.retention for h in seen},
        "survival": {
            n: float(kernel.retention(x[None], m.before, m.cross, w[None]))
            for n, (x, w) in studied.items()
            if n in names
        },
        "change of states": {
            n: -float((kernel.change(x, m.before, m.cross, m.after) * w).sum() / w.sum())
            for n, (x, w) in studied.items()
            if n in names
        },
    }


def ranked(rows):
    """Over edits, each {measure: {name: value}} with {name: harmed}: measure -> (AUC over all, mean AUC within an edit)."""
    out = {}
    for measure in rows[0][0]:
        pairs = [([table[measure][n] for n in harm], list(harm.values())) for table, harm in rows]
        within = [a for a in (auc(v, h) for v, h in pairs) if a is not None]
        everything = auc([x for v, _ in pairs for x in v], [x for _, h in pairs for x in h])
        out[measure] = {
            "all": everything and round(everything, 3),
            "within": round(sum(within) / max(1, len(within)), 3),
        }
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--sets", type=int, default=4, help="how many forget sets")
    parser.add_argument("--count", type=int, default=4, help="objects in each")
    parser.add_argument("--pictures", type=int, default=10, help="of every object")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--drop", default="0.25,0.5", help="losses of accuracy that count as harm")
    parser.add_argument("--protect", type=float, default=0.8, help="0: leave auto-protect out")
    given = parser.parse_args()
    bench = Bench(studio(), shots(plain=given.pictures, styled=0), given.steps)
    s, before, rows = bench.studio, bench.objects(bench.before), []
    with torch.inference_mode():
        studied = forecast.study(s.clip, states.TextStateCache(s.clip, CACHE).get, OBJECTS)
    table = []
    for k in range(given.sets):
        order = ORDER[3 * k % len(ORDER) :] + ORDER
        forget = order[: given.count]
        names = [n for n in OBJECTS if n not in forget]
        for name, settings in HARMFUL.items():
            with torch.inference_mode():
                patch = bench.solve(given.count, False, order, **settings)[0]
                foretold, plain = measured(s, patch, names, studied), bench.score(patch, forget)
            rows.append((foretold, {n: before[n] - plain.objects[n] for n in names}))
            table.append(
                {"edit": name, "forget": forget, "plain": [round(x, 3) for x in plain[:2]]}
            )
            if given.protect and name == "loose":
                with torch.inference_mode():
                    safe = bench.run(
                        f"set {k} auto-protect",
                        given.count,
                        False,
                        order,
                        protect=given.protect,
                        size=64,
                        **settings,
                    )
                table[-1]["protected"] = [round(x, 3) for x in safe[:2]]
            print(f"{name}, {', '.join(forget)}: {table[-1]}", flush=True)
    result = {"sets": table}
    for drop in map(float, given.drop.split(",")):
        harm = [(foretold, {n: x >= drop for n, x in lost.items()}) for foretold, lost in rows]
        count = sum(sum(h.values()) for _, h in harm)
        result[f"auc, harm from {drop}"] = {
            "harmed": count,
            "of": sum(len(h) for _, h in harm),
            **ranked(harm),
        }
    print(json.dumps(result) if given.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
