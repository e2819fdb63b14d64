"""What the default of ScaPre does where words are alike: at keys and values, without pictures.

Kinds of words: `random`, of the sprite world's text encoder; `meaning`, of the emoji world's, the
first half of its look-alike pairs; `crowded`, as alike as a trained CLIP's (testbed/crowded.py).
Constants were chosen on these; `glyphs` and `others`, the other half of the emoji, check them.
Objects are forgotten one of each look-alike pair, and everything else is kept. The solve is the
node's own, from sentences to edits. All figures are of sentences that it was not given:

- left: share of what a forgotten word adds to keys and values that is left, mean and largest;
- twins: the same of the kept look-alikes of forgotten words, mean and smallest;
- kept: of all kept words, mean and smallest; wider: of the superclasses;
- drift: how far keys and values of kept prompts move; told: what the report says of it.

Parts: `default`; `ablation`, each part of the default off and each that is off on; `sensitivity`,
constants and settings at a half, as they are, and at double; `drift`, several bounds;
`weights`, how heavily what kept words add is held.
Last line with --json: one JSON object.
"""

import argparse
import contextlib
import json
from typing import NamedTuple

import torch

from testbed import crowded, pack
from testbed.judged import PLAIN, STYLED
from testbed.worlds import catalogue, checkpoint, meaning
from testbed.worlds.studio import studio

contrasts = pack.module("unlearn.analysis.contrasts")
encoding = pack.module("unlearn.host.text_encoding")
forecast = pack.module("kernels.forecast")
groups = pack.module("unlearn.closed_form.input_groups")
patch_edits = pack.module("unlearn.closed_form.patch_edits")
progress = pack.module("unlearn.host.progress")
scapre = pack.module("unlearn.closed_form.solve")
sentence_plan = pack.module("unlearn.closed_form.sentence_plan")
states = pack.module("unlearn.files.text_cache")
statistics = pack.module("unlearn.closed_form.token_statistics")
tuning = pack.module("unlearn.closed_form.tuning")

from .scapre_world import CACHE, concepts  # noqa: E402

HALF = len(catalogue.EMOJI.order) // 2
KINDS = {
    "random": catalogue.SPRITES,
    "meaning": catalogue.EMOJI._replace(order=catalogue.EMOJI.order[:HALF]),
    "crowded": catalogue.SPRITES,
    "glyphs": catalogue.GLYPHS,
    "others": catalogue.EMOJI._replace(order=catalogue.EMOJI.order[HALF:]),
}
CHOSEN_ON = ("random", "meaning", "crowded")
HELD_OUT = tuple(template.format(a="a {concept}") for template in PLAIN)
ROWS = 640  # of each simulated key or value matrix
WIDTH = 256  # of the simulated states


class Layer(NamedTuple):
    """What a solve asks of a layer: its names, and that it reads text with all columns."""

    key: str
    label: str
    columns: None = None


class KeyValues:
    """Matrices that read token states, as LayerWeights gives them: {name: [d_out, d]}."""

    def __init__(self, matrices):
        self.matrices = {name: w.float() for name, w in matrices.items()}
        self.layers = tuple(Layer(name, name) for name in matrices)
        self.model, self.width = None, next(iter(matrices.values())).shape[1]
        self.input_width, self.basis = self.width, None

    def __iter__(self):
        return ((layer, self.matrices[layer.key]) for layer in self.layers)

    @staticmethod
    def whole(layer, down):
        return down

    @staticmethod
    def have_earlier_patches():
        return False


class NarrowClip:
    """The emoji world's text encoder in its own 257 coordinates, which say all of its states."""

    def __init__(self):
        self.encoder = meaning.NarrowEncoder("l")

    def tokenize(self, words, return_word_ids=False):
        return crowded.tokenizer().tokenize_with_weights(words, return_word_ids)

    def encode_from_tokens(self, tokens):
        ids = [[entry[0] for entry in chunk] for chunk in tokens["l"]]
        rows = [row[: row.index(meaning.END) + 1] for row in ids]
        return self.encoder.read(rows)[0].flatten(0, 1)[None]


class Words(NamedTuple):
    """One kind of words: a world that names them, a CLIP, and keys and values."""

    world: catalogue.World
    clip: object
    layers: KeyValues


def words_of(kind):
    world = KINDS[kind]
    if kind == "crowded":
        g = torch.Generator().manual_seed(1)
        drawn = {f"matrix {i}": torch.randn(ROWS, WIDTH, generator=g) for i in range(4)}
        return Words(world, crowded.Clip(world, WIDTH), KeyValues(drawn))
    unet = checkpoint.read_compact(world.file, narrow=True)
    read = {n: w for n, w in unet.items() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    clip = NarrowClip() if world.keywords else studio(world.name).clip
    return Words(world, clip, KeyValues(read))


class Memory:
    """Token states of prompts, each read once."""

    def __init__(self, clip, folder=None):
        self.cache, self.states = states.TextStateCache(clip, folder), {}

    def get(self, wanted, progress=None):
        wanted = {prompt.text: prompt for prompt in wanted}
        self.states |= self.cache.get([p for text, p in wanted.items() if text not in self.states])
        return {text: self.states[text] for text in wanted}


class Measured(NamedTuple):
    """Figures of one edit: of words {name: share left}, and how far what is kept moves."""

    left: dict
    twins: dict
    kept: dict
    wider: dict
    drift: float
    told: float

    def row(self):
        """The figures as they are printed."""

        def mean(of):
            return sum(of.values()) / max(len(of), 1)

        return {
            "left": mean(self.left),
            "most": max(self.left.values()),
            "twins": mean(self.twins),
            "least": min(self.twins.values()),
            "kept": mean(self.kept),
            "kept least": min(self.kept.values()),
            "wider": mean(self.wider),
            "drift": self.drift,
            "told": self.told,
        }


class Bench:
    """One kind of words, and the solves of it."""

    def __init__(self, kind, folder=None):
        self.kind, self.words = kind, words_of(kind)
        self.world = self.words.world
        self.memory = Memory(self.words.clip, folder)
        self._contrasts = {}

    def solve(self, wanted, settings):
        """(the solution of the layers that read token states, the PatchEdits)."""
        plan = sentence_plan.plan(
            self.words.clip, wanted, settings.templates, settings.prior, settings.expand
        )
        group = groups.InputGroup(self.words.layers, plan, self.memory.get)
        solved = scapre.GroupSolve(
            self.words.clip, group, settings, wanted.keep, progress.Progress(1)
        )
        return solved, patch_edits.build(group.layers, solved.found.edit, solved.session.grams)

    def added(self, name, neutral, templates=HELD_OUT):
        """What a word adds to sentences in the place of another: one contrast for each."""
        key = name, neutral
        if key not in self._contrasts:
            pairs = []
            for template in templates:
                sentence = encoding.fix_article(template, name)
                pairs.append(
                    [encoding.locate(self.words.clip, sentence, n) for n in (name, neutral)]
                )
            read = self.memory.get([p for pair in pairs for p in pair])
            self._contrasts[key] = [
                contrasts.contrast([(0, 1.0, *pair)], read, "all", 1.0) for pair in pairs
            ]
        return self._contrasts[key]

    def retention(self, name, neutral, grams):
        """The share of what a word adds that is left, the mean over sentences."""
        left = [
            float(forecast.retention(c.rows[None], grams.before, grams.cross, c.weights[None]))
            for c in self.added(name, neutral)
        ]
        return sum(left) / len(left)

    def held_out(self, forget):
        """Second moment [d, d] of kept states in sentences that no solve was given."""
        world, texts = self.world, []
        kept = [n for n in world.objects if n not in forget]
        for i, name in enumerate(kept):
            texts += [world.plain(name, PLAIN[(i + j) % len(PLAIN)]).text for j in range(2)]
            style = world.styles[i % len(world.styles)]
            texts.append(world.styled(name, style, STYLED[i % len(STYLED)]).text)
        prompts = [encoding.locate(self.words.clip, "{concept}", text) for text in texts]
        read = self.memory.get(prompts)
        rows = torch.cat([statistics.kept_states(p, read[p.text]) for p in prompts]).double()
        return rows.T @ rows / len(rows)

    def measure(self, count, settings=None):
        """The Measured of a forget set, at settings of the node."""
        world, forget = self.world, self.world.order[:count]
        settings = settings or scapre.SolveSettings()
        with torch.inference_mode():
            solved, edits = self.solve(concepts(count, world=world), settings)
            grams = edits.grams

            def left(names):
                return {n: self.retention(n, world.superclass.get(n, ""), grams) for n in names}

            return Measured(
                left(forget),
                left([world.twin[n] for n in forget]),
                left([n for n in world.objects if n not in forget]),
                left(dict.fromkeys(world.superclass[n] for n in forget)),
                grams.drift(self.held_out(forget)),
                grams.drift(solved.found.stats.drift_gram),
            )


@contextlib.contextmanager
def constants(**values):
    """Constants of tuning.py changed for a while."""
    before = {name: getattr(tuning, name) for name in values}
    try:
        for name, value in values.items():
            setattr(tuning, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(tuning, name, value)


class Try(NamedTuple):
    """One row: its name, settings of the node, and constants of tuning.py."""

    name: str
    settings: dict
    constants: dict


DEFAULT = Try("default", {}, {})
CONSTANTS = (
    "NEUTRAL_WEIGHT",
    "CONTRAST_WEIGHT",
    "WORDS_WEIGHT",
    "TARGET_RESIDUAL",
    "CONTRASTED",
    "LOOKALIKES",
    "MEASURED_WORDS",
    "OVERSHOOT_ITERATIONS",
    "ENERGY",
)
SETTINGS = ("erase", "preserve", "anchor", "overshoot", "drift")


def ablation():
    """The default without each of its parts, and with each part that is off by default."""
    return (
        DEFAULT,
        Try("without what words add", {}, {"CONTRAST_WEIGHT": 0.0}),
        Try("without neutral sentences", {}, {"NEUTRAL_WEIGHT": 0.0}),
        Try("without common words", {}, {"WORDS_WEIGHT": 0.0}),
        Try("without the prior", {"prior": False}, {}),
        Try("without the push", {"overshoot": 0.0}, {}),
        Try("push without a bound", {"drift": 1.0}, {}),
        Try("spectral 1", {"spectral": 1.0}, {}),
        Try("spectral 1000", {"spectral": 1000.0}, {}),
        Try("Informax", {"informax": True}, {}),
        Try("hard_keep 0.9", {"hard_keep": 0.9}, {}),
        Try("hard_keep 0.99", {"hard_keep": 0.99}, {}),
        Try("variant paper", {"variant": "paper"}, {}),
        Try("variant paper, no geodesic", {"variant": "paper", "step": 0.0}, {}),
    )


def scaled(name, factor):
    """A constant times a factor; counts stay whole, and of ENERGY it is the share left out."""
    value = getattr(tuning, name)
    if name == "ENERGY":
        return 1 - factor * (1 - value)
    return round(factor * value) if isinstance(value, int) else factor * value


def sensitivity():
    """Constants and settings of the default at a half, and at double."""
    defaults = scapre.SolveSettings().chosen
    found = [DEFAULT]
    for factor in (0.5, 2.0):
        found += [Try(f"{n} x{factor:g}", {}, {n: scaled(n, factor)}) for n in CONSTANTS]
        found += [Try(f"{n} x{factor:g}", {n: factor * getattr(defaults, n)}, {}) for n in SETTINGS]
    return tuple(found)


def bounds():
    """A push that only `drift` stops: what is told and measured beside what was asked for."""
    endless = {"TARGET_RESIDUAL": -9.0}
    asked = (0.1, 0.15, 0.2, 0.25)
    return tuple(Try(f"drift {d}", {"drift": d, "overshoot": 3.0}, endless) for d in asked)


def weights():
    """How heavily what kept words add is held."""
    return tuple(
        Try(f"weight {w:g}", {}, {"CONTRAST_WEIGHT": w}) for w in (0.0, 0.3, 1.0, 3.0, 10.0)
    )


PARTS = {
    "default": lambda: (DEFAULT,),
    "ablation": ablation,
    "sensitivity": sensitivity,
    "drift": bounds,
    "weights": weights,
}


def line(name, row):
    return f"{name:28} " + " ".join(f"{key} {value:6.3f}" for key, value in row.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--part", choices=PARTS, default="default")
    parser.add_argument("--kinds", default=",".join(CHOSEN_ON), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--counts", default="1,4,12")
    given, table = parser.parse_args(), {}
    for kind in given.kinds.split(","):
        bench = Bench(kind, CACHE)
        counts = [min(int(n), len(bench.world.order)) for n in given.counts.split(",")]
        for count in dict.fromkeys(counts):
            print(f"{kind} words, {count} forgotten", flush=True)
            for one in PARTS[given.part]():
                with constants(**one.constants):
                    row = bench.measure(count, scapre.SolveSettings.of(**one.settings)).row()
                table.setdefault(kind, {}).setdefault(count, {})[one.name] = row
                print(line(one.name, row), flush=True)
    if given.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
