"""Groups of layers that read the same input: each is solved on its own, from its own statistics.

Keys and values of a UNet read the token states. Of SDXL and its kin one layer more reads the pooled
text vector. Both groups are studied in the same sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..analysis.forecast import Located
from ..files.text_cache import TextStateCache
from ..host import text_encoding
from ..host.model_types import Model
from .layer_weights import LayerWeights
from .sentence_plan import SentencePlan
from .token_statistics import Fetch

if TYPE_CHECKING:
    from ..host.architectures import Layer


@dataclass(frozen=True)
class InputGroup:
    """Layers that read the same input, and how this input is read of a prompt.

    plan, fetch: fetch(prompts of the plan) gives text -> states [n, d], in which the positions of
    these prompts stand. pooled: whether the states are pooled text vectors, one for each prompt.
    located: gives the Prompts of a template with a concept in it, None where CLIP's positions hold.
    name: of the group, in reports. exact: whether attention reads what these layers give, and text
    enters through them alone.
    """

    layers: LayerWeights
    plan: SentencePlan
    fetch: Fetch
    pooled: bool = False
    located: Located | None = None
    name: str = ""
    exact: bool = True

    def check_width(self) -> None:
        """Raises UnlearnError when the text encoder does not go with the model."""
        first = next(iter(self.fetch(self.plan.kept[:1]).values()))
        text_encoding.check_width(first.shape[-1], self.layers.width)


def input_groups(
    model: Model,
    layers: tuple[Sequence[Layer], Sequence[Layer]],
    plan: SentencePlan,
    states: TextStateCache,
) -> list[InputGroup]:
    """The groups of a MODEL, that of token states first.

    layers: those that read token states, and those that read pooled vectors, if any. states: made
    for pooled vectors where there are such layers.
    """
    text, pooled = layers
    groups = [InputGroup(LayerWeights(model, text), plan, states.get)]
    if pooled:
        of_pooled = LayerWeights(model, pooled)
        groups.append(InputGroup(of_pooled, plan.as_pooled(), states.get_pooled, pooled=True))
    return groups
