"""Sculpting Memory on a world: objects forgotten one after another, and a step's cost.

Each forgotten object has a look-alike that is kept. All sentences that judge are not trained on.

forgot: accuracy left on the forgotten objects after the last round. kept: accuracy on all other
objects, superclasses and styles, over that of the unedited model. variants: for each variant the
accuracy of every object forgotten so far, after each round; `released` and `intended` are the
losses of the paper, trained as LEARNING says, at a hundred times the paper's rate and with the
pack's schedule. The method as it was released is a row of `bench peers`. step_cost: the time of a
training step over that of its forward and backward passes alone, taken in turns. memory_ratio: peak
memory of training on SD1.5's shape over that of plain fine-tuning of the same matrices, each in a
process of its own. With --json the last line is one JSON object.
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
from testbed.worlds import captions, catalogue
from testbed.worlds.studio import studio

training = pack.module("unlearn.sculpting.train")
networks = pack.module("unlearn.host.training_network")
plans = pack.module("unlearn.sculpting.plan")
rounds = pack.module("unlearn.sculpting.trainer")
settings_of = pack.module("unlearn.sculpting.settings")
training_data = pack.module("unlearn.sculpting.training_data")
tuning = pack.module("unlearn.sculpting.tuning")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")

SPRITES = catalogue.SPRITES
SEQUENCES = {"sprites": ("fox", "house", "truck", "sword", "rose", "pear")}
PLAIN = (
    "an image of {a}",
    "a drawing of {a}",
    "this is {a}",
    "{a} on a wall",
)  # none is trained on
STYLED = ("{a} by {style}", "a photo of {a} by {style}")
LEARNING = {  # a small model learns at a higher rate, in fewer steps
    "cfg": 3.0,
    "sampling_steps": 10,
    "learning_rate": 3e-4,
    "steps": 200,
    "stop_at": 0.7,
    "warmup": 10,
    "refresh": 25,
    "batch": 4,
    "held": 8,
}


def sequence_of(world):
    """What is forgotten in a world, in this order: six objects whose look-alikes are kept."""
    return SEQUENCES.get(world.name, world.order[:6])


def concepts(names, world=SPRITES):
    """The ConceptSet of a sequence: everything else is on the keep list."""
    kept = [n for n in world.objects if n not in names] + list(world.styles)
    lines = "\n".join(f"{n} -> {world.superclass[n]}" for n in names)
    return text.parse(lines, "\n".join(kept))


def plain(names, each):
    return [
        captions.plain(n, PLAIN[(i + j) % len(PLAIN)])
        for i, n in enumerate(names)
        for j in range(each)
    ]


def styled(names, world):
    styles = world.styles
    return [captions.styled(n, styles[i % len(styles)], STYLED[i % 2]) for i, n in enumerate(names)]


def accuracy(s, shots, model=None):
    """Name -> accuracy of its object; a styled shot also counts for its style."""
    hits = {}
    for caption, look in zip(shots, s.look(shots, seed=900, model=model), strict=True):
        hits.setdefault(caption.name, []).append(look.names[0] == caption.name)
        if caption.style:
            hits.setdefault(caption.style, []).append(look.style == caption.style)
    return {name: float(np.mean(h)) for name, h in hits.items()}


def rate(table, names):
    return float(np.mean([table[n] for n in names]))


def kept_shots(names, each, world):
    kept = [n for n in world.objects if n not in names]
    return plain([*kept, *world.superclasses], each) + styled(kept, world)


def sequence(s, names, variant, before, each, **settings):
    """One run: `rounds` (accuracy of what is forgotten so far, kept), forgot, kept, seconds."""
    done, start, spent, world = [], time.time(), [0.0], s.judge.world

    def after(patch):
        began = time.time()
        with torch.inference_mode():
            patched = patching.apply(s.model, patch)[0]
            last = len(done) + 1 == len(names)
            gone = names[: len(done) + 1]
            table = accuracy(
                s, plain(gone, 8 if last else 4) + (styled(gone, world) if last else []), patched
            )
            kept = accuracy(s, kept_shots(names, each if last else 1, world), patched)
            unedited = before[each if last else 1]
        row = {n: round(table[n], 3) for n in gone}
        shares = rate(kept, unedited) / rate(unedited, unedited)
        worst = sorted(kept, key=lambda n: kept[n] - unedited.get(n, 0))[:5]
        done.append({"forgot": row, "kept": round(shares, 3)})
        lowest = {n: round(kept[n], 2) for n in worst}
        line = f"{variant} round {len(done)}: {row} kept {shares:.3f}, worst {lowest}"
        print(line, flush=True)
        spent[0] += time.time() - began

    with torch.inference_mode():
        more = {"size": 8 * world.size, **settings, "variant": variant}
        strength = more.pop("strength", "normal")
        how = settings_of.TrainingSettings(**{**LEARNING, **more}).at(strength)
        found = training.train(s.model, s.clip, concepts(names, world), how, after_round=after)
    print(found.report, flush=True)
    return {
        "rounds": done,
        "forgot": round(float(np.mean(list(done[-1]["forgot"].values()))), 3),
        "kept": done[-1]["kept"],
        "seconds": round(time.time() - start - spent[0], 1),
    }


def trainer_of(model, clip, forget, settings):
    """A Trainer on a MODEL, before its first round; settings: a TrainingSettings with its size."""
    size = settings.size
    shape = (4, size // 8, size // 8)
    plan = plans.build_plan(clip, forget, captions=settings.captions)
    conditioned = networks.conditioning(model, clip, plan.texts, size, shape)
    keys = [layer.key for layer in networks.layers(model, settings.trainable)]
    dtype = networks.activation_dtype(model, settings.precision)
    net = networks.Network(model, keys, conditioned, dtype=dtype)
    return rounds.Trainer(net, training_data.TrainingData(net, plan, settings, shape), settings)


def bare_passes(trainer, x, target, sigma):
    """Seconds of a step's passes alone: fixed target, the share of the teacher, gradients."""
    net, s = trainer.network, trainer.settings
    text_ids = list(range(len(x)))
    start = time.perf_counter()
    with torch.no_grad():
        net.predict(net.student, x[: s.batch], sigma[: s.batch], text_ids[: s.batch])
        share = -(-(s.batch + s.held) // tuning.TEACHER_USES)
        net.predict(net.teacher, x[:share], sigma[:share], text_ids[:share])
    loss = (net.predict(net.student, x, sigma, text_ids) - target).square().mean()
    torch.autograd.grad(loss, trainer.weights)
    return time.perf_counter() - start


def step_cost(s, steps=2 * tuning.TEACHER_STEPS * tuning.TEACHER_USES):
    """Seconds of training steps over those of their bare passes, taken in turns.

    There are as many steps as two pools of the teacher serve for.
    """
    world = s.judge.world
    short = {"pictures": 4, "captions": 4, "warmup": 1, "steps": steps, "stop_at": 0.0}
    settings = settings_of.TrainingSettings(**{**LEARNING, **short, "size": 8 * world.size})
    ours, bare, began = [], [], [0.0]
    with torch.inference_mode(False), torch.enable_grad():
        wanted = concepts(sequence_of(world)[:1], world)
        trainer = trainer_of(s.model, s.clip, wanted, settings)
        rows = settings.rows_per_step
        x, target = (torch.randn(rows, 4, world.size, world.size) for _ in range(2))
        sigma = trainer.network.levels((torch.arange(rows) + 0.5) / rows)

        def before_step():
            if trainer.step > settings.warmup:
                ours.append(time.perf_counter() - began[0])
            bare.append(bare_passes(trainer, x, target, sigma))
            began[0] = time.perf_counter()

        trainer.run(before_step)
    # The teacher is asked once for many steps: sums hold its share, medians would not.
    return sum(ours) / len(ours) / np.mean(bare[1 : len(ours) + 1])


def one_memory(kind):
    """Peak resident MB of three steps on SD1.5's shape: `plain` fine-tuning, or `ours`."""
    from testbed.shapes import random_model

    settings = settings_of.TrainingSettings(
        size=256,
        batch=1,
        held=2,
        pictures=1,
        captions=2,
        sampling_steps=1,
        warmup=1,
        steps=3,
        cfg=1.0,
        refresh=1,
        stop_at=0.0,
    )
    clip, model = studio().clip, random_model("SD1.5")
    forget = text.parse("fox -> animal")
    with torch.inference_mode(False), torch.enable_grad():
        if kind == "ours":
            trainer_of(model, clip, forget, settings).run()
        else:
            plain_fine_tuning(model, clip, forget, settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def plain_fine_tuning(model, clip, forget, settings):
    """Three steps of torch's Adam on the same matrices."""
    plan = plans.build_plan(clip, forget, captions=settings.captions)
    conditioned = networks.conditioning(model, clip, plan.texts, settings.size, (4, 32, 32))
    net = networks.Network(model, [layer.key for layer in networks.layers(model)], conditioned)
    del net.reference, net.teacher, net.teacher_weights
    optimizer = torch.optim.Adam(net.trainable.values(), lr=1e-6)
    x, sigma = torch.randn(4, 4, 32, 32), net.levels([0.2, 0.4, 0.6, 0.8])
    for _ in range(3):
        optimizer.zero_grad()
        (net.predict(net.student, x, sigma, [0, 1, 2, 3]) - x).square().mean().backward()
        optimizer.step()


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
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument(
        "--variants", default=",".join(settings_of.VARIANTS), help="which variants to run"
    )
    parser.add_argument("--concepts", type=int, default=4, help="how many to forget")
    parser.add_argument("--set", default="", help="settings to try, as in hold=4,batch=2")
    parser.add_argument("--strength", choices=settings_of.STRENGTHS, default="normal")
    parser.add_argument("--no-cost", action="store_true", help="leave out the cost of a step")
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        return one_memory(given.memory)
    s, world = studio(given.world), catalogue.get(given.world)
    names = sequence_of(world)[: 2 if given.quick else given.concepts]
    more = {
        k: type(settings_of.DEFAULTS[k])(v)
        for k, v in (part.split("=") for part in given.set.split(",") if part)
    }
    each = 1 if given.quick else 2
    before = {
        n: accuracy(s, kept_shots(names, n, world)) for n in {1, each}
    }  # pictures of each object -> what the unedited model gets right
    print(
        f"unedited: kept {rate(before[each], before[each]):.3f}, "
        f"to forget {rate(accuracy(s, plain(names, 2)), names):.3f}",
        flush=True,
    )
    table = {}
    for variant in ("replay",) if given.quick else given.variants.split(","):
        table[variant] = sequence(s, names, variant, before, each, strength=given.strength, **more)
    result = {k: v for k, v in next(iter(table.values())).items() if k != "rounds"}
    if not given.no_cost:
        result["step_cost"] = round(step_cost(s), 3)
        if not given.quick:
            result["memory_ratio"] = round(memory_ratio(), 3)
    result["variants"] = {name: found["rounds"] for name, found in table.items()}
    said = ", ".join(f"{k} {v}" for k, v in result.items() if k != "variants")
    print(json.dumps(result) if given.json else said)


if __name__ == "__main__":
    main()
