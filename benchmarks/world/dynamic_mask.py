"""Sculpting Memory on the sprite world: concepts forgotten one after another, each with its look-alike kept, and what a step costs.

Everything is judged on sentences that are not trained on. forgot: accuracy left on the forgotten objects after the last round; kept:
accuracy on all other objects, superclasses and styles over the unedited model's. variants: for each variant the accuracy of every
object forgotten so far after each round. step_cost: a training step over the bare sum of its forward and backward passes, same shapes,
taken in turns. memory_ratio: peak memory of training on the SD1.5 shape over that of plain fine-tuning of the same matrices, each in a
process of its own. Last line with --json: one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from testbed import pack
from testbed.worlds import captions
from testbed.worlds.sprites import OBJECTS, STYLES, SUPERCLASS, SUPERCLASSES
from testbed.worlds.studio import studio

sculpt = pack.module("unlearn.sculpting.train")
networks = pack.module("unlearn.host.training_network")
rounds = pack.module("unlearn.sculpting.trainer")
material = pack.module("unlearn.sculpting.training_data")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")

SEQUENCE = ("fox", "house", "truck", "sword", "rose", "pear")
PLAIN = (
    "an image of {a}",
    "a drawing of {a}",
    "this is {a}",
    "{a} on a wall",
)  # none is trained on
STYLED = ("{a} by {style}", "a photo of {a} by {style}")
WORLD = {
    "size": 64,
    "cfg": 3.0,
    "sampling_steps": 10,
}  # and a small model learns at a higher rate, in fewer steps
WORLD |= {
    "learning_rate": 3e-4,
    "steps": 200,
    "stop_at": 0.7,
    "warmup": 10,
    "refresh": 25,
    "batch": 4,
    "held": 8,
}


def concepts(names):
    """The ConceptSet of a sequence: everything else is on the keep list."""
    kept = [n for n in OBJECTS if n not in names] + list(STYLES)
    return text.parse("\n".join(f"{n} -> {SUPERCLASS[n]}" for n in names), "\n".join(kept))


def plain(names, each):
    return [
        captions.plain(n, PLAIN[(i + j) % len(PLAIN)])
        for i, n in enumerate(names)
        for j in range(each)
    ]


def styled(names):
    styles = list(STYLES)
    return [captions.styled(n, styles[i % len(styles)], STYLED[i % 2]) for i, n in enumerate(names)]


def accuracy(s, shots, model=None):
    """Name -> accuracy of its sprite; a styled shot also counts for its style."""
    hits = {}
    for caption, look in zip(shots, s.look(shots, seed=900, model=model), strict=True):
        hits.setdefault(caption.name, []).append(look.names[0] == caption.name)
        if caption.style:
            hits.setdefault(caption.style, []).append(look.style == caption.style)
    return {name: float(np.mean(h)) for name, h in hits.items()}


def rate(table, names):
    return float(np.mean([table[n] for n in names]))


def kept_shots(names, each):
    kept = [n for n in OBJECTS if n not in names]
    return plain([*kept, *SUPERCLASSES], each) + styled(kept)


def sequence(s, names, variant, before, each, **settings):
    """{rounds: accuracy of what was forgotten so far and of what is kept after each, forgot, kept, seconds, report} of one run."""
    done, start, spent = [], time.time(), [0.0]

    def after(patch):
        began = time.time()
        with torch.inference_mode():
            patched = patching.apply(s.model, patch)[0]
            last = len(done) + 1 == len(names)
            gone = names[: len(done) + 1]
            table = accuracy(
                s, plain(gone, 8 if last else 4) + (styled(gone) if last else []), patched
            )
            kept = accuracy(s, kept_shots(names, each if last else 1), patched)
            unedited = before[each if last else 1]
        row = {n: round(table[n], 3) for n in gone}
        shares = rate(kept, unedited) / rate(unedited, unedited)
        worst = sorted(kept, key=lambda n: kept[n] - unedited.get(n, 0))[:5]
        done.append({"forgot": row, "kept": round(shares, 3)})
        print(
            f"{variant} round {len(done)}: {row} kept {shares:.3f}, worst "
            f"{ ({n: round(kept[n], 2) for n in worst}) }",
            flush=True,
        )
        spent[0] += time.time() - began

    with torch.inference_mode():
        *_, report = sculpt.train(
            s.model, s.clip, concepts(names), after=after, variant=variant, **{**WORLD, **settings}
        )
    print(report, flush=True)
    return {
        "rounds": done,
        "forgot": round(float(np.mean(list(done[-1]["forgot"].values()))), 3),
        "kept": done[-1]["kept"],
        "seconds": round(time.time() - start - spent[0], 1),
    }


def step_cost(s, steps=2 * rounds.POOL * rounds.USES):
    """Seconds of training steps over those of their bare passes, taken in turns: as many as two answers of the teacher serve for."""
    settings = {
        **sculpt.DEFAULTS,
        **WORLD,
        "pictures": 4,
        "captions": 4,
        "warmup": 1,
        "steps": steps,
        "stop_at": 0.0,
    }
    ours, bare, at = [], [], [0.0]
    with torch.inference_mode(False), torch.enable_grad():
        plan = material.plan(s.clip, concepts(SEQUENCE[:1]), captions=4)
        said = networks.conditioning(s.model, s.clip, plan.texts, 64, (4, 8, 8))
        net = networks.Network(s.model, [layer.key for layer in networks.layers(s.model)], said)
        trainer = rounds.Trainer(
            net, material.TrainingData(net, plan, settings, (4, 8, 8)), settings
        )
        b, m = settings["batch"], settings["held"]
        x, target = torch.randn(2 * b + m, 4, 8, 8), torch.randn(2 * b + m, 4, 8, 8)
        sigma, rows = net.levels((torch.arange(len(x)) + 0.5) / len(x)), list(range(len(x)))

        def passes():
            """The same passes without anything else: the detached target, the teacher's share, and forward and backward."""
            start = time.perf_counter()
            with torch.no_grad():
                net.predict(net.student, x[:b], sigma[:b], rows[:b])
                half = -(-(b + m) // rounds.USES)
                net.predict(net.teacher, x[:half], sigma[:half], rows[:half])
            loss = (net.predict(net.student, x, sigma, rows) - target).square().mean()
            torch.autograd.grad(loss, trainer.params)
            bare.append(time.perf_counter() - start)

        def between():
            if trainer.step > settings["warmup"]:
                ours.append(time.perf_counter() - at[0])
            passes()
            at[0] = time.perf_counter()

        trainer.run(between)
    # the teacher is asked once for many steps: sums, not medians, hold its share
    return sum(ours) / len(ours) / np.mean(bare[1 : len(ours) + 1])


def one_memory(kind):
    """Peak resident MB of three steps on the SD1.5 shape, `plain` fine-tuning with torch's Adam or `ours`."""
    from testbed.shapes import random_model

    clip, model = studio().clip, random_model("SD1.5")
    settings = {
        **sculpt.DEFAULTS,
        "size": 256,
        "batch": 1,
        "held": 2,
        "pictures": 1,
        "captions": 2,
        "sampling_steps": 1,
        "warmup": 1,
    }
    settings |= {"steps": 3, "cfg": 1.0, "refresh": 1, "stop_at": 0.0}
    with torch.inference_mode(False), torch.enable_grad():
        plan = material.plan(clip, text.parse("fox -> animal"), captions=2)
        said = networks.conditioning(model, clip, plan.texts, 256, (4, 32, 32))
        net = networks.Network(model, [layer.key for layer in networks.layers(model)], said)
        if kind == "ours":
            rounds.Trainer(
                net, material.TrainingData(net, plan, settings, (4, 32, 32)), settings
            ).run()
        else:
            del net.reference, net.teacher, net.teacher_weights
            optimizer = torch.optim.Adam(net.masters.values(), lr=1e-6)
            x, sigma = torch.randn(4, 4, 32, 32), net.levels([0.2, 0.4, 0.6, 0.8])
            for _ in range(3):
                optimizer.zero_grad()
                (net.predict(net.student, x, sigma, [0, 1, 2, 3]) - x).square().mean().backward()
                optimizer.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory_ratio():
    peak = {}
    for kind in ("plain", "ours"):
        again = (
            "import runpy, sys; sys.path[:] = [p for p in sys.path if p]; "
            "runpy.run_module('benchmarks.world.dynamic_mask', run_name='__main__')"
        )
        found = subprocess.run(
            [sys.executable, "-c", again, "--memory", kind],
            capture_output=True,
            text=True,
            check=True,
        )
        peak[kind] = float(found.stdout.split()[-1])
    print(f"peak memory: {peak}", flush=True)
    return peak["ours"] / peak["plain"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two concepts, the variant `replay` alone, no measurement of memory",
    )
    parser.add_argument(
        "--variants", default=",".join(sculpt.VARIANTS), help="which variants to run"
    )
    parser.add_argument("--concepts", type=int, default=4, help="how many to forget")
    parser.add_argument("--set", default="", help="settings to try, as in hold=4,batch=2")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        return one_memory(given.memory)
    s, names = studio(), SEQUENCE[: 2 if given.quick else given.concepts]
    more = {
        k: type(sculpt.DEFAULTS[k])(v)
        for k, v in (part.split("=") for part in given.set.split(",") if part)
    }
    each = 1 if given.quick else 2
    before = {
        n: accuracy(s, kept_shots(names, n)) for n in {1, each}
    }  # pictures of each object -> what the unedited model gets right
    print(
        f"unedited: kept {rate(before[each], before[each]):.3f}, to forget "
        f"{rate(accuracy(s, plain(names, 2)), names):.3f}",
        flush=True,
    )
    table = {}
    for variant in ("replay",) if given.quick else given.variants.split(","):
        table[variant] = sequence(s, names, variant, before, each, **more)
    result = {
        **{k: v for k, v in next(iter(table.values())).items() if k != "rounds"},
        "step_cost": round(step_cost(s), 3),
    }
    if not given.quick:
        result["memory_ratio"] = round(memory_ratio(), 3)
    result["variants"] = {name: found["rounds"] for name, found in table.items()}
    print(
        json.dumps(result)
        if given.json
        else f"forgot {result['forgot']} kept {result['kept']} step cost {result['step_cost']}"
    )


if __name__ == "__main__":
    main()
