"""Forecast of collateral damage for diffusion transformers, from the weights alone.

The keep list and some common words are examined in a sentence, as the text-entry layers see it in
the loaded model. Common words are not compared one and all, as they are of CLIP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch

from ...kernels.spans import Span
from ..files.observed_states import Group, ObservedStates
from ..host.architectures import Layer, Transformer
from ..host.model_types import Clip
from ..host.text_encoding import Prompt
from . import forecast
from .weight_grams import WeightGrams

Change = tuple[Layer, torch.Tensor, torch.Tensor]  # a layer, W0 and W - W0, both [d_out, d_in]


def located(states: ObservedStates, group: Group, template: str, concept: str) -> list[Prompt]:
    """The Prompts of a template with a concept in it, one for each segment of a group."""
    if group.pooled:
        text = template.replace("{concept}", concept)
        return [Prompt(text, text, first=0, last=-1, end=0)]
    places = states.places(group)
    return list(places.parts(places.locate(template, concept)))


def impacts(
    family: Transformer,
    clip: Clip,
    changes: Iterable[Change],
    words: Sequence[str],
    keep: Sequence[str],
    step: Callable[[], None],
) -> list[forecast.WordImpact]:
    """What layers that changed keep of what each word and kept text adds, the worst first."""
    states = ObservedStates(family, clip)
    by_key = {}
    for layer, w0, delta in changes:
        by_key[layer.key] = w0, delta
        step()
    names = list(dict.fromkeys([*keep, *words]))
    worst = dict.fromkeys(names, float("inf"))
    for group in states.groups:
        fetch = functools.partial(states.get, group)
        find = functools.partial(located, states, group)
        found = forecast.located_contrasts(find, fetch, names)
        span = Span(next(iter(found.values())).rows.shape[1])
        for contrast in found.values():
            span.add(contrast.rows)
        grams = WeightGrams()
        for layer in group.layers:
            columns = slice(None) if layer.columns is None else slice(*layer.columns)
            w0, delta = (w[:, columns] @ span.basis for w in by_key[layer.key])
            grams.add_edited(w0, delta)
        for name, contrast in found.items():
            rows = contrast.rows @ span.basis.double()
            left = forecast.retention(forecast.TextContrast(rows, contrast.weights), grams)
            worst[name] = min(worst[name], left)
    kept = set(keep)
    every = [forecast.WordImpact(name, worst[name], name in kept) for name in names]
    return sorted(every, key=lambda impact: impact.retention)
