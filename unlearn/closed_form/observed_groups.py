"""The groups of layers of a diffusion transformer, as its loaded model sees the plan's sentences.

A sentence of two text encoders stands in two segments of the rows; each counts as a sentence of its
own. What all rows of a plan span is often far smaller than the space they lie in (15,360 wide in
Flux.2), so each group is solved in coordinates of that span.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from ...kernels.spans import Span
from ..analysis import observed_forecast
from ..files.observed_states import Group, ObservedStates
from ..host import architectures
from ..host.architectures import Transformer
from ..host.model_types import Clip, Model
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from .input_groups import InputGroup
from .layer_weights import LayerWeights
from .sentence_plan import Beside, SentencePair, SentencePlan

BLOCK = 64  # prompts that are read at a time


def states_of(model: Model, clip: Clip) -> ObservedStates | None:
    """The ObservedStates of a transformer, None for a UNet, whose states are the text encoder's.

    Raises UnlearnError for a model that cannot be edited and for a CLIP that does not go with it.
    """
    family = architectures.of(model)
    return ObservedStates(family, clip) if isinstance(family, Transformer) else None


def groups(model: Model, states: ObservedStates, plan: SentencePlan) -> list[InputGroup]:
    """An InputGroup for each group of layers, those of token states first."""
    found = []
    for group in states.groups:
        own = plan.as_pooled() if group.pooled else in_segments(plan, states, group)
        read = functools.partial(_get, states, group, None)
        basis = _basis(own, read)
        layers = LayerWeights(model, group.layers, basis)
        fetch = functools.partial(_get, states, group, basis)
        find = functools.partial(observed_forecast.located, states, group)
        exact = states.family.exact
        found.append(InputGroup(layers, own, fetch, group.pooled, find, group.name, exact))
    return found


def _get(
    states: ObservedStates,
    group: Group,
    basis: torch.Tensor | None,
    wanted: Iterable[Prompt],
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    found = states.get(group, wanted, progress)
    return found if basis is None else {text: rows @ basis for text, rows in found.items()}


def _basis(plan: SentencePlan, read: Any) -> torch.Tensor | None:
    """An orthonormal basis [d, r] of all rows of a plan, None where they span everything."""
    prompts = list({prompt.text: prompt for prompt in _prompts(plan)}.values())
    span = None
    for start in range(0, len(prompts), BLOCK):
        rows = torch.cat(list(read(prompts[start : start + BLOCK]).values()))
        span = span or Span(rows.shape[1])
        span.add(rows)
        if span.whole:
            return None
    return None if span is None else span.basis


def in_segments(plan: SentencePlan, states: ObservedStates, group: Group) -> SentencePlan:
    """A plan with each sentence once for each segment of a group, and the rows that never change
    among what is kept. Common words in one prompt are left out, which only CLIP reads apart."""
    parts = states.places(group).parts

    def expanded(value: Any) -> Any:
        if isinstance(value, Prompt):
            return parts(value)
        if isinstance(value, Beside):
            return (value.with_pairs(expanded),)
        if not hasattr(value, "prompt"):
            return (value,)
        pairs = list(zip(parts(value.prompt), parts(value.neutral), strict=True))
        share = {"weight": value.weight / len(pairs)} if isinstance(value, SentencePair) else {}
        return tuple(value._replace(prompt=a, neutral=b, **share) for a, b in pairs)

    changed = {
        field.name: tuple(part for one in value for part in expanded(one))
        for field in fields(plan)
        if isinstance(value := getattr(plan, field.name), tuple) and field.name != "packed"
    }
    changed["kept"] = (*changed["kept"], *states.constants(group))
    return replace(plan, **changed, packed=())


def _prompts(plan: SentencePlan) -> Iterator[Prompt]:
    """Every Prompt of a plan."""
    for field in fields(plan):
        value = getattr(plan, field.name)
        for one in value if isinstance(value, tuple) else ():
            if isinstance(one, Prompt):
                yield one
            elif hasattr(one, "prompt"):
                yield one.prompt
                yield one.neutral
            elif isinstance(one, Beside):
                for pair in one.pairs:
                    yield pair.prompt
                    yield pair.neutral
