"""The system of the paper: a Sylvester equation, then a step along the Bures geodesic."""

from dataclasses import dataclass

import torch

from ....kernels import bures, scapre, sylvester
from ..layer_edit import LayerEdit, SolveContext
from .registry import number, switch, variant


@dataclass(frozen=True)
class PaperSettings:
    """Settings of the variant `paper`."""

    erase: float = number(
        10.0,
        0.0,
        1e6,
        1.0,
        "How heavily the concepts count. The paper has no such number, which is the same as 1. "
        "Raise it when they come back.",
    )
    preserve: float = number(
        1.0,
        0.0,
        1e6,
        0.1,
        "How strongly everything that is kept is held in place (beta). Raise it when kept things "
        "change. The paper has no such term, which is the same as 0.",
    )
    anchor: float = number(
        0.05,
        1e-6,
        1e3,
        0.01,
        "The paper's lambda. Raise it when unlisted things change.",
    )
    step: float = number(
        0.1,
        0.0,
        1.0,
        0.05,
        "How far the result is moved back to the original weights along the Bures geodesic. "
        "0 leaves it as solved, 1 undoes it.",
    )
    informax: bool = switch(
        True,
        "Weigh each output channel by how much it tells the concepts apart (Informax decoupler). "
        "In the paper's system it holds such channels back.",
    )
    as_printed: bool = switch(
        False,
        "Solve equation 9 to the letter, without an anchor at the original weights or a keep "
        "list. It ruins the model: for study only.",
    )


@variant(name="paper", reference="arXiv 2601.06162", settings=PaperSettings)
def paper(context: SolveContext, settings: PaperSettings) -> LayerEdit:
    """The Sylvester system of the paper, then its geometry-aware refinement.

    See kernels/sylvester.py and kernels/bures.py. Without Informax the weight alpha is 1 in every
    row.
    """
    stats, erase = context.stats, settings.erase
    identity = torch.eye(len(stats.preserve_gram), dtype=torch.float64)
    system = (
        settings.anchor * identity
        + erase * stats.concept_gram
        + scapre.spectral_trace(stats.concepts)
    )
    if not settings.as_printed:
        system = system + settings.preserve * stats.preserve_gram
    values, vectors = sylvester.spectrum(system)

    def delta(w0: torch.Tensor) -> torch.Tensor:
        w0 = w0.double()
        alpha = torch.ones(len(w0), dtype=torch.float64)
        if context.row_weights:
            alpha = context.row_weights(w0)
        if settings.as_printed:
            targets = erase * (stats.target_shift + stats.concept_gram)
            solved = sylvester.printed(w0, alpha, values, vectors, targets)
        else:
            solved = w0 + sylvester.edit(w0, alpha, values, vectors, erase * stats.target_shift)
        return bures.geodesic(solved, w0, settings.step) - w0

    return LayerEdit(delta=delta)
