"""What an edit did: one set of prompts and seeds, drawn by the model before and after it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from .. import wording
from ..errors import UnlearnError
from ..host import architectures, drawn_prompts, matching, phrase_places, text_encoding
from ..host.architectures import cross_attention, native_size, pooled_text
from ..host.model_types import Clip, Model, Vae
from ..host.sampling import SamplerSettings
from ..types import ConceptSet
from . import (
    charts,
    clip_scores,
    drawing,
    forecast,
    measures,
    picture_pairs,
    report,
    sheet,
    tuning,
)
from .measures import Changes, WeightChanges
from .picture_pairs import Drawing, PicturePair, build_comparisons
from .verdict import verdict


@dataclass(frozen=True)
class ReportSettings:
    """What is drawn, and how. The names are those of the node's inputs."""

    seed: int = 7
    seeds: int = 2
    kept: int = 4
    steps: int = 20
    cfg: float = 7.0
    size: int = 0  # pixels; 0 is the size that the model was made for
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    templates: tuple[str, ...] = ()  # empty: one sentence by kind

    def all_seeds(self) -> list[int]:
        """The seeds that every prompt is drawn with."""
        return [(self.seed + i) % 2**64 for i in range(self.seeds)]

    def for_sampler(self) -> SamplerSettings:
        """The part that a KSampler has too."""
        return SamplerSettings(self.steps, self.cfg, self.sampler, self.scheduler, self.seed)


@dataclass(frozen=True)
class ReportInputs:
    """The models that are compared and what draws with them.

    clip_vision: for CLIP scores. score_clip: the text encoder that goes with it, where `clip` does
    not.
    """

    before: Model
    after: Model
    clip: Clip
    vae: Vae
    clip_vision: Any = None
    score_clip: Clip | None = None


@dataclass(frozen=True)
class Comparison:
    """The results of `compare`: two IMAGEs, the report in words, and all figures."""

    grid: torch.Tensor
    chart: torch.Tensor
    text: str
    metrics: dict[str, Any]


def compare(
    inputs: ReportInputs,
    concepts: ConceptSet,
    settings: ReportSettings,
    node_id: str | None = None,
) -> Comparison:
    """Draws all pairs with both models and measures what changed; neither model is changed.

    Cancelling raises within one sampling step. Raises UnlearnError for two models that do not go
    together, and for text that cannot be used.
    """
    _check(inputs)
    settings = dataclasses.replace(settings, size=settings.size or native_size(inputs.before))
    pairs = build_comparisons(
        inputs.clip,
        concepts,
        settings.templates,
        settings.kept,
        settings.all_seeds(),
        _reads(inputs.before),
    )
    live = drawing.LiveSheet(pairs, inputs.before, settings.steps, node_id)
    before, after = _draw_both(inputs, pairs, settings, live)
    weight_changes = measures.weight_changes(inputs.before, inputs.after)
    metrics, changes = measures.measure(pairs, before, after)
    metrics["weights"] = measures.weight_metrics(weight_changes)
    metrics["settings"] = _as_metrics(settings)
    metrics["model"] = live.of_model
    metrics["clip"] = None
    if inputs.clip_vision is not None:
        scorer = inputs.score_clip or inputs.clip
        metrics["clip"] = clip_scores.add_clip_scores(
            pairs, before, after, changes, inputs.clip_vision, scorer
        )
    impacts = _forecast(inputs, concepts, weight_changes, live)
    metrics["forecast"] = _forecast_metrics(impacts)
    kept = measures.of_kept(pairs, changes)
    found = verdict(metrics, kept)
    metrics["verdict"] = {
        "code": found.code,
        "text": found.text,
        "nothing_below": tuning.MIN_CHANGE,
        "damaged_from": tuning.DAMAGE_CHANGE,
        "suffers_from": tuning.SIDE_EFFECT_CHANGE,
    }
    metrics["shots"] = _pair_metrics(pairs, changes)
    text = report.write_text(found, metrics, weight_changes, report.of_forecast(impacts, kept))
    colour = report.verdict_colour(found.code)
    headline = wording.headline(text)
    grid = sheet.draw_sheet(headline, colour, pairs, live.thumbnails, changes, live.of_model)
    live.finish(grid)
    return Comparison(
        charts.to_image(grid),
        report.draw_chart(
            pairs, changes, metrics, weight_changes, impacts if isinstance(impacts, list) else ()
        ),
        text,
        metrics,
    )


def _check(inputs: ReportInputs) -> None:
    """Raises UnlearnError unless the models, the CLIP and the VAE go together.

    Models of families that the pack does not know are drawn as ComfyUI draws them.
    """
    models = (inputs.before, inputs.after)
    size = native_size(inputs.before)
    before, after = (drawn_prompts.latent_shape(model, size) for model in models)
    if before != after:
        raise UnlearnError(
            "The inputs 'before' and 'after' are models of different kinds; "
            "connect the same model without and with the patch."
        )
    for model in models:
        known = architectures.known(model)  # raises where a UNet is not guided by text
        matching.check_vae(model, inputs.vae)
        if known is not None:
            matching.check_clip(model, inputs.clip)


def _reads(model: Model) -> picture_pairs.Reads:
    """What raises UnlearnError where the CLIP of a MODEL cannot read a concept in a sentence."""
    is_unet = isinstance(architectures.known(model), architectures.UNet)
    return text_encoding.locate if is_unet else phrase_places.check


def _draw_both(
    inputs: ReportInputs,
    pairs: list[PicturePair],
    settings: ReportSettings,
    live: drawing.LiveSheet,
) -> tuple[Drawing, Drawing]:
    """What the two models draw of the pairs."""
    shape = drawn_prompts.latent_shape(inputs.before, settings.size)
    prompts = drawn_prompts.of(
        inputs.before, inputs.clip, [pair.prompt for pair in pairs], settings.size
    )
    live.begin_drawing()
    job = drawing.DrawingJob(pairs, shape, prompts, settings.for_sampler())
    drawings = []
    for when, model in ((drawing.BEFORE, inputs.before), (drawing.AFTER, inputs.after)):
        latents = drawing.draw(model, when, job, live)
        pictures = drawing.decode(inputs.vae, latents, when, live)
        drawings.append(Drawing(latents, pictures))
    live.stage.begin("Measuring what changed")
    return drawings[0], drawings[1]


def _forecast(
    inputs: ReportInputs,
    concepts: ConceptSet,
    changes: WeightChanges,
    live: drawing.LiveSheet,
) -> list[forecast.WordImpact] | UnlearnError:
    """What the edit does to words that nobody drew, or why there is no forecast.

    Nothing where the layers that text enters through are alike. Whatever makes the forecast
    impossible is a line of the report, because the pictures are drawn by now and are shown in any
    case.
    """
    edited = {layer.key for layer in changes.layers}
    if not edited:
        return []
    live.stage.begin("Forecasting which other words change")
    try:
        read = (*cross_attention(inputs.before), *pooled_text(inputs.before))
        if edited.isdisjoint(layer.key for layer in read):
            return []
        forgotten = [name for concept in concepts.concepts for name in concept.names]
        return forecast.of_models(
            inputs.before, inputs.after, inputs.clip, forgotten, concepts.keep, live.refresh
        )
    except UnlearnError as error:
        return error


def _forecast_metrics(impacts: list[forecast.WordImpact] | UnlearnError) -> list[dict[str, Any]]:
    """The forecast as it stands in the JSON."""
    return [
        {
            "name": impact.name,
            "survival": measures.number_or_none(impact.retention),
            "asked": impact.on_keep_list,
        }
        for impact in (impacts if isinstance(impacts, list) else ())
    ]


def _as_metrics(settings: ReportSettings) -> dict[str, Any]:
    """The settings as they stand in the JSON."""
    values = dataclasses.asdict(settings)
    del values["templates"]
    return values


def _pair_metrics(pairs: list[PicturePair], changes: Changes) -> list[dict[str, Any]]:
    """The figures of every pair as they stand in the JSON; null for what is no number."""
    found = []
    for pair, change in zip(pairs, changes, strict=True):
        values = {name: measures.number_or_none(value) for name, value in change.items()}
        found.append(
            {
                "name": pair.name,
                "prompt": pair.prompt,
                "seed": pair.seed,
                "forgotten": pair.forgotten,
                **values,
            }
        )
    return found


def as_json(metrics: dict[str, Any]) -> str:
    """Metrics as JSON text."""
    return json.dumps(metrics, indent=1, allow_nan=False)
