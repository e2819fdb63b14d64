"""Unified Concept Editing, the plain closed form that others are compared with."""

from dataclasses import dataclass

import torch

from ....kernels import scapre, uce
from ..layer_edit import LayerEdit, SolveContext
from .registry import number, variant


@dataclass(frozen=True)
class UceSettings:
    """Settings of the variant `uce`."""

    erase: float = number(1.0, 0.0, 1e6, 0.5, "How heavily the forgotten names count. Try 1.")
    preserve: float = number(
        1.0, 0.0, 1e6, 0.5, "How heavily the names on the keep list count. Try 1."
    )
    anchor: float = number(
        uce.LAMBDA,
        1e-6,
        1e3,
        0.1,
        "How strongly every direction is held at the original weights (lambda). The released code "
        "has 0.5.",
    )


@variant(name="uce", reference="arXiv 2308.14761", settings=UceSettings)
def uce_edit(context: SolveContext, settings: UceSettings) -> LayerEdit:
    """Unified Concept Editing: the plain closed form on the names alone. See kernels/uce.py."""
    states = context.name_states()
    multiplier = uce.multiplier(
        scapre.gram(states.names),
        scapre.cross_gram(states.replacements, states.names),
        scapre.gram(states.keep),
        settings.anchor,
        settings.erase,
        settings.preserve,
    )
    left, right = uce.factors(multiplier)

    def up(w0: torch.Tensor) -> torch.Tensor:
        return w0.float() @ left.float()

    return LayerEdit(up=up, down=right.float().contiguous(), right_multiplier=multiplier)
