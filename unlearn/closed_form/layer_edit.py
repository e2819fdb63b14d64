"""What a variant does to every layer, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import UnlearnError
from ..host.model_types import Clip
from .informax_weights import InformaxWeights
from .sentence_plan import SentencePlan
from .token_statistics import (
    Fetch,
    NameBlocks,
    NameStates,
    Statistics,
    name_blocks,
    name_states,
)

LayerFunction = Callable[[torch.Tensor], torch.Tensor]


class Components(NamedTuple):
    """M [d, d] = left diag(gains(f)) right of an edit with 'erase' times f.

    left [d, r], right [r, d]; gains: f -> [r]. All are float64.
    """

    left: torch.Tensor
    right: torch.Tensor
    gains: Callable[[float], torch.Tensor]


@dataclass(frozen=True)
class LayerEdit:
    """An edit of every layer, either of one low-rank form with a factor that all layers share, or
    dense.

    Low-rank: the change of a layer w0 [d_out, d] is `up(w0) @ down`, with up(w0) [d_out, r] and
    down [r, d]. Dense: the change is `delta(w0)` [d_out, d]; it is cut to a shared low-rank form
    afterwards.

    Optional, of a low-rank edit:
    lost: the share of the erased signal that cutting the rank gave up.
    right_multiplier M [d, d]: every layer becomes W0 (I + M), where all rows are weighed alike.
    solution_operator H [d, d]: M = T H, where T is the Statistics' target_shift. A variant that
        gives it takes part in the overshoot, the robustness rounds and auto-protect.
    for_target: the same solution for another T, without solving again. Without it the variant is
        called again.
    less_firm: the same solution with 'erase' times a factor up to 1, without solving again.
    components: M of these solutions, one beside the other. Both or neither are given.
    """

    up: LayerFunction | None = None
    down: torch.Tensor | None = None
    delta: LayerFunction | None = None
    lost: float = 0.0
    right_multiplier: torch.Tensor | None = None
    solution_operator: torch.Tensor | None = None
    for_target: Callable[[torch.Tensor], LayerEdit] | None = None
    less_firm: Callable[[float], LayerEdit] | None = None
    components: Components | None = None


@dataclass(frozen=True)
class SolveContext:
    """What a variant is made from.

    stats: the moments of what is erased and kept. row_weights: gives the Informax weights [d_out]
    of a layer, or None where they are off. hard_keep: the share of the keep list's energy that the
    edit must not touch, 0 to 1. pooled: whether the layers read the pooled text vector, and not
    token states; the plan and what `fetch` gives are then those of pooled vectors. of_clip: whether
    the layers read a CLIP's own states.
    """

    stats: Statistics
    row_weights: InformaxWeights | None
    hard_keep: float
    clip: Clip
    plan: SentencePlan
    fetch: Fetch
    pooled: bool = False
    of_clip: bool = True

    def name_states(self) -> NameStates:
        """The token states of every name alone."""
        return name_states(self.plan, self.fetch)

    def name_blocks(self) -> NameBlocks:
        """The token states of every name alone, from its last token to the end of the padding.

        Raises UnlearnError where the layers read no CLIP.
        """
        if not self.of_clip:
            raise UnlearnError(
                "This variant erases the padding of CLIP's 77 tokens, which this model does not "
                "read; choose the variant 'anchored' or 'uce'."
            )
        return name_blocks(self.clip, self.plan, self.fetch, self.pooled)
