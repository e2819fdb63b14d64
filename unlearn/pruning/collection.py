"""FIA's saliency on a model of ComfyUI.

All prompts are sampled together, and what enters every second feed-forward linear is measured as it
passes.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UnlearnError
from ..files.raw_statistics import RawWriter
from ..host import (
    activation_hooks,
    architectures,
    batched_sampling,
    memory,
    phrase_places,
    progress,
    text_encoding,
    weights,
    whole_sampling,
)
from ..host.architectures import feed_forward
from ..host.model_types import Clip, Model
from ..types import ActivationStats, Concept, ConceptSet, Group, Ranking, SaliencyMap
from . import prompts, report
from .group_statistics import GB, GroupStatistics, Layers, PaperStatistics, WandaStatistics
from .prompts import BUILT_IN, OwnLines, PromptGroup
from .ranking import Gathered, rank, ranking, rooms
from .settings import SALIENCY_DEFAULTS, SaliencySettings

DEFAULTS = SALIENCY_DEFAULTS


def collect(
    model: Model,
    clip: Clip,
    concepts: ConceptSet,
    own: OwnLines = BUILT_IN,
    *,
    folder: Path | None = None,
    node_id: str | None = None,
    encoded: batched_sampling.Encoded | None = None,
    **settings: Any,
) -> tuple[SaliencyMap, str]:
    """(SaliencyMap, report text) of a ConceptSet. The model is not changed.

    settings: fields of SaliencySettings. folder: where the raw statistics of the score `paper` go
    for a later merge, or None. encoded: prompt -> (states [1, n, d], extras) that the model reads
    in place of what the CLIP says of it. Raises UnlearnError on a model without transformer blocks,
    a compiled model, text that cannot be used, too little memory, a full disk, or NaN activations.
    """
    chosen = SaliencySettings(**settings)
    chosen = replace(
        chosen,
        size=chosen.size or architectures.of(model).native_size(),
        window=min(chosen.window, chosen.steps),
    )
    if activation_hooks.is_compiled(model):
        raise UnlearnError(
            "The input 'model' is compiled, which hides what passes between its layers; "
            "connect it before TorchCompileModel."
        )
    layers = _layers(model)
    check = _check_of(model, chosen)
    groups = prompts.build_groups(clip, concepts.concepts, chosen.prompts, chosen.first, own, check)
    statistics = _statistics(model, layers, groups, chosen, folder, node_id)
    watch = _Watch(model, layers, groups, statistics, chosen, node_id)
    calls = _sample(model, clip, groups, chosen, watch, encoded or {})
    watch.bar.begin("Choosing the strongest connections of each concept")
    gathered = _gathered(groups, statistics, chosen)
    by_name = {c.name: c for c in concepts.concepts}
    ordered = [by_name[group.concept] for group in gathered if group.concept is not None]
    found = SaliencyMap(
        tuple(ordered),
        layers,
        _rankings(model, layers, ordered, gathered, statistics, chosen),
        chosen.ceiling,
        weights.fingerprint(model, [key for key, *_ in layers]),
        asdict(chosen)
        | {name: list(lines) for name, lines in own._asdict().items()}
        | text_encoding.clip_layer(clip),
        gathered,
    )
    text = report.saliency_text(found, calls, len(groups), watch.seconds, statistics.memory_note)
    return found, text


def _check_of(model: Model, settings: SaliencySettings) -> prompts.Check:
    """What tells whether the CLIP of this kind of model can read a concept in a sentence.

    Raises UnlearnError for a setting that this kind of model does not know.
    """
    if not isinstance(architectures.of(model), architectures.Transformer):
        return text_encoding.locate
    if settings.halves != "conditional":
        raise UnlearnError(
            "The input 'halves' is 'both', which works with SD1.x, SD2.x and SDXL alone; set it to "
            "'conditional'."
        )
    return phrase_places.check


def _statistics(
    model: Model,
    layers: Layers,
    groups: Sequence[PromptGroup],
    settings: SaliencySettings,
    folder: Path | None,
    node_id: str | None,
) -> GroupStatistics:
    """What will hold the statistics. Tells how much memory and disk they will take."""
    names = [group for group, _ in groups]
    if settings.score == "wanda":
        return WandaStatistics(layers, names, settings.window)
    raw = None if folder is None else RawWriter(folder, layers, names, settings.window)
    statistics = PaperStatistics(model, layers, names, settings, raw)
    note = f"The statistics will take {statistics.need.total / GB:.2f} GB of memory."
    if raw is not None:
        note += f" Raw statistics will take {raw.nbytes / GB:.2f} GB in {raw.path}."
    progress.say(note, node_id)
    return statistics


def _seeds(settings: SaliencySettings) -> list[int]:
    """The noise of each number, so that a concept's prompt and its baseline's begin alike."""
    first = settings.seed + settings.first
    return [(first + i) % 2**63 for i in range(settings.prompts)]


def _layers(model: Model) -> tuple[tuple[str, int, int], ...]:
    """Key, output width and input width of every layer that is measured."""
    found = []
    for layer in feed_forward(model):
        d_out, d_in = weights.shape(model, layer.key)
        found.append((layer.key, d_out, d_in))
    return tuple(found)


def _sample(
    model: Model,
    clip: Clip,
    groups: Sequence[PromptGroup],
    settings: SaliencySettings,
    watch: "_Watch",
    encoded: batched_sampling.Encoded,
) -> int:
    """Runs all prompts of all groups; the number of UNet calls."""
    count = settings.prompts
    plan = batched_sampling.SamplingPlan(
        texts=[text for _, texts in groups for text in texts],
        seeds=_seeds(settings) * len(groups),
        groups=[list(range(g * count, (g + 1) * count)) for g in range(len(groups))],
        steps=settings.steps,
        window=settings.window,
        cfg=settings.cfg,
        size=settings.size,
        encoded=encoded,
    )
    return whole_sampling.sample(model, clip, plan, watch)


def _gathered(
    groups: Sequence[PromptGroup], statistics: GroupStatistics, settings: SaliencySettings
) -> dict[Group, ActivationStats]:
    folders = (statistics.folder.name,) if statistics.folder else ()
    gathered = {}
    for g, (group, texts) in enumerate(groups):
        named = tuple(f"{s}:{text}" for s, text in zip(_seeds(settings), texts, strict=True))
        mean, m2 = statistics.kept(g)
        gathered[group] = ActivationStats(named, mean, m2, folders)
    return gathered


def _rankings(
    model: Model,
    layers: Layers,
    concepts: Sequence[Concept],
    gathered: Gathered,
    statistics: GroupStatistics,
    settings: SaliencySettings,
) -> tuple[tuple[Ranking, ...], ...]:
    """Rankings [concept][layer], with concepts in the order of their groups."""
    if not isinstance(statistics, PaperStatistics):
        return rank(model, layers, concepts, gathered, asdict(settings))
    statistics.release_work()
    rankings = []
    for g in statistics.concepts:
        parts = []
        for layer, room in enumerate(rooms(layers, settings.ceiling)):
            memory.raise_if_cancelled()
            a = statistics.saliency(g, layer, settings.scale)
            parts.append(ranking(a, settings.ceiling, room))
        rankings.append(tuple(parts))
    statistics.release()
    return tuple(rankings)


class _Watch:
    """What `batched_sampling.sample` calls while it runs.

    It has the hooks on the layers, knows which group is on, shows progress with the time left, and
    checks for NaN.
    """

    def __init__(
        self,
        model: Model,
        layers: Layers,
        groups: Sequence[PromptGroup],
        statistics: GroupStatistics,
        settings: SaliencySettings,
        node_id: str | None,
    ) -> None:
        self.model = model
        # Then all that a layer sees is of one prompt, however a model lays it out.
        self.one_by_one = isinstance(architectures.of(model), architectures.Transformer)
        self.keys = [key for key, *_ in layers]
        self.groups = groups
        self.statistics = statistics
        self.settings = settings
        self.node_id = node_id
        self.hooks: activation_hooks.ActivationHooks | None = None
        self.start = time.time()
        self.seconds = 0.0
        self.done = 0
        self.total = settings.window * sum(len(texts) for _, texts in groups)
        self.bar = progress.Progress(self.total, node_id)
        self.bar.begin("Reading the prompts")

    def begin(self, guider: Any) -> None:
        """The model is loaded: takes memory and sets the hooks."""
        self.start = time.time()
        self.statistics.allocate(self.model.load_device)
        self._open(0, 0)
        pictures = sum(len(texts) for _, texts in self.groups)
        started = f"Starting {pictures:,} pictures, with each concept and without"
        self.bar.begin(started + ", step {at} of {of}", self.total, pictures)
        self.hooks = activation_hooks.ActivationHooks(self.model, self.keys, self._measure)

    def end(self) -> None:
        """Sampling is over, whatever happened."""
        if self.hooks is not None:
            self.hooks.remove()
        self.seconds = time.time() - self.start

    def batch(self, chosen: Sequence[int], b: int) -> None:
        """The next UNet call has the b prompts `chosen`."""
        self.chosen = chosen
        self.b = b

    def _open(self, step: int, g: int) -> None:
        self.moments = self.statistics.open(step, g)
        self.seen: list[set[int]] = [set() for _ in self.keys]

    def _measure(
        self, layer: int, module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor
    ) -> None:
        if self.one_by_one:
            x, output = x.flatten(0, -2)[None], output.flatten(0, -2)[None]
        halves = x.shape[0] // self.b if self.settings.halves == "both" else 1
        for place, number in enumerate(self.chosen):
            # A call that ran out of memory behind this layer is repeated with fewer prompts.
            if number in self.seen[layer]:
                continue
            rows = [place + half * self.b for half in range(halves)]
            self.moments[layer].add(self.statistics.activation(module, x[rows], output[rows]))
            self.seen[layer].add(number)

    def group(self, step: int, g: int) -> None:
        """Group number g is through this step: its moments are final."""
        group, texts = self.groups[g]
        for key, seen in zip(self.keys, self.seen, strict=True):
            if not seen:
                raise UnlearnError(
                    f"The layer '{key.removesuffix('.weight')}' of the input 'model' is never "
                    "called, so it cannot be measured; use the model that it was made from."
                )
        if not all(torch.isfinite(m.mean).all() for m in self.moments):
            raise UnlearnError(
                f"The input 'model' gives NaN for the prompts of '{group.title}' at step "
                f"{step + 1}; load an undamaged checkpoint, or run it in float32."
            )
        self.statistics.close(step, g)
        self.moments = []  # they hold the statistics' memory
        self.done += len(texts)
        self.bar.step(len(texts))
        if self.done < self.total:
            following = g + 1
            self._open(step + following // len(self.groups), following % len(self.groups))
