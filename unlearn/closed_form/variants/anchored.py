"""The default variant: ScaPre's objective with an anchor at the original weights."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from ....kernels import complement, scapre
from ...errors import UnlearnError
from .. import tuning
from ..informax_weights import InformaxWeights
from ..layer_edit import Components, LayerEdit, SolveContext
from ..token_statistics import Statistics
from .registry import number, switch, variant

TINY = 1e-300  # keeps a division by zero finite in float64


@dataclass(frozen=True)
class AnchoredSettings:
    """Settings of the variant `anchored`."""

    erase: float = number(
        100.0,
        0.0,
        1e6,
        1.0,
        "How hard the concepts are pushed out (eta). If it is too low, they come back; a value "
        "that is too high does little harm while 'preserve' holds. Try the default, then ten times "
        "more.",
    )
    preserve: float = number(
        1.0,
        0.0,
        1e6,
        0.1,
        "How strongly everything that is kept is held in place (beta). Raise it when kept things "
        "change.",
    )
    anchor: float = number(
        0.05,
        1e-6,
        1e3,
        0.01,
        "How strongly every direction is held at the original weights (lambda). Raise it when "
        "prompts unlike those in the lists change.",
    )
    spectral: float = number(
        0.0,
        0.0,
        1e3,
        0.1,
        "Spectral trace regularisation: keeps many concepts from fighting over weak shared "
        "directions. Try 1 when forgetting dozens at once.",
    )
    informax: bool = switch(
        False,
        "Weigh each output channel by how much it tells the concepts apart (Informax decoupler).",
    )
    overshoot: float = number(
        1.0,
        0.0,
        3.0,
        0.05,
        "How far past zero the concepts are pushed at most. New sentences hold more of a concept "
        "than the studied ones have in common, so stopping at zero leaves some of it. Raise it "
        "when a single concept comes back.",
    )
    drift: float = number(
        0.14,
        0.0,
        1.0,
        0.01,
        "Concepts are pushed past zero only as long as what is kept moves by no more than this "
        "share. Lower it when kept things change; raise it when concepts come back.",
    )


@variant(name="anchored", reference="arXiv 2601.06162", settings=AnchoredSettings)
def anchored(context: SolveContext, settings: AnchoredSettings) -> LayerEdit:
    """Pushes out what the concepts add to a sentence and holds everything else at the original
    weights. Start with it.

    The objective and its solution stand in kernels/scapre.py. Raises UnlearnError where
    'hard_keep' leaves nothing to edit.
    """
    mu, v = _basis(context, settings)
    if context.of_clip:
        rank = scapre.rank_by_energy(mu, settings.erase, tuning.ENERGY)
    else:
        shifted = context.stats.concept_gram @ v
        rank = scapre.rank_by_change(mu, shifted, settings.erase, tuning.OBSERVED_ENERGY)
    lost = _signal_beyond(rank, mu, settings.erase)
    solved = _Solved(mu[:rank], v[:, :rank], settings.erase, lost, context.row_weights)
    return solved.edit(context.stats.target_shift)


@dataclass(frozen=True)
class _Solved:
    """The eigenpairs (mu [r], V [d, r]) of a solve. They give the edit for any target shift."""

    mu: torch.Tensor
    v: torch.Tensor
    erase: float
    lost: float
    row_weights: InformaxWeights | None

    def edit(self, target_shift: torch.Tensor) -> LayerEdit:
        """The LayerEdit for a target shift T [d, d]."""
        mu, v = self.mu, self.v
        length = v.norm(dim=0).clamp_min(TINY)
        # The rows of `down` have length 1, so that `up` has the size of weights and fits float16.
        down = (v / length).T
        gain = self._gains(1.0) * length
        operator = (v * gain) @ down
        tv = target_shift @ v

        def up(w0: torch.Tensor) -> torch.Tensor:
            row_weights = self.row_weights(w0) if self.row_weights else None
            return scapre.anchored_up(w0, tv, mu, self.erase, row_weights) * length.float()

        return LayerEdit(
            up=up,
            down=down.float().contiguous(),
            lost=self.lost,
            right_multiplier=target_shift @ operator,
            solution_operator=operator,
            for_target=self.edit,
            less_firm=partial(self._less_firm, target_shift),
            components=Components(tv, v.T, self._gains),
        )

    def _gains(self, factor: float) -> torch.Tensor:
        erase = factor * self.erase
        return erase / (1 + erase * self.mu)

    def _less_firm(self, target_shift: torch.Tensor, factor: float) -> LayerEdit:
        return replace(self, erase=factor * self.erase).edit(target_shift)


def _basis(context: SolveContext, settings: AnchoredSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The generalised eigenpairs (mu [r], V [d, r]) that serve every row of every layer."""
    stats = context.stats
    identity = torch.eye(len(stats.preserve_gram), dtype=torch.float64)
    held = stats.preserve_gram + tuning.CONTRAST_WEIGHT * stats.contrast_gram
    penalty = settings.preserve * held + settings.anchor * identity
    if settings.spectral:
        penalty = penalty + settings.spectral * scapre.spectral_trace(stats.concepts)
    if not context.hard_keep:
        return scapre.anchored_basis(stats.concept_gram, penalty)
    free = complement.complement(_untouched(stats), context.hard_keep)
    if not free.shape[1]:
        raise UnlearnError(
            "The keep list fills the whole space, so 'hard keep' leaves nothing to edit; lower it "
            "or shorten the list."
        )
    return scapre.confined_basis(stats.concept_gram, penalty, free)


def _untouched(stats: Statistics) -> torch.Tensor:
    """The Gram matrix [d, d] of what 'hard_keep' does not let an edit touch.

    States of the keep list have one half of its trace, and what kept words add the other. Of states
    that are alike in most of their energy, hardly any is left for what sets words apart.
    """
    parts = (stats.keep_list_gram, stats.contrast_gram)
    return torch.stack([p / p.trace() for p in parts if float(p.trace()) > TINY]).sum(0)


def _signal_beyond(rank: int, mu: torch.Tensor, erase: float) -> float:
    """The share of the erased signal in the components after the first `rank`."""
    if not len(mu):
        return 0.0
    signal = mu * (erase * mu / (1 + erase * mu)) ** 2
    return float(signal[rank:].sum() / signal.sum().clamp_min(TINY))
