"""`dev.py bench peers`: every method on the same protocols, prompts, seeds and judge.

For each protocol and method:
- forgot: share of forgotten labels that are still drawn;
- kept: share of kept labels that are drawn, over the unedited model's;
- overall: harmonic mean of 1 - forgot and kept;
- frechet: distance between the judge's features of kept pictures, edited and unedited;
- processor seconds of the erase, which other programs hardly change, with nothing cached;
- its peak memory in MB, and the bytes that have to be stored.

On `forget 4` it also tries to bring an object back, by textual inversion and by RECE's embedding.
Results are written after every measurement, and a later run goes on from there.
"""

import argparse
import datetime
import importlib
import json
import os
import pkgutil
import platform
import re
import sys
import time
from pathlib import Path

import torch

from testbed import pack
from testbed.worlds import catalogue

from . import Erased, __path__, attacks, protocols, scores

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


def methods():
    """Names of the files here that hold a method, ours first."""
    own = {"__main__", "attacks", "protocols", "scores"}
    names = sorted(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if m.name not in own and not m.name.startswith("_")
    )
    return sorted(names, key=lambda n: n != "ours")


def erase(method, studio, rounds, seed):
    """Erased after all rounds, each from the last one's model; bytes and negatives add up."""
    done, size = Erased(studio.model, 0), 8 * studio.judge.world.size
    for concepts in rounds:
        new = method.erase(done.model, studio.clip, concepts, seed=seed, size=size)
        negative = ", ".join(filter(None, (done.negative, new.negative)))
        done = Erased(new.model, done.nbytes + new.nbytes, negative, done.perp or new.perp)
    return done


def measure(name, studio, world, protocol, before, given):
    """The row of one method on one protocol."""
    method = importlib.import_module(f"{__package__}.{name}")
    with torch.inference_mode(), scores.Meter() as meter:  # as ComfyUI runs nodes
        erased = erase(method, studio, protocol.rounds, given.seed)
    start = time.time()
    after = protocols.draw(studio, protocol, erased, given.steps)
    row = {
        "name": method.NAME,
        **scores.rates(before.marks, after.marks),
        "frechet": scores.distance(before.features, after.features),
    }
    row |= {
        "seconds": round(meter.seconds, 2),
        "cpu_seconds": round(meter.cpu, 2),
        "memory": round(meter.memory, 1),
    }
    row |= {"bytes": erased.nbytes, "drawn_in": round(time.time() - start, 1)}
    return row | (attacked(studio, world, erased, given) if protocol.name == ATTACKED else {})


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
    found["rece"] = attacks.rece(studio, name, erased, *how)
    return {column: scores.share(hits) for column, hits in found.items()}


def processor():
    """The processor's name, and how many cores of it there are."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def today():
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def load(path, settings):
    """Results so far; exits with a sentence where they were made with other settings."""
    if not path.exists():
        return {"settings": settings, "worlds": {}}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        sys.exit(
            f"{path} was made with other settings ({found['settings']}); use those, name another "
            "file with --out, or remove it."
        )
    return found


def save(results, path):
    """Writes the results and their table; each file is replaced whole, never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in (
        (path, json.dumps(results, indent=1) + "\n"),
        (path.with_suffix(".md"), markdown(results)),
    ):
        part = file.with_name(f"{file.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)


def rows(results):
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


def table(head, lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def markdown(results):
    """The results as tables: `overall` of all, then every protocol by itself."""
    every, s = rows(results), results["settings"]
    names = {
        m: row.get("name", m)
        for by in every.values()
        for m, row in by.items()
        if "error" not in row
    }
    names = {
        m: names.get(m, m)
        for m in sorted({m for by in every.values() for m in by}, key=lambda m: (m != "ours", m))
    }
    best = {
        p: max((r["overall"][0] for r in scores.measured(by).values()), default=0)
        for p, by in every.items()
    }

    def short(protocol, method):
        row = every[protocol].get(method)
        if row is None:
            return ""
        if "error" in row:
            return "failed"
        return (
            f"**{row['overall'][0]:.2f}**"
            if row["overall"][0] == best[protocol]
            else f"{row['overall'][0]:.2f}"
        )

    out = [
        "# Ours beside other methods",
        "Made by `python3 dev.py bench peers`; do not edit. "
        f"{results.get('processor', '')}, {results.get('date', '')}, torch "
        f"{results.get('torch', '')}. "
        f"{s['pictures']} pictures of what is forgotten and twice as many of what is kept, "
        f"{s['steps']} sampling steps; in brackets the "
        f"middle 95 % of {scores.RESAMPLES} bootstrap resamples.",
        "## Overall: harmonic mean of 1 - forgot and kept",
        table(["", *names.values()], [[p, *(short(p, m) for m in names)] for p in every]),
    ]
    for protocol, by in every.items():
        shown = [c for c in COLUMNS if any(c in row for row in by.values())]
        done = sorted(scores.measured(by).items(), key=lambda x: -x[1]["overall"][0])
        lines = [[row["name"], *(cell(c, row.get(c)) for c in shown)] for _, row in done]
        lines += [
            [m, f"failed: {row['error']}", *[""] * (len(shown) - 1)]
            for m, row in by.items()
            if "error" in row
        ]
        out += [f"## {protocol}", table(["method", *(COLUMNS[c] for c in shown)], lines)]
    return "\n\n".join(out) + "\n"


def run_protocol(studio, world, protocol, wanted, results, given, say):
    """Measures the wanted methods on one protocol, and writes each result as it comes."""
    found = results["worlds"].setdefault(world.name, {}).setdefault(protocol.name, {"methods": {}})
    open_ = [m for m in wanted if given.fresh or m not in found["methods"]]
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
    for name in open_:
        start = time.time()
        try:
            row = measure(name, studio, world, protocol, before, given)
        except Exception as error:  # a method that fails is a result as well
            row = {"error": f"{type(error).__name__}: {error}"}
        found["methods"][name] = row | {
            "date": today(),
            "whole_seconds": round(time.time() - start, 1),
        }
        save(results, given.out)
        said = row.get("error") or ", ".join(f"{c} {cell(c, row[c])}" for c in COLUMNS if c in row)
        say(f"{world.name}: {protocol.name}, {name}: {said} [{time.time() - start:.0f} s]")


def chosen(given, known, what):
    """The names in a comma-separated option; exits with a sentence on one that is not known."""
    names = [n.strip() for n in given.split(",")] if given else list(known)
    if wrong := [n for n in names if n not in known]:
        sys.exit(f"There is no {what} '{wrong[0]}'; there are {', '.join(known)}.")
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--worlds", default="", help="by comma; all unless named")
    parser.add_argument(
        "--clip-skip", type=int, help="which last layer of the text encoder is read"
    )
    parser.add_argument("--methods", default="", help="by comma; all unless named")
    parser.add_argument("--protocols", default="", help="by comma; all unless named")
    parser.add_argument(
        "--pictures",
        type=int,
        default=40,
        help="of forgotten things per protocol; twice as many of kept ones",
    )
    parser.add_argument("--steps", type=int, default=8, help="sampling steps per picture")
    parser.add_argument("--seed", type=int, default=0, help="of the methods that train")
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
    given = parser.parse_args()
    wanted = chosen(given.methods, methods(), "method")
    names = chosen(given.protocols, list(protocols.MAKERS), "protocol")
    known = catalogue.MODELS
    shipped = [name for name, world in known.items() if world.file.exists()]
    results = load(given.out, {k: getattr(given, k) for k in SETTINGS})
    results |= {"processor": processor(), "date": today(), "torch": torch.__version__}
    start = time.time()

    def say(line):
        return print(f"[{time.time() - start:6.0f} s] {line}", file=sys.stderr, flush=True)

    pack.load()
    for name in chosen(given.worlds, shipped, "world"):
        world = known[name]
        studio = world.studio(BASE / "models" / "checkpoints", given.clip_skip)
        if given.clip_skip:
            world = world._replace(name=f"{name}, clip skip {given.clip_skip}")
        for protocol in protocols.possible(world, names):
            run_protocol(
                studio,
                world,
                protocols.MAKERS[protocol](world, given.pictures),
                wanted,
                results,
                given,
                say,
            )
    save(results, given.out)
    every = rows(results)
    file = os.path.relpath(given.out)
    summary = {
        "protocols": list(every),
        "best_or_tied": scores.best_or_tied(every),
        "last": scores.last(every),
        "results_file": file,
    }
    if given.json:
        print(json.dumps(summary))
    else:
        print(
            f"best or tied in {len(summary['best_or_tied'])} of {len(every)} protocols, last in "
            f"{summary['last']}; {file}"
        )


if __name__ == "__main__":
    main()
