"""The Erasure Report's chart and text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import UnlearnError
from ..host import architectures
from ..wording import Findings
from . import charts, forecast, tuning
from .measures import Changes, LayerChange, WeightChanges
from .picture_pairs import PicturePair
from .verdict import Verdict

PROMPT_BARS = 48
LAYER_BARS = 40

PICTURES_HEADING = "Change of pictures (100%: as far apart as two different prompts)"
CLIP_NAMES = {
    "clip_before": "to the prompt, before",
    "clip_after": "to the prompt, after",
    "clip_image": "before to after",
}
VERDICT_COLOURS = {
    "worked": charts.GOOD,
    "partly": charts.WARN,
    "side_effects": charts.WARN,
    "changed": charts.NEUTRAL,
}


def verdict_colour(code: str) -> charts.Colour:
    """The colour of the band that carries a verdict."""
    return VERDICT_COLOURS.get(code, charts.BAD)


def layer_label(key: str) -> str:
    """A short name of a weight: that of its family, or the key without what all keys share."""
    known = architectures.label(key)
    if known != key:
        return known
    label = key.removeprefix("diffusion_model.").removesuffix(".weight")
    return label.replace("_blocks", "").replace("transformer.", "")


def draw_chart(
    pairs: Sequence[PicturePair],
    changes: Changes,
    metrics: Mapping[str, Any],
    weight_changes: WeightChanges,
    impacts: Sequence[forecast.WordImpact] = (),
) -> torch.Tensor:
    """The chart IMAGE [1, height, width, 3]: pictures, forecast, and at the bottom details."""
    sections: list[charts.Chart] = [(PICTURES_HEADING, _picture_bars(pairs, changes))]
    if impacts:
        sections.append((forecast.CHART_HEADING, forecast.bars(impacts)))
    if metrics["clip"]:
        sections.append(("Details: CLIP score", _clip_bars(metrics["clip"])))
    sections.append(_layer_section(weight_changes.layers))
    return charts.bar_charts(metrics["verdict"]["text"], sections)


def _picture_bars(pairs: Sequence[PicturePair], changes: Changes) -> list[charts.Bar]:
    bars = []
    for name, forgotten in dict.fromkeys((p.name, p.forgotten) for p in pairs):
        values = [
            change["pixels"]
            for change, pair in zip(changes, pairs, strict=True)
            if (pair.name, pair.forgotten) == (name, forgotten)
        ]
        mean = sum(values) / len(values)
        label = name if forgotten else f"kept: {name}"
        if mean != mean:
            bars.append((label, 1.0, "broken", charts.BAD))
            continue
        good = mean >= tuning.MIN_CHANGE if forgotten else mean < tuning.SIDE_EFFECT_CHANGE
        bars.append((label, mean, f"{mean:.0%}", charts.GOOD if good else charts.BAD))
    return bars[:PROMPT_BARS]


def _clip_bars(scores: Mapping[str, Any]) -> list[charts.Bar]:
    bars = []
    for group in ("forgotten", "kept"):
        for field, score in scores[group].items():
            label = f"{group}: {CLIP_NAMES[field]}"
            bars.append((label, score / 100, f"{score:.1f}", charts.NEUTRAL))
    return bars


def _layer_section(layers: Sequence[LayerChange]) -> charts.Chart:
    top = max([layer.relative for layer in layers] + [1e-9])
    bars: list[charts.Bar] = []
    for layer in layers[:LAYER_BARS]:
        relative = layer.relative
        bars.append((layer_label(layer.key), relative / top, f"{relative:.2%}", charts.NEUTRAL))
    heading = "Details: relative change of each layer's weights"
    if len(layers) > LAYER_BARS:
        heading += f", the first {LAYER_BARS} of {len(layers)}"
    return heading, bars or [("no weight differs", 0.0, "0%", charts.BAD)]


def write_text(
    verdict: Verdict,
    metrics: Mapping[str, Any],
    weight_changes: WeightChanges,
    expected: Findings,
) -> str:
    """The report in words: the verdict first, the figures last."""
    told = Findings()
    told.add(verdict.told)
    told.details += [
        "A changed picture is not proof that a concept is gone: look at the pairs, and try prompts "
        "and seeds of your own.",
        *_picture_lines(metrics),
    ]
    if metrics["clip"]:
        told.details += _clip_lines(metrics["clip"])
    told.details += _weight_lines(metrics["weights"], weight_changes)
    told.add(expected)
    return told.report(verdict.text)


def of_forecast(
    impacts: Sequence[forecast.WordImpact] | UnlearnError, kept: Mapping[str, float]
) -> Findings:
    """What the report says of the forecast, or of why there is none.

    kept: name -> change of what was drawn and should be kept. There the pictures decide.
    """
    if isinstance(impacts, UnlearnError):
        return Findings(details=[f"No forecast: {impacts}"])
    if not impacts:
        return Findings()
    told = forecast.findings([impact for impact in impacts if impact.name not in kept])
    drawn = [i for i in forecast.harmed_words(impacts) if i.name in kept]
    if drawn:
        listed = ", ".join(f"{i.name} {max(0.0, i.retention):.0%}" for i in drawn)
        told.details.append(
            f"The forecast from the weights alone expected less of: {listed} left of their effect. "
            "They were drawn, so the pictures decide."
        )
    return told


def _picture_lines(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    for group in ("forgotten", "kept"):
        means = metrics[group]
        if not means:
            continue
        pixels, latents, absolute = (
            "no number" if means[field] is None else f"{means[field]:.1%}"
            for field in ("pixels", "latent", "absolute")
        )
        lines.append(
            f"{group.capitalize()} prompts: pixels {pixels}, latents {latents}, mean pixel "
            f"difference {absolute} of white."
        )
    return lines


def _clip_lines(scores: Mapping[str, Any]) -> list[str]:
    lines = []
    for group in ("forgotten", "kept"):
        means = scores[group]
        if "clip_after" in means:
            lines.append(
                f"CLIP score of {group} prompts: {means['clip_before']:.1f} before, "
                f"{means['clip_after']:.1f} after."
            )
        if "clip_image" in means:
            lines.append(
                f"CLIP similarity of before and after, {group}: {means['clip_image']:.1f} of 100."
            )
    if scores["no_text_score_because"]:
        lines.append(f"No CLIP score against the words: {scores['no_text_score_because']}.")
    return lines


def _weight_lines(totals: Mapping[str, Any], changes: WeightChanges) -> list[str]:
    lines = [
        f"{totals['touched']:,} of {totals['total']:,} weights differ ({totals['share']:.2%}), "
        f"in {len(changes.layers)} layers."
    ]
    if changes.layers:
        most = max(changes.layers, key=lambda layer: layer.relative)
        lines.append(f"Changed most: {layer_label(most.key)} by {most.relative:.1%}.")
    if changes.unreadable:
        more = len(changes.unreadable) - 1
        others = f", and {more} others do" if more else ""
        lines.append(f"Some weights were not compared: {changes.unreadable[0]} holds NaN{others}.")
    return lines
