"""FIA on planted concepts, on ordinary objects and styles, and what measuring costs.

The hidden units of planted concepts are known. Judged sentences are ones that the saliency was not
measured with. Costs are measured on the SD1.5 shape.
- recall: share of a planted concept's units among the K hidden units of each block with the largest
  saliency, where K is the number that was planted;
- forgot: accuracy left on what was forgotten;
- kept: accuracy on everything else over the unedited model's.

Last line with --json: one JSON object.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
import torch

from testbed import pack, sheet
from testbed.shapes import random_model
from testbed.worlds import captions, checkpoint
from testbed.worlds.sprites import OBJECTS, STYLES
from testbed.worlds.studio import studio

saliency = pack.module("unlearn.pruning.collection")
masks = pack.module("unlearn.pruning.masks")
lockstep = pack.module("unlearn.host.batched_sampling")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")
saliency_prompts = pack.module("unlearn.pruning.prompts")

GIVEN = ("a photo of {a}", "{bare}", "a close-up of {a}", "a picture of {a}")
JUDGED = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
HOW = dict(prompts=8, steps=15, window=10, size=64, cfg=3.0, ceiling=0.3)
BEST = {
    "score": "paper",
    "granularity": "neuron",
    "r2": 0.1,
}  # whose figures are reported; every other is in the table


def lines(styles=False):
    """(templates, base, contexts).

    For sprites the base is the old objects in the same sentences; for styles, a style is added or
    not.
    """
    if styles:
        contexts = tuple(captions.a(n) for n in OBJECTS)
        return (
            ("{context} in the style of {concept}", "a photo of {context} by {concept}"),
            ("{context}", "a photo of {context}"),
            contexts,
        )
    plain = tuple(t.format(a="a {concept}", bare="{concept}") for t in GIVEN)
    return plain, tuple(t.replace("{concept}", "{context}") for t in plain), OBJECTS


def measured(s, forget, styles=False, **more):
    """SaliencyMap of the lines in `forget`."""
    with torch.inference_mode():
        return saliency.collect(
            s.model,
            s.clip,
            text.parse(forget),
            saliency_prompts.OwnLines(*lines(styles)),
            **{**HOW, **more},
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


def shots(names, each, styles=()):
    """Captions of objects in judged sentences, and of styles."""
    plain = [
        captions.plain(n, JUDGED[(i + j) % len(JUDGED)])
        for i, n in enumerate(names)
        for j in range(each)
    ]
    return plain + [
        captions.styled(OBJECTS[(5 * j + i) % 24], s, "{a} by {style}")
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


def world(shares, quick):
    """(recall, main row, table) on the sprite world."""
    s, planted = studio(), checkpoint.planted()
    names = list(planted)
    before = {}  # plan -> the unedited model's accuracy
    found = {}
    for score in ("paper", "wanda"):
        found[score], report = measured(s, "\n".join(names), score=score)
        print(report.splitlines()[0], flush=True)
    recalls = {score: recall(f, planted) for score, f in found.items()}
    print("recall:", recalls, flush=True)
    table = []
    gone, kept = names[:-1], [names[-1], *OBJECTS, *STYLES]  # the last planted one stays

    def add(what, f, gone, kept, plan, steps=8, **settings):
        if what not in before:
            before[what] = accuracy(s, plan, steps=steps)
            print("unedited:", {n: round(v, 2) for n, v in before[what].items()}, flush=True)
        found = row(s, f, gone, kept, plan, before[what], steps, **settings)
        entry = {"what": what, "score": f.settings["score"], **settings, **found}
        table.append(entry)
        print(entry, flush=True)
        return entry

    planted_shots = shots(names, 4) + shots(OBJECTS, 1, STYLES)
    forget = {score: measured(s, "\n".join(gone), score=score)[0] for score in found}
    for f in forget.values():
        for granularity in ("connection", "neuron", "row"):
            for r2 in shares:
                add(
                    f"planted {', '.join(gone)}",
                    f,
                    gone,
                    kept,
                    planted_shots,
                    granularity=granularity,
                    r2=r2,
                )
    if not quick:
        best = {"granularity": BEST["granularity"], "r2": BEST["r2"]}
        chosen, *_ = masks.fuse([forget[BEST["score"]]], **best)
        with torch.inference_mode():
            patched = patching.apply(s.model, chosen)[0]
        sheet.of_studio(
            s,
            shots(gone, 2) + shots([names[-1], *OBJECTS[1::3]], 1),
            gone,
            patched,
            Path("output") / "fia.png",
        )
        add(
            "planted, the best again with more pictures",
            forget[BEST["score"]],
            gone,
            kept,
            shots([*names, *OBJECTS], 4, STYLES),
            12,
            **best,
        )
        ordinary = ["fox", "house", "ice cream"]
        for score in found:
            f, fs = (
                measured(s, "\n".join(ordinary), score=score)[0],
                measured(s, "style: van gogh", True, score=score)[0],
            )
            for granularity in ("connection", "neuron"):
                for r2 in (0.03, 0.1):
                    add(
                        "objects " + ", ".join(ordinary),
                        f,
                        ordinary,
                        [n for n in OBJECTS if n not in ordinary],
                        shots(ordinary, 4) + shots([n for n in OBJECTS if n not in ordinary], 1),
                        granularity=granularity,
                        r2=r2,
                    )
                    add(
                        "style van gogh",
                        fs,
                        ["van gogh"],
                        [x for x in STYLES if x != "van gogh"],
                        shots((), 0, STYLES),
                        granularity=granularity,
                        r2=r2,
                    )
    return recalls, table


class Peak:
    """Peak resident memory of a `with` block in MB above the start, sampled every 5 ms."""

    def __enter__(self):
        self.top, self.on = 0.0, True
        self.base = self._now()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _now(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    def _watch(self):
        while self.on:
            self.top = max(self.top, self._now() - self.base)
            time.sleep(0.005)

    def __exit__(self, *_):
        self.on = False
        self.thread.join()


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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--part", choices=["all", "world", "cost"], default="all")
    parser.add_argument(
        "--quick", action="store_true", help="planted concepts only, fewer pictures"
    )
    parser.add_argument(
        "--size", type=int, default=512, help="pixels of the pictures in the cost part"
    )
    given = parser.parse_args()
    result = {}
    if given.part != "world":
        result |= cost(size=given.size)
    if given.part != "cost":
        recalls, table = world((0.03, 0.1), given.quick)
        best = [
            r
            for r in table
            if r["what"].startswith("planted") and all(r[k] == v for k, v in BEST.items())
        ][-1]
        result |= {
            "recall": round(float(np.mean(list(recalls[BEST["score"]].values()))), 3),
            "settings": BEST,
        }
        result |= {k: best[k] for k in ("forgot", "kept")} | {"recalls": recalls, "table": table}
    print(json.dumps(result) if given.json else {k: v for k, v in result.items() if k != "table"})


if __name__ == "__main__":
    main()
