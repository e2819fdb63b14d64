"""Is the collateral forecast true? Measured on a world, without a keep list.

Sets of objects are forgotten by UCE and by our solve with hardly anything kept, because edits that
harm nothing say nothing about a forecast. An object is harmed when its accuracy falls by at least
`--drop`. AUC is the chance that a harmed object was ranked worse than an unharmed one. It is given
for each measure, over all edits and as the mean within each edit. Then auto-protect is switched on,
and the accuracy on kept and forgotten objects is measured again. With --json the last line is one
JSON object.
"""

import argparse
import json

import torch

from testbed import pack
from testbed.worlds import catalogue
from testbed.worlds.studio import studio

from .scapre_world import CACHE, Bench, patching, shots

forecast = pack.module("unlearn.analysis.forecast")
kernel = pack.module("kernels.forecast")
states = pack.module("unlearn.files.text_cache")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")

HARMFUL = {"uce": {"variant": "uce"}, "loose": {"preserve": 0.001, "anchor": 0.005, "drift": 1.0}}


def auc(values, harmed):
    """The chance that a harmed object has the smaller value; ties count half.

    None where all or none are harmed.
    """
    bad = [value for value, is_harmed in zip(values, harmed, strict=True) if is_harmed]
    good = [value for value, is_harmed in zip(values, harmed, strict=True) if not is_harmed]
    if not bad or not good:
        return None
    wins = sum((b < g) + 0.5 * (b == g) for b in bad for g in good)
    return wins / (len(bad) * len(good))


def grams_of(model, patch):
    """The WeightGrams of a patch on a MODEL."""
    edits, grams = dict(patch.edits), forecast.WeightGrams()
    for layer in layers.cross_attention(model):
        w0 = weights.read(model, layer.key)
        grams.add_edited(w0, edits[layer.key].change(w0, 1.0))
    return grams


def measured(s, patch, names, contrasts):
    """measure -> {name: value}; the value is smaller where more harm is expected."""
    grams = grams_of(s.model, patch)
    edited = patching.apply(s.model, patch)[0]
    listed = [forecast.WordImpact(name, 1.0, False) for name in names]
    size = 8 * s.judge.world.size
    predicted = forecast.impacts_on_predictions(s.model, edited, s.clip, listed, size)
    chosen = {name: contrast for name, contrast in contrasts.items() if name in names}
    change = {}
    for name, (rows, weight) in chosen.items():
        moved = kernel.change(rows, grams.before, grams.cross, grams.after)
        change[name] = -float((moved * weight).sum() / weight.sum())
    return {
        "glance": {impact.name: impact.retention for impact in predicted},
        "survival": {name: forecast.retention(c, grams) for name, c in chosen.items()},
        "change of states": change,
    }


def ranked(edits):
    """measure -> AUC over all edits, and mean AUC within an edit.

    edits: for each edit {measure: {name: value}} and {name: whether it is harmed}.
    """
    out = {}
    for measure in edits[0][0]:
        pairs = []
        for table, harmed in edits:
            pairs.append(([table[measure][name] for name in harmed], list(harmed.values())))
        scores = [auc(values, harmed) for values, harmed in pairs]
        within = [score for score in scores if score is not None]
        values = [value for part, _ in pairs for value in part]
        everything = auc(values, [is_harmed for _, part in pairs for is_harmed in part])
        out[measure] = {
            "all": everything and round(everything, 3),
            "within": round(sum(within) / max(1, len(within)), 3),
        }
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--sets", type=int, default=4, help="how many forget sets")
    parser.add_argument("--count", type=int, default=4, help="objects in each")
    parser.add_argument("--pictures", type=int, default=10, help="of every object")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--drop", default="0.25,0.5", help="losses of accuracy that count as harm")
    parser.add_argument("--protect", type=float, default=0.8, help="0: leave auto-protect out")
    given = parser.parse_args()
    world = catalogue.get(given.world)
    plan = shots(plain=given.pictures, styled=0, world=world)
    bench = Bench(studio(given.world), plan, given.steps)
    s, before, rows = bench.studio, bench.objects(bench.before), []
    with torch.inference_mode():
        contrasts = forecast.text_contrasts(
            s.clip, states.TextStateCache(s.clip, CACHE).get, world.objects
        )
    table = []
    for k in range(given.sets):
        order = world.order[3 * k % len(world.order) :] + world.order
        forget = order[: given.count]
        names = [n for n in world.objects if n not in forget]
        for name, settings in HARMFUL.items():
            with torch.inference_mode():
                patch = bench.solve(given.count, False, order, **settings)[0]
                foretold, plain = measured(s, patch, names, contrasts), bench.score(patch, forget)
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
                        glance_size=8 * world.size,
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
