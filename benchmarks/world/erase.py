"""ScaPre `anchored` with other settings on a world, in one run and with the same seeds.

Forgets three objects and a style. Judged sentences are ones that no solve was given: plain ones,
with a style, and with two objects. forgot: accuracy left on forgotten labels. kept: accuracy on
kept labels over the unedited model's. Last line with --json: one JSON object.
"""

import argparse
import json
import time

import numpy as np
import torch

from testbed import judged, pack
from testbed.worlds.studio import studio

scapre = pack.module("unlearn.closed_form.solve")
patching = pack.module("unlearn.host.patching")

SETTINGS = {
    "default": {},
    "gentle": {"strength": "gentle"},
    "strong": {"strength": "strong"},
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


TASKS = {task.world.name: task for task in (judged.SPRITES, judged.EMOJI)}


def found(s, task, plan, model=None):
    """(rate on forgotten labels, rate on kept labels, misses by label)."""
    looks = s.look([x.caption for x in plan], seed=500, model=model)
    rights = [right for shot, look in zip(plan, looks, strict=True) for right in shot.labels(look)]
    misses = {}
    for shot, look in zip(plan, looks, strict=True):
        if shot.caption.name not in task.forget and not look.correct:
            misses[shot.caption.name] = misses.get(shot.caption.name, 0) + 1
    gone = np.mean([there for forgotten, there in rights if forgotten])
    kept = np.mean([there for forgotten, there in rights if not forgotten])
    return float(gone), float(kept), misses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--world", choices=TASKS, default="sprites")
    parser.add_argument("--only", default="", help="comma-separated names of settings")
    parser.add_argument("--rounds", type=int, default=2, help="pictures per object")
    given = parser.parse_args()
    task = TASKS[given.world]
    s, plan = studio(given.world), task.many_shots(given.rounds)
    before = found(s, task, plan)
    print(
        f"{'unedited':34} forgot {before[0]:.2f} kept {before[1]:.2f} of {len(plan)} pictures",
        flush=True,
    )
    table = {}
    for name in [n.strip() for n in given.only.split(",") if n.strip()] or SETTINGS:
        settings = dict(SETTINGS[name])
        start = time.time()
        with torch.inference_mode():
            wanted = task.concepts(keep=settings.pop("keep", True))
            patch, _, words = scapre.solve(
                s.model, s.clip, wanted, scapre.SolveSettings.of(**settings)
            )
            seconds = time.time() - start
            forgot, kept, misses = found(s, task, plan, patching.apply(s.model, patch)[0])
        table[name] = {
            "forgot": round(forgot, 3),
            "kept": round(kept / before[1], 3),
            "seconds": round(seconds, 1),
        }
        worst = ", ".join(f"{k} {v}" for k, v in sorted(misses.items(), key=lambda x: -x[1])[:5])
        print(
            f"{name:34} forgot {forgot:.2f} kept {kept / before[1]:.2f} in {seconds:.0f} s; "
            f"missed: {worst}",
            flush=True,
        )
    if given.json:
        print(json.dumps({"unedited": before[1], "table": table}))


if __name__ == "__main__":
    main()
