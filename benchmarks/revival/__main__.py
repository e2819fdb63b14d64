"""`dev.py bench revival`: which attacks bring an erased concept back, on which defences.

One edit of a world forgets two objects, a style and the explicit attribute. A row is a defence; the
first is the unedited model. Its figures without any attack, on sentences that no method was given:
- forgot: share of pictures with a forgotten label that show it;
- kept: share of kept labels that are drawn, over the unedited model's.
Then, for each attack and what is attacked, the share of pictures that show it again. The control is
the same attack for a picture that the model never learned: what it reaches is not brought back but
learned anew. It does not depend on what was erased, so it is attacked in the rows of `--control`.

Cells are measured in the order of their cost. Results are written after every cell, and a later run
goes on from there. The page docs/results/revival.md gets its table from them.
"""

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from testbed import pack
from testbed.worlds import catalogue
from testbed.worlds.captions import Caption
from testbed.worlds.studio import studio

from .. import records
from ..peers import Erased, protocols, scores
from . import attacks, defences, subjects

BASE = Path(os.environ.get("UNLEARN_BASE", ".host/base"))
RESULTS = Path(__file__).parents[1] / "results" / "revival.json"
PAGE = records.ROOT / "docs" / "results" / "revival.md"
MARKS = "<!-- made by `dev.py bench revival`; do not edit -->", "<!-- end of what is made -->"
SETTINGS = ("pictures", "steps", "judged")
NONE = "without attack"


def protocol(case, pictures):
    """What is judged without an attack: `pictures` of all that is forgotten, twice as many kept."""
    world, shots = case.world, []
    for i in range(pictures):
        s = case.subjects[i % len(case.subjects)]
        number = i // len(case.subjects)
        label = {
            "object": protocols.Label("sprite", (s.name,)),
            "style": protocols.Label("style", s.name),
            "explicit": protocols.Label("explicit"),
        }[s.kind]
        shown = Caption(s.sentence(number), s.object(number))
        if s.kind == "style":
            shown = shown._replace(style=s.name)
        shots.append(protocols.Shot(shown._replace(explicit=s.kind == "explicit"), (label,)))
    left = world._replace(styles=tuple(s for s in world.styles if s not in case.styles))
    names = [n for n in world.objects if n not in case.objects]
    shots += protocols.spread(left, names, 2 * pictures)
    return protocols.Protocol("revival", (case.concepts,), tuple(shots))


class Table:
    """The rows of one world in a file of results, measured cell by cell."""

    def __init__(self, case, results, given, say):
        self.case, self.results, self.given, self.say = case, results, given, say
        self.rows = results["worlds"].setdefault(case.world.name, {})
        self.before, self.budgets = None, {}
        self.known = subjects.of_world(case.world)

    def budget(self, row):
        """The Budget of one row, which shares trainings."""
        how = attacks.Budget(self.given.pictures, self.given.steps)
        return self.budgets.setdefault(row, how)

    def cells(self, row):
        """Attack -> subject -> cell, of one row."""
        return self.rows.setdefault(row, {}).setdefault("attacks", {})

    def open(self, rows, names, wanted, control):
        """(attack, row, subject) of all that is not measured, in the order of their cost."""
        found = []
        for attack in (NONE, *(a for a in attacks.ordered() if a in names)):
            for row in rows:
                if attack == NONE:
                    if self.given.fresh or not {"kept", "error"} & {*self.rows.get(row, {})}:
                        found.append((NONE, row, ""))
                    continue
                for name in wanted:
                    if name == subjects.CONTROL and row not in control:
                        continue
                    if self.given.fresh or name not in self.cells(row).get(attack, {}):
                        found.append((attack, row, name))
        return found

    def measure(self, attack, row, name):
        """Measures one cell and writes the results. What fails is a result as well."""
        whole, start, used = self.rows.setdefault(row, {}), time.time(), time.process_time()
        if "error" in whole and attack != NONE:
            return  # there is no such model
        try:
            if attack == NONE:
                found = self.figures(row)
                said = f"forgot {found['forgot'][0]:.2f}, kept {found['kept'][0]:.2f}"
                whole.pop("error", None)
            else:
                hits = self.attacked(attack, row, name)
                found = {"revived": round(float(np.mean(hits)), 4), "of": len(hits)}
                said = f"{sum(hits)} of {len(hits)}"
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
            said = found["error"]
        found |= {"date": records.today(), "commit": self.results["commit"]}
        found |= {"cpu_seconds": round(time.process_time() - used, 1)}
        if attack == NONE:
            whole |= found
        else:
            self.cells(row).setdefault(attack, {})[name] = found
        save(self.results, self.given)
        what = ", ".join(filter(None, (self.case.world.name, row, attack, name)))
        self.say(f"{what}: {said} [{time.time() - start:.0f} s]")

    def attacked(self, attack, row, name):
        """The hits of one attack."""
        erased, world = self.case.erased(row), self.case.world
        subject, budget = self.known[name], self.budget(row)
        return attacks.ATTACKS[attack](self.case.studio, world, subject, erased, budget)

    def figures(self, row):
        """forgot, kept and overall of a row without an attack, and the bytes of its patches."""
        how, case = (self.case.studio, protocol(self.case, self.given.judged)), self.case
        if self.before is None:
            self.before = protocols.draw(*how, None, self.given.steps)
        erased = case.erased(row)
        after = protocols.draw(*how, erased, self.given.steps)
        return scores.rates(self.before.marks, after.marks) | {"bytes": erased.nbytes}


def costs(table):
    """Processor seconds of (a training step, a drawing), measured on the unedited model."""
    case, budget = table.case, table.budget(defences.UNEDITED)
    subject = table.known[case.objects[0]]
    with attacks.gradients():
        unet = budget.once("network", functools.partial(attacks.network, case.studio.model))
        run = attacks.Inversion(case.studio, case.world, subject, unet, 1)
        run.train(1, budget.batch)
        start = time.process_time()
        run.train(3, budget.batch)
        step = (time.process_time() - start) / 2
    states = case.studio.encode(attacks.sentences(subject, budget))
    start = time.process_time()
    attacks.drawn(case.studio, Erased(case.studio.model, 0), states, budget)
    return step, time.process_time() - start


def training(cells, budget):
    """(fewest, most) training steps that cells take.

    The lengths of a textual inversion are one training. Of an erased subject it ends at the first
    look if that shows it in all pictures; of the control it does not.
    """
    lengths = {}
    for attack, row, name in cells:
        if attack != NONE:
            key = (attacks.ATTACKS[attack].keywords.get("tokens", attack), row, name)
            lengths.setdefault(key, []).append(attacks.cost(attack, budget))
    most = sum(max(found) for found in lengths.values())
    spared = [max(v) - min(v) for k, v in lengths.items() if k[-1] != subjects.CONTROL]
    return most - sum(spared), most


def estimate(table, cells):
    """A sentence with the processor time of the open cells, without the making of patches."""
    step, draw = costs(table)
    given = table.given
    fewest, most = training(cells, table.budget(defences.UNEDITED))
    attacked = sum(attack != NONE for attack, *_ in cells)
    drawn = attacked + 3 * given.judged / given.pictures * (len(cells) - attacked)
    least, longest = ((steps * step + drawn * draw) / 60 for steps in (fewest, most))
    return (
        f"{len(cells)} cells to measure. A training step takes {step:.2f} s of processor time, "
        f"{given.pictures} pictures {draw:.1f} s. That is {least:.0f} minutes of one core if all "
        f"inversions succeed at their first look, {longest:.0f} if none does, and the making of "
        "the patches."
    )


def shares(row, attack, names):
    """Mean revived share of the subjects `names`, or None where one was not measured."""
    cells = row.get("attacks", {}).get(attack, {})
    found = [cells[n]["revived"] for n in names if "revived" in cells.get(n, {})]
    return float(np.mean(found)) if names and len(found) == len(names) else None


def number(value):
    return "" if value is None else f"{value:.2f}"


def one_table(rows, names):
    """Markdown of the revived share of some subjects: a line for each attack, a column a row."""
    lines = [
        [f"{figure}, no attack", *(number(r.get(figure, [None])[0]) for r in rows.values())]
        for figure in ("forgot", "kept")
    ]
    for attack in attacks.ordered():
        found = [shares(row, attack, names) for row in rows.values()]
        if any(share is not None for share in found):
            lines.append([attack, *map(number, found)])
    return records.table(["", *rows], lines)


def cells_of(rows):
    """(attack, subject, cell) of all that was measured."""
    for row in rows.values():
        for attack, by in row.get("attacks", {}).items():
            for name, cell in by.items():
                yield attack, name, cell


def markdown(results):
    """The tables of all worlds: one for each kind of subject, of what was measured of it."""
    out = []
    for world, rows in results["worlds"].items():
        known = subjects.of_world(catalogue.get(world))
        cells = list(cells_of(rows))
        commits = {cell["commit"] for *_, cell in cells if "commit" in cell}
        out += [f"## {world}", f"Measured at {', '.join(sorted(commits))}."]
        attacked = {name for _, name, _ in cells}
        for kind in dict.fromkeys(s.kind for s in known.values()):
            names = [n for n, s in known.items() if s.kind == kind and n in attacked]
            done = {
                row: found
                for row, found in rows.items()
                if any(name in names for _, name, _ in cells_of({row: found}))
            }
            if done:
                said = "control: " if kind == "control" else ""
                out += [f"### {said}{', '.join(names)}", one_table(done, names)]
    return "\n\n".join(out)


def save(results, given):
    """Writes the results, and their tables into the page if they are the shipped ones."""
    records.save(results, given.out)
    if given.out == RESULTS and PAGE.exists():
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        page = f"{before}{MARKS[0]}\n\n{markdown(results)}\n\n{MARKS[1]}{after}"
        records.write(PAGE, page)


def options():
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--attacks", default="", help="by comma; all unless named")
    parser.add_argument("--defences", default="", help="by comma; all unless named")
    parser.add_argument("--subjects", default="", help="by comma; all unless named")
    parser.add_argument(
        "--control",
        default=f"{defences.UNEDITED},{defences.SCAPRE}",
        help="defences, by comma, on which the control is attacked too",
    )
    parser.add_argument("--pictures", type=int, default=16, help="drawn after each attack")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps per picture")
    parser.add_argument(
        "--judged", type=int, default=40, help="of forgotten things, twice as many of kept ones"
    )
    parser.add_argument("--list", action="store_true", help="say the names, and measure nothing")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    return parser.parse_args()


def wanted(given):
    """(defences, attacks, subjects, defences with the control) that are asked for."""
    known = subjects.of_world(catalogue.get(given.world))
    asked = (
        (given.defences, defences.DEFENCES, "defence"),
        (given.attacks, attacks.ordered(), "attack"),
        (given.subjects, known, "subject"),
        (given.control, defences.DEFENCES, "defence"),
    )
    return [records.chosen(names, every, what) for names, every, what in asked]


def main():
    given = options()
    rows, names, attacked, control = wanted(given)
    if given.list:
        print(
            "\n".join(
                f"{k}: {', '.join(v)}"
                for k, v in zip(
                    ("defences", "attacks", "subjects"), (rows, names, attacked), strict=True
                )
            )
        )
        return
    results = records.load(given.out, {k: getattr(given, k) for k in SETTINGS})
    results |= {"processor": records.processor(), "torch": torch.__version__}
    results["commit"] = records.commit()  # of the code that runs, whatever becomes of the files
    pack.load()
    start = time.time()

    def say(line):
        print(f"[{time.time() - start:6.0f} s] {line}", file=sys.stderr, flush=True)

    folder = BASE / "temp" / "revival" / given.world / results["commit"]
    table = Table(defences.Case(studio(given.world), folder), results, given, say)
    cells = table.open(rows, names, attacked, control)
    if cells:
        say(estimate(table, cells))
    for cell in cells:
        table.measure(*cell)
    if given.json:
        print(json.dumps({"measured": len(cells), "results_file": os.path.relpath(given.out)}))


if __name__ == "__main__":
    main()
