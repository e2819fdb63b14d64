"""What each part and each constant of ScaPre's default is worth, judged by pictures.

It takes the tries of `bench crowded` (ablation, sensitivity, weights) through protocols of
`bench peers`, on any worlds, with bootstrap intervals. Results are written after every try, with
tables beside them, and a later run goes on from there. Last line with --json: one JSON object.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.peers import Erased, protocols, scores
from testbed import pack
from testbed.worlds import alike, catalogue
from testbed.worlds.studio import studio

from . import crowded
from .scapre_world import CACHE

scapre = pack.module("unlearn.closed_form.solve")
patching = pack.module("unlearn.host.patching")

PROTOCOLS = "look-alikes,forget 12,superclass,styles"
SETTINGS = ("pictures", "steps", "crowded", "crowded_words")


def erased(shown, protocol, one):
    """What a Try leaves of a model after all rounds of a protocol, as Erased."""
    model, size = shown.model, 0
    settings = scapre.SolveSettings.of(**one.settings)
    with crowded.constants(**one.constants), torch.inference_mode():
        for concepts in protocol.rounds:
            patch = scapre.solve(model, shown.clip, concepts, settings, folder=Path(CACHE))[0]
            model, size = patching.apply(model, patch)[0], size + patch.nbytes
    return Erased(model, size)


def said(row):
    """The figures of one row with their intervals."""
    return ", ".join(f"{k} {v:.2f} ({low:.2f} to {high:.2f})" for k, (v, low, high) in row.items())


def markdown(results):
    """The overall of every try on every protocol as tables, one for each world."""
    s = results["settings"]
    out = [
        "# Parts and constants of ScaPre's default, in pictures",
        f"Made by `python3 dev.py bench parts`; do not edit. {s['pictures']} pictures of what is "
        f"forgotten and twice as many of what is kept, {s['steps']} sampling steps. Overall is the "
        "harmonic mean of 1 - forgot and kept; in brackets the middle 95 % of "
        f"{scores.RESAMPLES} bootstrap resamples.",
    ]
    if s["crowded"]:
        how = f"`--crowded {s['crowded']} --crowded-words {s['crowded_words']}`"
        out.append(f"The words of look-alikes were made more alike: {how}.")
    for world, by in results["worlds"].items():
        tries = dict.fromkeys(name for rows in by.values() for name in rows)
        lines = [[name, *(cell(rows.get(name)) for rows in by.values())] for name in tries]
        out += [f"## {world}", records.table(["try", *by], lines)]
    return "\n\n".join(out) + "\n"


def cell(row):
    """The overall of a row with its interval; '' where it is not measured."""
    return "" if row is None else "{:.2f} ({:.2f} to {:.2f})".format(*row["overall"])


def save(results, path):
    """Writes the results and their tables."""
    records.save(results, path)
    records.write(path.with_suffix(".md"), markdown(results))


def run(world, given, tries, results):
    """Every protocol and Try on one world."""
    shown, known = studio(world.name), results["worlds"].setdefault(world.name, {})
    handles = []
    if given.crowded:
        handles = alike.make_alike(shown.clip, world, given.crowded, given.crowded_words)
    for name in protocols.possible(world, given.protocols.split(",")):
        rows = known.setdefault(name, {})
        open_ = [one for one in tries if one.name not in rows]
        if not open_:
            continue
        protocol = protocols.MAKERS[name](world, given.pictures)
        before = protocols.draw(shown, protocol, None, given.steps)
        for one in open_:
            after = protocols.draw(shown, protocol, erased(shown, protocol, one), given.steps)
            rows[one.name] = scores.rates(before.marks, after.marks)
            save(results, given.out)
            print(f"{world.name}, {name}, {one.name}: {said(rows[one.name])}", flush=True)
    for handle in handles:
        handle.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--part", choices=crowded.PARTS, default="ablation")
    parser.add_argument("--tries", default="", help="names of tries, by comma; all unless named")
    parser.add_argument("--worlds", default=",".join(catalogue.WORLDS))
    parser.add_argument("--protocols", default=PROTOCOLS)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--crowded", type=float, default=0.0, help="as in `bench peers`")
    parser.add_argument("--crowded-words", choices=alike.WORDS, default="both")
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    given = parser.parse_args()
    tries = crowded.PARTS[given.part]()
    names = [one.name for one in tries]
    wanted = given.tries.split(",") if given.tries else names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"there is no try {unknown[0]!r}; there are {', '.join(names)}")
    results = records.load(given.out, {name: getattr(given, name) for name in SETTINGS})
    for name in given.worlds.split(","):
        run(catalogue.get(name), given, [one for one in tries if one.name in wanted], results)
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
