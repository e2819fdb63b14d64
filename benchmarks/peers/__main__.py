"""`dev.py bench peers`: every method on the same protocols, prompts, seeds and judge.

For each protocol and method:
- forgot: share of forgotten labels that are still drawn;
- kept: share of kept labels that are drawn, over the unedited model's;
- overall: harmonic mean of 1 - forgot and kept;
- frechet: distance between the judge's features of kept pictures, edited and unedited;
- processor seconds of the erase, which other programs hardly change, with nothing cached;
- its peak memory in MB, and the bytes that have to be stored.

`--methods uce` is UCE as its paper has it, `uce sweep` at the best of a sweep (sweeps.py says how
it is chosen), `uce same information` its solve of what ours reads; so for every closed form.
`--rows` takes whole groups of these. `--training-steps` shortens the training methods, and their
names say so. `--crowded 0.5` makes the words of look-alikes half as different
(testbed/worlds/alike.py).

On `forget 4` it also tries to bring an object back, by textual inversion and by RECE's embedding.
Results are written after every measurement, and a later run goes on from there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

from testbed import pack
from testbed.worlds import alike, catalogue

from .. import records
from ..records import chosen, load, processor, table, today
from . import Erased, attacks, protocols, rows, scores, sweeps

BASE = Path(os.environ.get("UNLEARN_BASE", ".host/base"))
RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
ATTACKED = "forget 4"
SETTINGS = ("pictures", "steps", "seed", "inversion_steps", "attack_pictures")
COLUMNS = {
    "forgot": "forgot",
    "kept": "kept",
    "overall": "overall",
    "frechet": "Frechet",
    "cpu_seconds": "processor s",
    "memory": "MB peak",
}
COLUMNS |= {"bytes": "MB kept", "inversion": "inversion", "rece": "RECE"}


def erase(method, studio, rounds, seed):
    """Erased after all rounds, each from the last one's model; bytes and negatives add up."""
    done, size = Erased(studio.model, 0), 8 * studio.judge.world.size
    for concepts in rounds:
        clip = done.clip or studio.clip
        new = method.erase(done.model, clip, concepts, seed=seed, size=size)
        negative = ", ".join(filter(None, (done.negative, new.negative)))
        perp, clip = done.perp or new.perp, new.clip or done.clip
        done = Erased(new.model, done.nbytes + new.nbytes, negative, perp, clip)
    return done


def measure(row, setting, studio, world, protocol, before, given):
    """The figures of one Row on one protocol; setting: what a sweep has chosen, else None."""
    method = rows.method(row, protocol.rounds[0], setting)
    with torch.inference_mode(), scores.Meter() as meter:  # as ComfyUI runs nodes
        erased = erase(method, studio, protocol.rounds, given.seed)
    start = time.time()
    after = protocols.draw(studio, protocol, erased, given.steps)
    found = {
        "name": method.name,
        "group": row.group,
        **({} if setting is None else {"setting": repr(setting)}),
        **scores.rates(before.marks, after.marks),
        "frechet": scores.distance(before.features, after.features),
    }
    found |= {
        "seconds": round(meter.seconds, 2),
        "cpu_seconds": round(meter.cpu, 2),
        "memory": round(meter.memory, 1),
    }
    found |= {"bytes": erased.nbytes, "drawn_in": round(time.time() - start, 1)}
    return found | (attacked(studio, world, erased, given) if protocol.name == ATTACKED else {})


def attacked(studio, world, erased, given):
    """{inversion, rece} for the first object of the forget order; {} without pictures of them."""
    if not given.attack_pictures:
        return {}
    name, how = world.order[0], (given.attack_pictures, given.steps)
    found = (
        {"inversion": attacks.inversion(studio, world, name, erased, given.inversion_steps, *how)}
        if given.inversion_steps
        else {}
    )
    found["rece"] = attacks.rece(studio, world, name, erased, *how)
    return {column: scores.share(hits) for column, hits in found.items()}


def save(results, path):
    """Writes the results and their table."""
    records.save(results, path)
    records.write(path.with_suffix(".md"), markdown(results))


def measured(results):
    """`world: protocol` -> method -> row, for all that was measured."""
    return {
        f"{w}: {p}": found["methods"]
        for w, by in results["worlds"].items()
        for p, found in by.items()
    }


def cell(column, value):
    """A figure as text, with its interval where it has one."""
    if value is None:
        return ""
    if column in ("cpu_seconds", "memory", "bytes"):
        return f"{value / 2**20:.2f}" if column == "bytes" else f"{value:.1f}"
    return (
        "{:.0f} ({:.0f} to {:.0f})" if column == "frechet" else "{:.2f} ({:.2f} to {:.2f})"
    ).format(*value)


def markdown(results):
    """The results as tables: `overall` of each group of rows, then every protocol by itself."""
    every, s = measured(results), results["settings"]
    out = [
        "# Ours beside other methods",
        "Made by `python3 dev.py bench peers`; do not edit. "
        f"{results.get('processor', '')}, {results.get('date', '')}, torch "
        f"{results.get('torch', '')}. "
        f"{s['pictures']} pictures of what is forgotten and twice as many of what is kept, "
        f"{s['steps']} sampling steps; in brackets the "
        f"middle 95 % of {scores.RESAMPLES} bootstrap resamples.",
        "## Overall: harmonic mean of 1 - forgot and kept",
    ]
    for group, title in rows.GROUPS.items():
        if table_of := rows.among(every, group):
            out += [f"### {title}", overall(table_of), standing(table_of)]
    if not every or not any(set(by) - {rows.OURS} for by in every.values()):
        out.append(overall(every))
    out += [f"All rows together: {standing(every)}"]
    for protocol, by in every.items():
        out += [f"## {protocol}", figures(by)]
    if chosen_settings := settings(results):
        out += ["## Settings that the sweeps chose", chosen_settings]
    return "\n\n".join(out) + "\n"


def names(every):
    """Row id -> its name in tables, ours first, of protocol -> row id -> row."""
    found = {}
    for by in every.values():
        for i, row in by.items():
            found[i] = row.get("name", found.get(i, i))
    return {i: found[i] for i in sorted(found, key=lambda i: (i != rows.OURS, i))}


def overall(every):
    """A line for each protocol, a column for each row; the best are bold."""
    columns = names(every)
    lines = []
    for protocol, by in every.items():
        best = max((r["overall"][0] for r in scores.measured(by).values()), default=0)
        lines.append([protocol, *(short(by.get(i), best) for i in columns)])
    return table(["", *columns.values()], lines)


def short(row, best):
    """A row's overall in a word."""
    if row is None:
        return ""
    if "error" in row:
        return "failed"
    value = row["overall"][0]
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"


def standing(every):
    """Where ours stands in protocol -> row id -> row, as a sentence."""
    compared = {p: by for p, by in every.items() if rows.OURS in by and len(by) > 1}
    tied, last = scores.best_or_tied(compared), scores.last(compared)
    behind = [p for p, column in last if column == "overall"]
    return (
        f"Ours is best or tied in {len(tied)} of {len(compared)} protocols, and last in "
        f"{len(behind)}."
    )


def figures(by):
    """The table of one protocol: its groups one after another, in each the best row first."""
    shown = [c for c in COLUMNS if any(c in row for row in by.values())]
    order = [rows.OURS, *rows.GROUPS]
    done = sorted(
        scores.measured(by).items(),
        key=lambda x: (order.index(rows.group_of(*x)), -x[1]["overall"][0]),
    )
    lines = [
        [rows.group_of(i, row), row["name"], *(cell(c, row.get(c)) for c in shown)]
        for i, row in done
    ]
    lines += [
        [rows.group_of(i, row), i, f"failed: {row['error']}", *[""] * (len(shown) - 1)]
        for i, row in by.items()
        if "error" in row
    ]
    return table(["row", "method", *(COLUMNS[c] for c in shown)], lines)


def settings(results):
    """What the sweeps have chosen, and their overall on the protocol that it was chosen on."""
    lines = []
    for world, cases in results.get("sweeps", {}).items():
        for case, by in cases.items():
            for i, known in by.items():
                best = known["tried"][known["chosen"]]
                lines.append([world, case, i, best["setting"], cell("overall", best["overall"])])
    return table(["world", "for", "row", "setting", "overall while chosen"], lines) if lines else ""


def official(row, setting, protocol, measured_rows):
    """The figures of the official row, where a sweep has chosen its very setting; else None.

    Both erase the same and draw from the same seeds, so that the pictures are the same too.
    """
    known = measured_rows.get(f"{row.peer} {rows.OFFICIAL}", {"error": "not measured"})
    if row.group != rows.SWEEP or "error" in known:
        return None
    if setting != rows.grid(row, sweeps.kind_of(protocol))[0]:
        return None
    return known | {"group": row.group, "setting": repr(setting)}


def run_protocol(studio, world, protocol, wanted, results, given, say):
    """Measures the wanted Rows on one protocol, and writes each result as it comes."""
    found = results["worlds"].setdefault(world.name, {}).setdefault(protocol.name, {"methods": {}})
    if found.get("pictures", len(protocol.shots)) != len(protocol.shots):
        say(f"{world.name}: {protocol.name} has other pictures now, so it is measured again")
        found["methods"].clear()
    open_ = [row for row in wanted if given.fresh or row.id not in found["methods"]]
    if not open_:
        return
    before = protocols.draw(studio, protocol, None, given.steps)
    found |= {"pictures": len(protocol.shots), "clean_sprites": len(before.features)}
    sums = before.marks.sum(0)
    found["unedited"] = found.get("unedited", {}) | {
        "forgot": round(float(sums[0] / sums[1]), 4),
        "kept": round(float(sums[2] / sums[3]), 4),
    }
    if protocol.name == ATTACKED and "rece" not in found["unedited"]:
        found["unedited"] |= attacked(studio, world, Erased(studio.model, 0), given)
    say(f"{world.name}: {protocol.name}, unedited {found['unedited']}")
    for row in open_:
        start = time.time()
        try:
            setting = given.sweeps.setting(row, studio, world, protocol, say)
            figures_of = official(row, setting, protocol, found["methods"]) or measure(
                row, setting, studio, world, protocol, before, given
            )
        except Exception as error:  # a method that fails is a result as well
            figures_of = {"error": f"{type(error).__name__}: {error}", "group": row.group}
        found["methods"][row.id] = figures_of | {
            "date": today(),
            "whole_seconds": round(time.time() - start, 1),
        }
        save(results, given.out)
        said = figures_of.get("error") or ", ".join(
            f"{c} {cell(c, figures_of[c])}" for c in COLUMNS if c in figures_of
        )
        say(f"{world.name}: {protocol.name}, {row.id}: {said} [{time.time() - start:.0f} s]")


def options():
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--worlds", default="", help="by comma; all unless named")
    parser.add_argument(
        "--clip-skip", type=int, help="which last layer of the text encoder is read"
    )
    parser.add_argument(
        "--crowded", type=float, default=0.0, help="share of look-alikes' words made alike, 0 to 1"
    )
    parser.add_argument(
        "--crowded-words", choices=alike.WORDS, default="both", help="whose words are moved"
    )
    parser.add_argument("--methods", default="", help="by comma; all unless named")
    parser.add_argument("--rows", default="", help=f"of {', '.join(rows.GROUPS)}; all unless named")
    parser.add_argument("--protocols", default="", help="by comma; all unless named")
    parser.add_argument(
        "--pictures",
        type=int,
        default=40,
        help="of forgotten things per protocol; twice as many of kept ones",
    )
    parser.add_argument(
        "--sweep-pictures", type=int, default=8, help="the same, for each setting of a sweep"
    )
    parser.add_argument("--steps", type=int, default=8, help="sampling steps per picture")
    parser.add_argument("--seed", type=int, default=0, help="of the methods that train")
    parser.add_argument(
        "--training-steps", type=int, help="most training steps; all that the paper has"
    )
    parser.add_argument(
        "--inversion-steps", type=int, default=60, help="of textual inversion; 0: leave it out"
    )
    parser.add_argument(
        "--attack-pictures", type=int, default=16, help="drawn after each attack; 0: no attacks"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what was measured already"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="the JSON file; the table is written beside it"
    )
    return parser.parse_args()


def wanted_rows(given):
    """The Rows that are asked for, in their order."""
    known = rows.known(given.training_steps)
    named = [known[n] for n in chosen(given.methods, known, "method")]
    groups = chosen(given.rows, rows.GROUPS, "group of rows")
    return [row for row in named if row.group in (rows.OURS, *groups)]


def crowded_name(name, given):
    """The name in results of a world whose look-alikes' words are alike."""
    whose = "" if given.crowded_words == "both" else f" {given.crowded_words}"
    return f"{name}, crowded{whose} {given.crowded:g}"


def loaded(name, world, given):
    """(Studio, World as its results name it) of a shipped world."""
    studio = world.studio(BASE / "models" / "checkpoints", given.clip_skip)
    if given.clip_skip:
        world = world._replace(name=f"{name}, clip skip {given.clip_skip}")
    if given.crowded:
        alike.make_alike(studio.clip, world, given.crowded, given.crowded_words)
        world = world._replace(name=crowded_name(world.name, given))
    return studio, world


def summary(results, out):
    """What `--json` prints: where ours stands among all rows, and in each group."""
    every = measured(results)

    def stands(found):
        return {"best_or_tied": scores.best_or_tied(found), "last": scores.last(found)}

    groups = {g: stands(rows.among(every, g)) for g in rows.GROUPS}
    file = os.path.relpath(out)
    return {"protocols": list(every), **stands(every), "groups": groups, "results_file": file}


def main():
    given = options()
    wanted, titles = wanted_rows(given), chosen(given.protocols, protocols.MAKERS, "protocol")
    shipped = [name for name, world in catalogue.MODELS.items() if world.file.exists()]
    results = load(given.out, {k: getattr(given, k) for k in SETTINGS})
    results |= {"processor": processor(), "date": today(), "torch": torch.__version__}
    given.sweeps = sweeps.Sweeps(
        results.setdefault("sweeps", {}), given.sweep_pictures, given.steps, given.fresh
    )
    start = time.time()

    def say(line):
        return print(f"[{time.time() - start:6.0f} s] {line}", file=sys.stderr, flush=True)

    pack.load()
    for name in chosen(given.worlds, shipped, "world"):
        studio, world = loaded(name, catalogue.get(name), given)
        for title in protocols.possible(world, titles):
            protocol = protocols.MAKERS[title](world, given.pictures)
            run_protocol(studio, world, protocol, wanted, results, given, say)
    save(results, given.out)
    found = summary(results, given.out)
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"best or tied in {len(found['best_or_tied'])} of {len(found['protocols'])} protocols, "
            f"last in {found['last']}; {found['results_file']}"
        )


if __name__ == "__main__":
    main()
