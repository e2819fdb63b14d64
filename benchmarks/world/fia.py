"""FIA on planted concepts, on ordinary objects and styles, and what measuring costs.

The hidden units of planted concepts are known. Judged sentences are ones that the saliency was not
measured with. Costs are measured on the SD1.5 shape.
- recall: share of a planted concept's units among the K hidden units of each block with the largest
  saliency, where K is the number that was planted. Only the sprite world has planted ones;
- forgot: accuracy left on what was forgotten;
- kept: accuracy on everything else over the unedited model's.

Last line with --json: one JSON object.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch

from testbed import pack, sheet
from testbed.shapes import random_model
from testbed.worlds import captions, catalogue, checkpoint
from testbed.worlds.studio import studio

saliency = pack.module("unlearn.pruning.collection")
masks = pack.module("unlearn.pruning.masks")
lockstep = pack.module("unlearn.host.batched_sampling")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")
saliency_prompts = pack.module("unlearn.pruning.prompts")

GIVEN = ("a photo of {a}", "{bare}", "a close-up of {a}", "a picture of {a}")
JUDGED = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
HOW = dict(prompts=8, steps=15, window=10, cfg=3.0, ceiling=0.3)
BEST = {
    "score": "paper",
    "granularity": "neuron",
    "r2": 0.1,
}  # whose figures are reported; every other is in the table
SPRITES = catalogue.SPRITES
# Three objects and a style that are stored anywhere: forgotten where nothing is planted.
ORDINARY = {"sprites": ("fox", "house", "ice cream"), "emoji": ("fox", "house", "pizza")}


def lines(world, forget, styles=False):
    """(templates, base, contexts).

    For objects the base is the kept ones in the same sentences; for styles, a style is added or
    not.
    """
    kept = tuple(n for n in world.objects if n not in forget)
    if styles:
        contexts = tuple(captions.a(n) for n in kept)
        return (
            ("{context} in the style of {concept}", "a photo of {context} by {concept}"),
            ("{context}", "a photo of {context}"),
            contexts,
        )
    plain = tuple(t.format(a="a {concept}", bare="{concept}") for t in GIVEN)
    return plain, tuple(t.replace("{concept}", "{context}") for t in plain), kept


def measured(s, names, styles=False, **more):
    """(SaliencyMap, report) of objects, or of styles."""
    world, kind = s.judge.world, "style: " * styles
    with torch.inference_mode():
        return saliency.collect(
            s.model,
            s.clip,
            text.parse("\n".join(f"{kind}{name}" for name in names)),
            saliency_prompts.OwnLines(*lines(world, names, styles)),
            **{**HOW, "size": 8 * world.size, **more},
        )


def recall(found, planted):
    """Concept -> mean over blocks of its planted units' share among the K most salient columns."""
    out = {}
    for concept, parts in zip(found.concepts, found.rankings, strict=True):
        shares = []
        for (key, *_), part in zip(found.layers, parts, strict=True):
            units = set(
                planted[concept.name][
                    key.removeprefix("diffusion_model.").removesuffix(".ff.net.2.weight")
                ]
            )
            shares.append(
                len(units & set(part.columns.topk(len(units)).indices.tolist())) / len(units)
            )
        out[concept.name] = float(np.mean(shares))
    return out


def shots(names, each, styles=(), world=SPRITES):
    """Captions of objects in judged sentences, and of styles."""
    plain = [
        captions.plain(n, JUDGED[(i + j) % len(JUDGED)])
        for i, n in enumerate(names)
        for j in range(each)
    ]
    return plain + [
        captions.styled(world.objects[(5 * j + i) % len(world.objects)], s, "{a} by {style}")
        for i, s in enumerate(styles)
        for j in range(2)
    ]


def accuracy(s, plan, model=None, steps=12):
    """Label -> accuracy; a styled caption counts for its style alone."""
    hits = {}
    for caption, look in zip(plan, s.look(plan, seed=300, model=model, steps=steps), strict=True):
        label = caption.style or caption.name
        hits.setdefault(label, []).append(
            look.style == label if caption.style else look.names[0] == label
        )
    return {label: float(np.mean(h)) for label, h in hits.items()}


def rate(table, labels):
    return float(np.mean([table[label] for label in labels]))


def row(s, found, gone, kept, plan, before, steps, **settings):
    """{forgot, kept, pruned} of one fused patch."""
    patch, *_ = masks.fuse([found], **settings)
    pruned = np.mean([float(e.mask().expand(e.shape).float().mean()) for _, e in patch.edits])
    with torch.inference_mode():
        after = accuracy(s, plan, patching.apply(s.model, patch)[0], steps)
    return {
        "forgot": round(rate(after, gone), 3),
        "kept": round(rate(after, kept) / rate(before, kept), 3),
        "pruned": round(float(pruned), 4),
    }


class Table:
    """Rows of figures on one world; the unedited model draws each plan once."""

    def __init__(self, s):
        self.s, self.world, self.before, self.rows = s, s.judge.world, {}, []

    def add(self, what, f, gone, kept, plan, steps=8, **settings):
        if what not in self.before:
            self.before[what] = accuracy(self.s, plan, steps=steps)
            said = {n: round(v, 2) for n, v in self.before[what].items()}
            print("unedited:", said, flush=True)
        found = row(self.s, f, gone, kept, plan, self.before[what], steps, **settings)
        entry = {"what": what, "score": f.settings["score"], **settings, **found}
        self.rows.append(entry)
        print(entry, flush=True)
        return entry


def planted_part(table, planted, shares, quick):
    """score -> recall; adds the rows of forgetting all planted concepts but the last."""
    s, world, names = table.s, table.world, list(planted)
    found = {}
    for score in ("paper", "wanda"):
        found[score], report = measured(s, names, score=score)
        print(report.splitlines()[0], flush=True)
    recalls = {score: recall(f, planted) for score, f in found.items()}
    print("recall:", recalls, flush=True)
    gone, kept = names[:-1], [names[-1], *world.objects, *world.styles]
    few = shots(names, 4) + shots(world.objects, 1, world.styles)
    forget = {score: measured(s, gone, score=score)[0] for score in found}
    for f in forget.values():
        for granularity in ("connection", "neuron", "row"):
            for r2 in shares:
                what = f"planted {', '.join(gone)}"
                table.add(what, f, gone, kept, few, granularity=granularity, r2=r2)
    if not quick:
        best = {"granularity": BEST["granularity"], "r2": BEST["r2"]}
        chosen, *_ = masks.fuse([forget[BEST["score"]]], **best)
        with torch.inference_mode():
            patched = patching.apply(s.model, chosen)[0]
        looked_at = shots(gone, 2) + shots([names[-1], *world.objects[1::3]], 1)
        sheet.of_studio(s, looked_at, gone, patched, Path("output") / "fia.png")
        more = shots([*names, *world.objects], 4, world.styles)
        what = "planted, the best again with more pictures"
        table.add(what, forget[BEST["score"]], gone, kept, more, 12, **best)
    return recalls


def ordinary_part(table, shares, granularities, scores):
    """Adds the rows of three objects, and of a style, that nobody planted."""
    s, world = table.s, table.world
    gone = list(ORDINARY.get(world.name, world.order[:3]))
    kept = [n for n in world.objects if n not in gone]
    plan = shots(gone, 4) + shots(kept, 1)
    style, *others = world.styles
    styled = shots((), 0, world.styles, world)
    for score in scores:
        f, fs = measured(s, gone, score=score)[0], measured(s, [style], True, score=score)[0]
        for granularity in granularities:
            for r2 in shares:
                how = {"granularity": granularity, "r2": r2}
                table.add("objects " + ", ".join(gone), f, gone, kept, plan, **how)
                table.add(f"style {style}", fs, [style], others, styled, **how)


def world(name, shares, quick, granularities, scores):
    """(recall, table) on a world; recall is empty where nothing is planted."""
    s = studio(name)
    table, planted, recalls = Table(s), checkpoint.planted(s.judge.world.file), {}
    if planted:
        recalls = planted_part(table, planted, (0.03, 0.1), quick)
    if not quick or not planted:
        ordinary_part(table, shares, granularities, scores)
    return recalls, table.rows


class Peak:
    """Peak resident memory of a `with` block in MB above the start, as Linux counts it.

    Such blocks cannot be nested: each begins the count anew.
    """

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        self.top, self.base = 0.0, self._most()
        return self

    def _most(self):
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024

    def __exit__(self, *_):
        self.top = self._most() - self.base


class Nothing:
    """A watch that measures nothing, for the time of plain sampling."""

    def begin(self, guider):
        self.start = time.perf_counter()

    def end(self):
        self.seconds = time.perf_counter() - self.start

    def batch(self, chosen, b):
        pass

    group = batch


def cost(prompts=2, window=1, size=512):
    """Time and memory of measuring one concept on a full SD1.5 UNet with random weights.

    Both are relative to plain sampling of the same prompts.
    """
    clip, model = studio().clip, random_model("SD1.5")
    concepts = text.parse("cat")
    how = dict(steps=50, window=window, cfg=7.5, size=size)
    texts = [
        t
        for *_, part in saliency_prompts.build_groups(clip, concepts.concepts, prompts)
        for t in part
    ]
    seeds, groups = (
        [1244 + i % prompts for i in range(2 * prompts)],
        [list(range(prompts)), list(range(prompts, 2 * prompts))],
    )
    plain = []
    with torch.inference_mode():
        for _ in range(2):
            watch = Nothing()
            with Peak() as alone:
                plan = lockstep.SamplingPlan(texts, seeds, groups, **how)
                calls = lockstep.sample(model, clip, plan, watch)
            plain.append(watch.seconds)
            print(f"plain sampling: {watch.seconds:.1f} s, {alone.top:.0f} MB", flush=True)
        with Peak() as hooked:
            found, report = saliency.collect(model, clip, concepts, prompts=prompts, **how)
        seconds = float(report.split(" UNet calls, ")[1].split(" s")[0])
        print(f"{report.splitlines()[0]} {hooked.top:.0f} MB", flush=True)
        longer = {}
        for more in (
            (2, 1),
            (6, 4),
        ):  # small pictures: the statistics are of the weights' size, whatever the pictures'
            with Peak() as small:
                saliency.collect(
                    model,
                    clip,
                    concepts,
                    prompts=more[0],
                    steps=50,
                    window=more[1],
                    cfg=7.5,
                    size=64,
                )
            longer[f"{more[0]} prompts, {more[1]} steps"] = round(small.top)
    print(f"at 64 pixels: {longer} MB", flush=True)
    extra = round(hooked.top - alone.top)
    return {
        "overhead": round(seconds / min(plain), 3),
        "peak_extra_mb": extra,
        "peak_mb_at_64_pixels": longer,
        "unet_calls": calls,
    }


def reported(recalls, table):
    """The figures of BEST on planted concepts."""
    rows = [r for r in table if r["what"].startswith("planted")]
    best = [r for r in rows if all(r[k] == v for k, v in BEST.items())][-1]
    found = {"recall": round(float(np.mean(list(recalls[BEST["score"]].values()))), 3)}
    return found | {"settings": BEST} | {k: best[k] for k in ("forgot", "kept")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--part", choices=["all", "world", "cost"], default="all")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument(
        "--quick", action="store_true", help="planted concepts only, fewer pictures"
    )
    parser.add_argument("--shares", default="0.03,0.1", help="values of r2 for ordinary objects")
    parser.add_argument("--granularities", default="connection,neuron", help="for these as well")
    parser.add_argument("--scores", default="paper,wanda", help="for these as well")
    parser.add_argument(
        "--size", type=int, default=512, help="pixels of the pictures in the cost part"
    )
    given = parser.parse_args()
    result = {}
    if given.part != "world":
        result |= cost(size=given.size)
    if given.part != "cost":
        shares = [float(r2) for r2 in given.shares.split(",")]
        more = given.granularities.split(","), given.scores.split(",")
        recalls, table = world(given.world, shares, given.quick, *more)
        if recalls:
            result |= reported(recalls, table)
        result |= {"recalls": recalls, "table": table}
    print(json.dumps(result) if given.json else {k: v for k, v in result.items() if k != "table"})


if __name__ == "__main__":
    main()
