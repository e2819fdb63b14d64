"""FIA's saliency on a ComfyUI model: prompts in lockstep, what enters every second feed-forward linear is measured as it passes."""

import time

import comfy.model_management
import comfy.utils
import torch

from ...kernels import fia
from ..errors import UnlearnError
from ..files import saliency_file
from ..host import batched_sampling, progress, weights
from ..host.architectures import feed_forward, native_size
from ..types import ActivationStats, Ranking, SaliencyMap
from . import prompts

DEFAULTS = {
    "score": "paper", "prompts": 5, "steps": 50, "window": 10, "cfg": 7.5, "seed": 1244, "size": 0, "halves": "conditional",
    "r1": 0.05, "scale": "layer_max", "ceiling": 0.06, "first": 0,
}  # fmt: skip
MEASURED_ALIKE = (
    "score",
    "steps",
    "window",
    "cfg",
    "size",
    "halves",
)  # what maps must share for their statistics to be merged
BASE = "base "  # begins the name of a group of prompts without any concept


def collect(
    model,
    clip,
    concepts,
    templates=(),
    base=(),
    contexts=(),
    *,
    folder=None,
    node_id=None,
    **settings,
):
    """(SaliencyMap, report text) of a ConceptSet; settings as in DEFAULTS; templates, base, contexts: own lines instead of the built-in
    ones. folder: where the raw statistics of the score `paper` go for a later merge, or None. The model is not changed.

    Raises UnlearnError on a model without transformer blocks or compiled, text that cannot be used, a full disk, or NaN activations.
    """
    settings = {**DEFAULTS, **settings}
    settings["size"] = settings["size"] or native_size(model)
    settings["window"] = min(settings["window"], settings["steps"])
    _not_compiled(model)
    layers = tuple((layer.key, *weights.shape(model, layer.key)) for layer in feed_forward(model))
    groups = prompts.pairs(
        clip, concepts, settings["prompts"], settings["first"], templates, base, contexts
    )
    names, n = [name for name, *_ in groups], settings["prompts"]
    texts = [t for _, _, part in groups for t in part]
    # the noise goes with a pair's number: a concept's prompt and its base prompt begin alike
    seeds = [(settings["seed"] + settings["first"] + i) % 2**63 for i in range(n)]
    raw = None
    if settings["score"] == "wanda":
        statistics = _Vectors(layers, names, settings["window"])
    else:
        if folder is not None:
            raw = saliency_file.RawWriter(folder, layers, names, settings["window"])
            progress.say(
                f"Raw statistics will take {raw.nbytes / 2**30:.2f} GB in {raw.path}.", node_id
            )
        statistics = _Matrices(model, layers, names, settings["r1"], raw)
    watch = _Watch(model, layers, groups, statistics, settings, node_id)
    how = {k: settings[k] for k in ("steps", "window", "cfg", "size")}
    numbers = [list(range(g * n, (g + 1) * n)) for g in range(len(groups))]
    plan = batched_sampling.SamplingPlan(texts, seeds * len(groups), numbers, **how)
    calls = batched_sampling.sample(model, clip, plan, watch)
    gathered = {
        name: ActivationStats(
            tuple(f"{s}:{t}" for s, t in zip(seeds, part, strict=True)),
            *statistics.kept(g),
            (raw.path.name,) if raw else (),
        )
        for g, (name, _, part) in enumerate(groups)
    }
    by_name = {c.name: c for c in concepts.concepts}
    ordered = tuple(by_name[name] for name in names if not name.startswith(BASE))
    found = SaliencyMap(
        ordered,
        layers,
        statistics.rankings(settings)
        if settings["score"] == "paper"
        else rank(model, layers, ordered, gathered, settings),
        settings["ceiling"],
        weights.fingerprint(model, [key for key, *_ in layers]),
        {**settings, "templates": list(templates), "base": list(base), "contexts": list(contexts)},
        gathered,
    )
    return found, _text(found, calls, len(groups), watch.seconds)


class _Watch:
    """What `lockstep.sample` calls: hooks on the layers, which group is on, progress with the time left, a check for NaN."""

    def __init__(self, model, layers, groups, statistics, settings, node_id):
        self.model, self.layers, self.groups, self.statistics, self.settings, self.node_id = (
            model, layers, groups, statistics, settings, node_id
        )  # fmt: skip
        self.handles, self.done, self.seconds = [], 0, 0.0
        self.total = settings["window"] * sum(len(part) for *_, part in groups)
        self.bar = progress.Progress(self.total, node_id)

    def begin(self, guider):
        self.start = time.time()
        self.statistics.allocate(self.model.load_device)
        self._open(0, 0)
        for i, (key, *_) in enumerate(self.layers):
            module = comfy.utils.get_attr(self.model.model, key.removesuffix(".weight"))
            self.handles.append(module.register_forward_hook(self._hook(i)))

    def end(self):
        for handle in self.handles:
            handle.remove()
        self.seconds = time.time() - self.start

    def batch(self, chosen, b):
        self.chosen, self.b = chosen, b

    def _open(self, step, g):
        self.moments = self.statistics.open(step, g)
        self.seen = [set() for _ in self.layers]

    def _hook(self, i):
        def measure(module, args, output):
            halves = args[0].shape[0] // self.b if self.settings["halves"] == "both" else 1
            for place, number in enumerate(self.chosen):
                if number in self.seen[i]:  # measured before memory ran out further on
                    continue
                rows = [place + half * self.b for half in range(halves)]
                self.moments[i].add(self.statistics.activation(module, args[0][rows], output[rows]))
                self.seen[i].add(number)

        return measure

    def group(self, step, g):
        name, _, part = self.groups[g]
        if not all(torch.isfinite(m.mean).all() for m in self.moments):
            raise UnlearnError(
                f"The input 'model' gives NaN for the prompts of '{name}' at step {step + 1}; "
                "load an undamaged checkpoint, or run it in float32."
            )
        self.statistics.close(step, g)
        self.done += len(part)
        self.bar.step(len(part))
        left = (time.time() - self.start) * (self.total / self.done - 1)
        progress.status(
            f"step {step + 1} of {self.settings['window']}, about {left:.0f} s left", self.node_id
        )
        if self.done < self.total:
            self._open(step + (g + 1) // len(self.groups), (g + 1) % len(self.groups))


class _Vectors:
    """Statistics of the score `wanda`: one number per hidden unit, group and step, kept for good."""

    def __init__(self, layers, names, window):
        self.layers, self.names, self.window = layers, names, window

    def allocate(self, device):
        table = lambda: torch.zeros(self.window, sum(c_in for *_, c_in in self.layers))
        self.tables = [
            (table(), table()) if name.startswith(BASE) else (table(),) for name in self.names
        ]

    def activation(self, module, x, output):
        return fia.column_norms(x.flatten(0, -2).float()).cpu()

    def open(self, step, g):
        widths = [c_in for *_, c_in in self.layers]
        return [
            fia.RunningMoments(*parts)
            for parts in zip(*(t[step].split(widths) for t in self.tables[g]), strict=True)
        ]

    def close(self, step, g):
        pass

    def kept(self, g):
        return (*self.tables[g], None)[:2]


class _Matrices:
    """Statistics of the score `paper`: two arrays of all layers' weights, the mean and deviation of the base, then its bound and a
    concept's mean; and per concept the sums over steps. Nothing grows with the number of prompts or steps."""

    def __init__(self, model, layers, names, r1, raw):
        self.model, self.layers, self.names, self.r1, self.raw = model, layers, names, r1, raw

    def allocate(self, device):
        shapes = [shape for _, *shape in self.layers]
        concepts = sum(not name.startswith(BASE) for name in self.names)
        need = sum(a * b for a, b in shapes) * (8 + 5 * concepts) * 1.2
        if device.type != "cpu" and comfy.model_management.get_free_memory(device) < need:
            device = torch.device("cpu")
        self.device = device
        self.first, self.second = (
            [torch.zeros(s, device=device) for s in shapes] for _ in range(2)
        )
        self.integrals = {
            g: [fia.SaliencyAccumulator(s, device) for s in shapes]
            for g, name in enumerate(self.names)
            if not name.startswith(BASE)
        }

    def activation(self, module, x, output):
        y = output.flatten(0, -2).float()
        if module.bias is not None:
            y = y - module.bias.to(y)
        return fia.correlation(x.flatten(0, -2).float(), y).to(self.device)

    def open(self, step, g):
        base = self.names[g].startswith(BASE)
        for buffer in (self.first if base else []) + self.second:
            buffer.zero_()
        self.moments = [
            fia.RunningMoments(a, b) if base else fia.RunningMoments(b)
            for a, b in zip(self.first, self.second, strict=True)
        ]
        return self.moments

    def close(self, step, g):
        if self.raw is not None:
            self.raw.write(step, self.names[g], self.moments)
        if self.names[g].startswith(BASE):
            for m in self.moments:
                m.mean.add_(m.m2.div_(m.n).sqrt_())
            return
        for (key, *_), mean, bound, integral in zip(
            self.layers, self.second, self.first, self.integrals[g], strict=True
        ):
            integral.add(
                fia.contrast(weights.read(self.model, key, device=self.device), mean, bound),
                self.r1,
            )

    def kept(self, g):
        return None, None

    def rankings(self, settings):
        self.first = self.second = self.moments = None
        found = []
        for parts in self.integrals.values():
            found.append(
                tuple(ranking(p.saliency(settings["scale"]), settings["ceiling"]) for p in parts)
            )
        return tuple(found)


def ranking(a, ceiling):
    """The Ranking of a layer's A [c_out, c_in]: its top share `ceiling`, and its row and column sums."""
    indices, values = fia.strongest(a, ceiling)
    peak = float(values[0]) if len(values) else 0.0
    values = (values / max(peak, 1e-30)).half()
    return Ranking(indices.cpu(), values.cpu(), a.sum(1).cpu(), a.sum(0).cpu(), peak)


def rank(model, layers, concepts, gathered, settings):
    """Rankings [concept][layer] from what was gathered: vectors (score `wanda`) or raw files (score `paper`)."""
    found, at = [[] for _ in concepts], 0
    for i, (key, c_out, c_in) in enumerate(layers):
        w = weights.read(model, key)
        integrals = [fia.SaliencyAccumulator((c_out, c_in)) for _ in concepts]
        for step in range(settings["window"]):
            comfy.model_management.throw_exception_if_processing_interrupted()
            moments = lambda name, i=i, step=step, at=at, end=at + c_in: _moments(
                gathered[name], name, step, i, slice(at, end)
            )
            bounds = {kind: moments(BASE + kind).bound() for kind in {c.kind for c in concepts}}
            for concept, integral in zip(concepts, integrals, strict=True):
                integral.add(
                    fia.contrast(w, moments(concept.name).mean, bounds[concept.kind]),
                    settings["r1"],
                )
        for into, integral in zip(found, integrals, strict=True):
            into.append(ranking(integral.saliency(settings["scale"]), settings["ceiling"]))
        at += c_in
    return tuple(map(tuple, found))


def _moments(part, name, step, layer, columns):
    """The Moments of one layer at one step of a Gathered."""
    if part.mean is not None:
        return fia.RunningMoments(
            part.mean[step, columns],
            part.m2[step, columns] if part.m2 is not None else None,
            len(part.prompts),
        )
    return saliency_file.read_raw(part.folders, name, step, layer)


def merge(maps, model=None):
    """One SaliencyMap of several: concepts that stand in one map only are taken as they are; statistics of a concept that stands in
    several, measured with different prompts, are merged exactly and ranked again, for which the MODEL is needed.

    Raises UnlearnError where maps are of different models or measured differently, share prompts, or have no statistics to merge.
    """
    first = maps[0]
    for other in maps[1:]:
        if (
            other.layers != first.layers
            or first.fingerprint.difference(other.fingerprint) > first.fingerprint.TOLERANCE
        ):
            raise UnlearnError(
                "The saliency maps are of different models; measure them all on the same checkpoint and LoRAs."
            )
        for name in MEASURED_ALIKE:
            if other.settings[name] != first.settings[name]:
                raise UnlearnError(
                    f"The saliency maps were measured with different '{name}' ({first.settings[name]} and {other.settings[name]}); "
                    "measure them alike."
                )
    holders = {}
    for found in maps:
        for concept, part in zip(found.concepts, found.rankings, strict=True):
            holders.setdefault(concept.name, []).append((concept, part))
    concepts = [held[0][0] for held in holders.values()]
    gathered = {}
    for name in dict.fromkeys(name for found in maps for name in found.gathered):
        gathered[name] = _merged(
            name, [found.gathered[name] for found in maps if name in found.gathered]
        )
    rankings = [held[0][1] for held in holders.values()]
    again = [i for i, held in enumerate(holders.values()) if len(held) > 1]
    if again:
        if model is None:
            raise UnlearnError(
                f"'{concepts[again[0]].name}' stands in several saliency maps; connect 'model' to merge their statistics."
            )
        anew = rank(model, first.layers, [concepts[i] for i in again], gathered, first.settings)
        for i, part in zip(again, anew, strict=True):
            rankings[i] = part
    return SaliencyMap(
        tuple(concepts),
        first.layers,
        tuple(rankings),
        min(m.ceiling for m in maps),
        first.fingerprint,
        first.settings,
        gathered,
    )


def _merged(name, parts):
    """One Gathered of several: the same prompts count once, different ones together."""
    whole = parts[0]
    for part in parts[1:]:
        if set(part.prompts) == set(whole.prompts):
            continue
        if set(part.prompts) & set(whole.prompts):
            raise UnlearnError(
                f"The saliency maps share some prompts of '{name}', which would count twice; measure other prompts ('first' or 'seed')."
            )
        mean = m2 = None
        if whole.mean is not None:
            both = fia.RunningMoments(whole.mean, whole.m2, len(whole.prompts)).merge(
                fia.RunningMoments(part.mean, part.m2, len(part.prompts))
            )
            mean, m2 = both.mean, both.m2
        elif not (whole.folders and part.folders):
            raise UnlearnError(
                f"The statistics of '{name}' were not kept; measure with score 'wanda', or with 'paper' and a name for raw statistics."
            )
        whole = ActivationStats(
            whole.prompts + part.prompts, mean, m2, whole.folders + part.folders
        )
    return whole


def _not_compiled(model):
    if any("torch.compile" in by_key for by_key in model.wrappers.values()):
        raise UnlearnError(
            "The input 'model' is compiled, which hides what passes between its layers; connect it before TorchCompileModel."
        )


def _text(found, calls, groups, seconds):
    lines = [
        f"Saliency of {len(found.concepts)} concept{'s' * (len(found.concepts) > 1)} in {len(found.layers)} layers, score "
        f"{found.settings['score']}: {groups} groups x {found.settings['prompts']} prompts x {found.settings['window']} steps = {calls} "
        f"UNet calls, {seconds:.0f} s."
    ]
    for concept, parts in zip(found.concepts, found.rankings, strict=True):
        if not any(len(p.indices) for p in parts):
            lines.append(
                f"WARNING: '{concept.name}' stands out nowhere; check its spelling, or use more prompts and contexts that differ from it."
            )
    return "\n".join([*lines, "Next: connect the saliency to Fuse Neuron Masks."])
