"""What is left of a concept: at part strength, in other settings, and behind many words.

Parts:
- strength: at each strength of the default patch, the share of 8 pictures that still show the
  concept, and what the edited model's predictions keep of it.
- settings: the same at full strength, for settings that forget less than the default.
- positions: per number of words before the concept, what keys and values keep of the difference to
  the same sentence with its superclass, at the concept's own token and at the end token. The words
  are none that a solve reads.
With --json, each line is a JSON object.
"""

import argparse
import json
import random

import torch

from testbed import pack, trial
from testbed.worlds import catalogue

STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0)
SETTINGS = (
    {},
    {"prior": False},
    {"overshoot": 0.0},
    {"variant": "paper"},
    {"variant": "uce"},
    {"erase": 0.01},
)
WORDS_BEFORE = (0, 4, 10, 20, 40, 60)
FILLERS = 3
WORDS = (
    "ancient market village harbour morning winter golden quiet busy street crowd lantern bridge "
    "valley river meadow cloudy bright narrow wooden painted distant gentle silver crimson marble "
    "garden tower island forest station corner window ceiling curtain carpet mirror candle basket "
    "bottle ladder engine wheel tunnel canyon desert glacier orchard vineyard pasture chapel pier "
    "gallery balcony cellar attic"
).split()


def concept_lines(world, count=3):
    """`name -> superclass` of the first objects of a world."""
    return [f"{name} -> {world.superclass[name]}" for name in world.order[:count]]


def share_left(world, patched, line):
    """What the predictions of an edited MODEL keep of the one concept of a line."""
    aftermath = pack.module("unlearn.closed_form.aftermath")
    concepts = pack.module("unlearn.concepts.notation").parse(line).concepts
    studio = trial.studio(world)
    return aftermath.remaining(studio.model, patched, studio.clip, concepts)[0].left


def by_strength(name):
    for line in concept_lines(catalogue.get(name)):
        concept = line.split(" -> ")[0]
        patch, _ = trial.solve(line, trial.everything_but(concept, world=name), world=name)
        for strength in STRENGTHS:
            model, _ = trial.apply(patch, world=name, strength=strength)
            yield {
                "concept": concept,
                "strength": strength,
                "drawn": trial.rate(concept, model, world=name),
                "left": share_left(name, model, line),
            }


def by_settings(name):
    for line in concept_lines(catalogue.get(name), 2):
        concept = line.split(" -> ")[0]
        keep = trial.everything_but(concept, world=name)
        for settings in SETTINGS:
            patch, report = trial.solve(line, keep, world=name, **settings)
            model, _ = trial.apply(patch, world=name)
            yield {
                "concept": concept,
                "settings": settings or "default",
                "drawn": trial.rate(concept, model, world=name),
                "left": share_left(name, model, line),
                "warned": "WARNING" in report,
            }


def by_position(name):
    encoding, weights = (
        pack.module(f"unlearn.host.{module}") for module in ("text_encoding", "weights")
    )
    studio = trial.studio(name)
    line = concept_lines(catalogue.get(name), 1)[0]
    concept, superclass = line.split(" -> ")
    patch, _ = trial.solve(line, trial.everything_but(concept, world=name), world=name)
    edited, _ = trial.apply(patch, world=name)
    pairs = [(weights.read(studio.model, k), weights.read(edited, k)) for k, _ in patch.edits]
    for count in WORDS_BEFORE:
        left = {"own": [], "end": []}
        for seed in range(FILLERS):
            words = random.Random(seed).sample(WORDS, min(count, len(WORDS)))
            words += words[: count - len(words)]
            template = " ".join([*words, "{concept}"])
            said, other = (encoding.locate(studio.clip, template, n) for n in (concept, superclass))
            states = encoding.encode(studio.clip, [said.text, other.text])
            for role, at, there in (
                ("own", said.last, other.last),
                ("end", said.end, other.end),
            ):
                added = states[said.text][at] - states[other.text][there]
                after = sum(float((w @ added).square().sum()) for _, w in pairs)
                before = sum(float((w @ added).square().sum()) for w, _ in pairs)
                left[role].append((after / before) ** 0.5)
        means = {role: sum(values) / FILLERS for role, values in left.items()}
        yield {"concept": concept, "words before": count, **means}


PARTS = {"strength": by_strength, "settings": by_settings, "positions": by_position}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, default="strength")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--json", action="store_true", help="lines as JSON")
    given = parser.parse_args()
    with torch.inference_mode():
        for row in PARTS[given.part](given.world):
            row = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
            print(json.dumps(row) if given.json else row, flush=True)


if __name__ == "__main__":
    main()
