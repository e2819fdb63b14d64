"""What an edit should be made of: ScaPre `anchored` with other rows, keeps and weights, on the sprite world, one run, same seeds.

Forgets three objects and a style. Everything is judged on sentences the solve never saw: plain, with a style, and two sprites in one
sentence. forgot: accuracy left on forgotten labels. kept: accuracy on kept labels over the unedited model's. Last line with --json:
one JSON object.
"""

import argparse
import json
import time

import numpy as np
import torch

from testbed import pack
from testbed.demo import FORGET, PAIR, PLAIN, STYLE, STYLED, Shot
from testbed.worlds import captions
from testbed.worlds.sprites import OBJECTS, STYLES, SUPERCLASS
from testbed.worlds.studio import studio

scapre = pack.module("unlearn.closed_form.solve")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")

SETTINGS = {
    "default": {},
    "last token only": {"tokens": "last"},
    "no everyday captions": {"prior": False},
    "erase 10": {"erase": 10.0},
    "erase 1000": {"erase": 1000.0},
    "preserve 10": {"preserve": 10.0},
    "anchor 1": {"anchor": 1.0},
    "spectral 1": {"spectral": 1.0},
    "informax": {"informax": True},
    "no keep list": {"keep": False},
    "no keep list, no captions": {"keep": False, "prior": False},
}


def concepts(forget=FORGET, style=STYLE, keep=True):
    """The ConceptSet that the demo forgets, with all else on the keep list."""
    kept = [n for n in OBJECTS if n not in forget] + [s for s in STYLES if s != style]
    objects = text.parse(
        "\n".join(f"{n} -> {SUPERCLASS[n]}" for n in forget), "\n".join(kept) if keep else ""
    )
    return text.merge(objects, text.parse(style, "", "style"))


def shots(rounds):
    """Every object plain `rounds` times, styled once, and in a pair once, in sentences the solve does not study."""
    out = []
    others = [s for s in STYLES if s != STYLE]
    for i, name in enumerate(OBJECTS):
        times = 2 * rounds if name in FORGET else rounds
        out += [
            Shot(captions.plain(name, PLAIN[(i + j) % len(PLAIN)]), name in FORGET)
            for j in range(times)
        ]
        if i % 2 == 0 or name in FORGET:
            out.append(Shot(captions.styled(name, others[i % 5], STYLED[i % 2]), name in FORGET))
        if i % 3 == 0 or name in FORGET:
            out.append(
                Shot(
                    captions.pair(name, OBJECTS[(7 * i + 5) % len(OBJECTS)], PAIR[i % 2]),
                    name in FORGET,
                )
            )
    kept = [n for n in OBJECTS if n not in FORGET]
    return out + [
        Shot(captions.styled(kept[3 * i % len(kept)], STYLE, STYLED[i % 2]), True)
        for i in range(3 * rounds)
    ]


def found(s, plan, model=None):
    """(rate on forgotten labels, rate on kept labels, misses by label)."""
    looks = s.look([x.caption for x in plan], seed=500, model=model)
    rights = [right for shot, look in zip(plan, looks, strict=True) for right in shot.right(look)]
    misses = {}
    for shot, look in zip(plan, looks, strict=True):
        if shot.caption.name not in FORGET and not look.correct:
            misses[shot.caption.name] = misses.get(shot.caption.name, 0) + 1
    rate = lambda gone: float(np.mean([there for forgotten, there in rights if forgotten == gone]))
    return rate(True), rate(False), misses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--only", default="", help="comma-separated names of settings")
    parser.add_argument("--rounds", type=int, default=2, help="pictures per object")
    given = parser.parse_args()
    s, plan = studio(), shots(given.rounds)
    before = found(s, plan)
    print(
        f"{'unedited':34} forgot {before[0]:.2f} kept {before[1]:.2f} of {len(plan)} pictures",
        flush=True,
    )
    table = {}
    for name in [n.strip() for n in given.only.split(",") if n.strip()] or SETTINGS:
        settings = dict(SETTINGS[name])
        start = time.time()
        with torch.inference_mode():
            wanted = concepts(keep=settings.pop("keep", True))
            patch, _, words = scapre.solve(
                s.model, s.clip, wanted, scapre.SolveSettings.of(**settings)
            )
            seconds = time.time() - start
            forgot, kept, misses = found(s, plan, patching.apply(s.model, patch)[0])
        table[name] = {
            "forgot": round(forgot, 3),
            "kept": round(kept / before[1], 3),
            "seconds": round(seconds, 1),
        }
        worst = ", ".join(f"{k} {v}" for k, v in sorted(misses.items(), key=lambda x: -x[1])[:5])
        print(
            f"{name:34} forgot {forgot:.2f} kept {kept / before[1]:.2f} in {seconds:.0f} s; missed: {worst}",
            flush=True,
        )
    if given.json:
        print(json.dumps({"unedited": before[1], "table": table}))


if __name__ == "__main__":
    main()
