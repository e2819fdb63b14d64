"""Forecast of collateral damage: which words lose their effect though nobody asked to forget them.

It has two parts. From the weights alone: all words of the general prior are compared by the state
of their own token, and the worst of them, with the keep list, are then examined in a sentence of
their own. This tells little of which objects a model really loses (docs/results/forecast.md).
From predictions: both models predict a picture from noise alone under each word, and a word is
harmed that no longer stands out from other words in the same way. This tells far more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...kernels import forecast as kernel
from .. import wording
from ..concepts import sentences
from ..files.text_cache import TextStateCache, default_folder
from ..host import architectures, batched_sampling, patch_match, patching, text_encoding, weights
from ..host import predictions as host_predictions
from ..host.architectures import Layer, cross_attention, native_size, pooled_text
from ..host.model_types import Clip, Model
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from ..types import UnlearnPatch
from ..wording import Findings
from . import charts, contrasts, prior_words, tuning
from .prior_words import Fetch
from .weight_grams import WeightGrams

EXAMINED_IN = sentences.KEPT[1]  # one sentence; each more costs time
WORDS_SHOWN = 12
CHART_HEADING = "Forecast: what is left of the effect of the words that are harmed most"
SMALLEST_SIZE = 64  # pixels
NAME_WHAT_MATTERS = "Try: add what matters to 'keep' of Concepts to Forget."


# (template, name) -> the sentence, once for each of the parts in which the model reads it.
Located = Callable[[str, str], Sequence[Prompt]]


class WordImpact(NamedTuple):
    """What an edit does to a word or a kept text.

    retention: 1 is untouched, 0 is gone. From the weights it is the share of what the word adds to
    keys and values that is left; from predictions, how far the word still stands out as it did.
    """

    name: str
    retention: float
    on_keep_list: bool


class TextContrast(NamedTuple):
    """What a text adds to a sentence, by role of the token."""

    rows: torch.Tensor  # [n, d] float64
    weights: torch.Tensor  # [n] float64


@dataclass(frozen=True)
class ForecastSettings:
    """How a patch is examined.

    strength: the one it will be applied at. predict: also compare predictions from noise. size:
    side in pixels of the predicted pictures, 0 for half of what the model was made for. node_id:
    the node that shows the progress.
    """

    strength: float = 1.0
    predict: bool = False
    size: int = 0
    node_id: str | None = None


def text_contrasts(clip: Clip, fetch: Fetch, names: Iterable[str]) -> dict[str, TextContrast]:
    """name -> what it adds to the token states of a sentence."""
    neutral, examined = _examined(clip, names)
    return _contrasts(neutral, examined, fetch)


def pooled_contrasts(clip: Clip, fetch: Fetch, names: Iterable[str]) -> dict[str, TextContrast]:
    """name -> what it adds to the pooled vector of a sentence. fetch: reads pooled vectors."""
    neutral, examined = _examined(clip, names)
    seen = {name: text_encoding.as_pooled(prompt) for name, prompt in examined.items()}
    return _contrasts(text_encoding.as_pooled(neutral), seen, fetch)


def _examined(clip: Clip, names: Iterable[str]) -> tuple[Prompt, dict[str, Prompt]]:
    """The sentence in which names are examined, with nothing and with each name in it."""
    examined = {}
    for name in names:
        template = text_encoding.fix_article(EXAMINED_IN, name)
        examined[name] = text_encoding.locate(clip, template, name)
    return text_encoding.locate(clip, EXAMINED_IN, ""), examined


def _contrasts(
    neutral: Prompt, examined: dict[str, Prompt], fetch: Fetch
) -> dict[str, TextContrast]:
    return _of_parts([neutral], {name: [prompt] for name, prompt in examined.items()}, fetch)


def located_contrasts(
    located: Located, fetch: Fetch, names: Iterable[str]
) -> dict[str, TextContrast]:
    """name -> what it adds to a sentence, as layers see it that `located` finds names for."""
    examined = {}
    for name in names:
        template = text_encoding.fix_article(EXAMINED_IN, name)
        examined[name] = located(template, name)
    return _of_parts(located(EXAMINED_IN, ""), examined, fetch)


def _of_parts(
    neutral: Sequence[Prompt], examined: dict[str, Sequence[Prompt]], fetch: Fetch
) -> dict[str, TextContrast]:
    states = fetch([*neutral, *(part for parts in examined.values() for part in parts)])
    found = {}
    for name, parts in examined.items():
        pairs = [
            (0, 1 / len(parts), part, other) for part, other in zip(parts, neutral, strict=True)
        ]
        contrast = contrasts.contrast(pairs, states, tokens="all", scale=1.0)
        found[name] = TextContrast(contrast.rows, contrast.weights)
    return found


def retention(contrast: TextContrast, grams: WeightGrams) -> float:
    """The share of what a text adds to the outputs of the layers that the edit leaves."""
    left = kernel.retention(contrast.rows[None], grams.before, grams.cross, contrast.weights[None])
    return float(left)


def suspects(
    words: tuple[str, ...],
    states: torch.Tensor,
    grams: WeightGrams,
    count: int = tuning.SUSPECT_WORDS,
) -> list[str]:
    """The words whose own token states [len(words), d] lose most of what sets them apart."""
    if not words:
        return []
    left = kernel.retention(states - states.mean(0), grams.before, grams.cross)
    return [words[i] for i in left.argsort()[:count].tolist()]


def _pictured(words: tuple[str, ...], states: torch.Tensor) -> tuple[tuple[str, ...], torch.Tensor]:
    """The words that a picture can show, and their token states, of words and states [n, d]."""
    places = [i for i, word in enumerate(words) if word in sentences.pictured_words()]
    return tuple(words[i] for i in places), states[places]


class WeightForecast:
    """The forecast from the weights alone, for one text encoder, keep list and list of words.

    It keeps what it has read of a word, so that a second edit costs little. pooled: it is of
    layers that read pooled text vectors, and `fetch` reads these. located: finds names in
    sentences, None where CLIP's positions hold.
    """

    def __init__(
        self,
        clip: Clip,
        fetch: Fetch,
        keep: Iterable[str],
        words: tuple[str, ...],
        word_states: torch.Tensor,
        pooled: bool = False,
        located: Located | None = None,
    ) -> None:
        self._pooled, self._located = pooled, located
        self.contrasts: dict[str, TextContrast] = {}  # by name, as far as examined
        self._clip = clip
        self._fetch = fetch
        self._keep = tuple(keep)
        self._words = words
        self._word_states = word_states

    def impacts(self, grams: WeightGrams, pictured: bool = False) -> list[WordImpact]:
        """The impacts on the keep list and on the suspects among the words, worst first.

        pictured: only words that a picture can show are suspects.
        """
        words, states = self._words, self._word_states
        if pictured:
            words, states = _pictured(words, states)
        found = suspects(words, states, grams)
        names = list(dict.fromkeys([*self._keep, *found]))
        self.examine(names)
        impacts = []
        for name in names:
            left = retention(self.contrasts[name], grams)
            impacts.append(WordImpact(name, left, name in self._keep))
        return sorted(impacts, key=lambda impact: impact.retention)

    def examine(self, names: Iterable[str]) -> None:
        """Reads what each of the names adds to a sentence, where that is not known yet."""
        new = [name for name in names if name not in self.contrasts]
        if not new:
            return
        if self._located is not None:
            self.contrasts |= located_contrasts(self._located, self._fetch, new)
            return
        read = pooled_contrasts if self._pooled else text_contrasts
        self.contrasts |= read(self._clip, self._fetch, new)

    def worse_of(self, impacts: Iterable[WordImpact], grams: WeightGrams) -> list[WordImpact]:
        """Impacts on other layers, or on those of this forecast where these are worse."""
        impacts = list(impacts)
        self.examine(impact.name for impact in impacts)
        found = []
        for impact in impacts:
            left = retention(self.contrasts[impact.name], grams)
            found.append(impact._replace(retention=min(impact.retention, left)))
        return sorted(found, key=lambda impact: impact.retention)


def impacts_on_predictions(
    before: Model,
    after: Model,
    clip: Clip,
    impacts: Iterable[WordImpact],
    size: int = 0,
    step: Callable[[], None] = lambda: None,
) -> list[WordImpact]:
    """The same words as two MODELs see them, worst first: how far each still stands out as it did.

    Of the keep list the first `MAX_KEEP_ENTRIES` are taken. size: side in pixels of the predicted
    pictures, 0 for half of what the models were made for. step: called after each batch.
    """
    size = size or max(SMALLEST_SIZE, native_size(before) // 2)
    impacts = list(impacts)
    kept = [impact for impact in impacts if impact.on_keep_list]
    impacts = [impact for impact in impacts if not impact.on_keep_list]
    impacts += kept[: tuning.MAX_KEEP_ENTRIES]
    prompts = []
    for name in dict.fromkeys([*(impact.name for impact in impacts), *_reference_words()]):
        template = text_encoding.fix_article(EXAMINED_IN, name)
        prompts.append(text_encoding.prompt_of(template, name))
    encoded: batched_sampling.Encoded = {}
    predictions = [
        host_predictions.from_noise(
            model,
            clip,
            prompts,
            tuning.NOISE_SEEDS,
            level=tuning.NOISE_LEVEL,
            size=size,
            step=step,
            encoded=encoded,
        ).flatten(1)
        for model in (before, after)
    ]
    left = kernel.agreement(*predictions).tolist()
    found = [impact._replace(retention=value) for impact, value in zip(impacts, left, strict=False)]
    return sorted(found, key=lambda impact: impact.retention)


def _reference_words(pictured: bool = False) -> list[str]:
    """Words of the general prior, evenly spread, that the words in question are compared with.

    pictured: of those that a picture can show.
    """
    words = sentences.prior_words()
    if pictured:
        words = tuple(word for word in words if word in sentences.pictured_words())
    if not words:
        return []
    places = torch.linspace(0, len(words) - 1, tuning.REFERENCE_WORDS).long()
    return [words[i] for i in places.tolist()]


def of_patch(
    model: Model,
    clip: Clip,
    patch: UnlearnPatch,
    forgotten: Iterable[str] = (),
    keep: Sequence[str] = (),
    settings: ForecastSettings = ForecastSettings(),
) -> list[WordImpact]:
    """The impacts of a patch of any method on a MODEL, worst first. The model is not changed.

    forgotten: names to leave out. Raises UnlearnError for a patch of another architecture and for
    a CLIP of another width.
    """
    patch_match.check_keys(model, patch)
    calls = _prediction_batches(keep) if settings.predict else 0
    layers = [*cross_attention(model), *pooled_text(model)]
    bar = Progress(len(layers) + 1 + calls, settings.node_id)
    changes = _patch_changes(model, patch, settings.strength)
    bar.begin("Comparing layer {at} of {of}, then reading everyday words", len(layers))
    impacts = _of_changes(model, clip, changes, forgotten, keep, bar.step)
    if not settings.predict:
        return impacts
    bar.begin("Looking at what the model sees in noise, part {at} of {of}", calls)
    patched = patching.apply(model, patch, settings.strength)[0]
    return impacts_on_predictions(model, patched, clip, impacts, settings.size, bar.step)


def of_models(
    before: Model,
    after: Model,
    clip: Clip,
    forgotten: Iterable[str] = (),
    keep: Sequence[str] = (),
    step: Callable[[], None] = lambda: None,
) -> list[WordImpact]:
    """The impacts of whatever differs between two MODELs of one kind, worst first.

    forgotten: names to leave out. step: called after each layer. Raises UnlearnError for models
    without cross-attention and for a CLIP of another width.
    """
    changes = _model_changes(before, after)
    return _of_changes(before, clip, changes, forgotten, keep, step)


Change = tuple[Layer, torch.Tensor, torch.Tensor]  # a layer, W0 and W - W0, both [d_out, d]


def _patch_changes(model: Model, patch: UnlearnPatch, strength: float) -> Iterator[Change]:
    """The Change of every layer that text enters through."""
    edits: dict[str, list] = {}
    for key, edit in patch.edits:
        edits.setdefault(key, []).append(edit)
    for layer in (*cross_attention(model), *pooled_text(model)):
        w0 = weights.read(model, layer.key)
        delta = torch.zeros_like(w0)
        for edit in edits.get(layer.key, ()):
            delta = delta + edit.change(w0, strength)
        yield layer, w0, delta


def _model_changes(before: Model, after: Model) -> Iterator[Change]:
    """The Change of every layer that text enters through."""
    for layer in (*cross_attention(before), *pooled_text(before)):
        w0 = weights.read(before, layer.key)
        yield layer, w0, weights.read(after, layer.key) - w0


def _of_changes(
    model: Model,
    clip: Clip,
    changes: Iterable[Change],
    forgotten: Iterable[str],
    keep: Sequence[str],
    step: Callable[[], None],
) -> list[WordImpact]:
    """The impacts of the Change of every layer, from the weights alone."""
    family = architectures.of(model)
    if isinstance(family, architectures.Transformer):
        from . import observed_forecast  # which is made of this module's parts

        left_out = sentences.forgotten_words(forgotten)
        words = [word for word in _reference_words(pictured=True) if word not in left_out]
        return observed_forecast.impacts(family, clip, changes, words, keep, step)
    grams, pooled_grams, width, pooled_width = WeightGrams(), WeightGrams(), 0, 0
    for layer, w0, delta in changes:
        if layer.columns is None:
            grams.add_edited(w0, delta)
            width = w0.shape[1]
        else:
            columns = slice(*layer.columns)
            pooled_grams.add_edited(w0[:, columns], delta[:, columns])
            pooled_width = layer.columns[1] - layer.columns[0]
        step()
    states = TextStateCache(clip, default_folder(), pooled=pooled_width > 0)
    words, rows = prior_words.read_words(clip, states.get, forgotten)
    text_encoding.check_width(rows.shape[-1], width)
    of_states = WeightForecast(clip, states.get, keep, words, rows)
    impacts = of_states.impacts(grams, pictured=True)
    if pooled_width:
        of_pooled = WeightForecast(clip, states.get_pooled, keep, (), rows[:0], pooled=True)
        impacts = of_pooled.worse_of(impacts, pooled_grams)
    step()
    return impacts


def _prediction_batches(keep: Sequence[str]) -> int:
    """At most so many batches are predicted by `impacts_on_predictions`, if none is halved."""
    names = tuning.SUSPECT_WORDS + tuning.REFERENCE_WORDS + min(tuning.MAX_KEEP_ENTRIES, len(keep))
    predictions = 2 * len(tuning.NOISE_SEEDS) * names
    return -(-predictions // batched_sampling.LARGEST_BATCH)


def bars(impacts: Sequence[WordImpact], count: int = WORDS_SHOWN) -> list[charts.Bar]:
    """Bars of the words that are harmed most, for a chart with the heading `CHART_HEADING`."""
    found = []
    for impact in impacts[:count]:
        left = impact.retention
        colour = charts.GOOD if left > tuning.RETENTION_WARNING else charts.BAD
        found.append((impact.name, left, f"{max(left, 0):.0%} left", colour))
    return found


def findings(impacts: Sequence[WordImpact], bound: float = tuning.RETENTION_WARNING) -> Findings:
    """What a report says of the words that keep less than `bound`."""
    found = Findings()
    harmed = harmed_words(impacts, bound)
    kept = [impact for impact in harmed if impact.on_keep_list]
    others = [impact for impact in harmed if not impact.on_keep_list][:WORDS_SHOWN]
    if kept:
        found.warn(
            f"{wording.names((i.name for i in kept), quotes=True)} on your keep list may change.",
            "The edit weakens these entries of the keep list: "
            f"{_named(kept[:WORDS_SHOWN])} left of their effect.",
        )
    if others:
        found.advice.append(NAME_WHAT_MATTERS)
        found.details.append(
            "These words are not on the forget list, but the forecast expects them to be harmed "
            f"most: {_named(others)} left of their effect."
        )
    if not harmed:
        found.details.append(
            f"Forecast: of {len(impacts)} kept texts and suspect words none loses more than "
            f"{1 - bound:.0%} of its effect."
        )
    return found


def harmed_words(
    impacts: Sequence[WordImpact], bound: float = tuning.RETENTION_WARNING
) -> list[WordImpact]:
    """The impacts on words that keep less than `bound`."""
    return [impact for impact in impacts if impact.retention < bound]


def verdict(impacts: Sequence[WordImpact]) -> str:
    """The verdict of a report on a forecast: the keep list first, then words at risk."""
    harmed = sorted(harmed_words(impacts), key=lambda impact: not impact.on_keep_list)
    if harmed:
        return wording.sentence(f"{wording.names(impact.name for impact in harmed)} may change")
    return "Nothing else should change."


def _named(impacts: Iterable[WordImpact]) -> str:
    return ", ".join(f"{impact.name} {max(0.0, impact.retention):.0%}" for impact in impacts)
