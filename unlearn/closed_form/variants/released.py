"""The two editors that the authors of ScaPre released. They differ from the paper."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ....kernels import released
from .. import tuning
from ..layer_edit import LayerEdit, SolveContext
from .registry import integer, number, switch, variant

POWER = (
    "Exponent p of the channel mask. The released mask is nearly constant, so p acts as a strength."
)
SAMPLES = "Noisy samples per concept for the entropy of the channels. More is slower and steadier."


@dataclass(frozen=True)
class ReleasedASettings:
    """Settings of the variant `released-A`."""

    erase: float = number(1.0, 0.0, 1e4, 0.5, "The released erase_scale (eta). Try 1, then 3.")
    power: float = number(2.0, 0.0, 50, 1, POWER)
    floor: float = number(
        0.8,
        0.0,
        1.0,
        0.05,
        "The smallest part of the edit that a channel takes (a_min). 1 applies all of it "
        "everywhere.",
    )
    samples: int = integer(20, 1, 200, SAMPLES)
    svd: bool = switch(
        False,
        "Also take out what the concepts have in common (the released --svd flag). Try it for one "
        "group of look-alikes.",
    )


@dataclass(frozen=True)
class ReleasedBSettings:
    """Settings of the variant `released-B`."""

    erase: float = number(2.0, 0.0, 1e4, 0.5, "The released erase_scale (eta). Try 2, then 3.")
    power: float = number(8.0, 0.0, 50, 1, POWER)
    steps: int = integer(
        1,
        0,
        20,
        "Steps that pull each row's direction and length back to the original (bures_iters). "
        "Try 1.",
    )
    samples: int = integer(30, 1, 200, SAMPLES)
    spectral: bool = switch(
        True,
        "Adaptive spectral regularisation of the released code (ASED). On in its large runs.",
    )


@variant(name="released-A", reference="arXiv 2601.06162", settings=ReleasedASettings)
def released_a(context: SolveContext, settings: ReleasedASettings) -> LayerEdit:
    """The first editor that the authors released. It does not read the keep list."""
    svd = (1.0, 1.0) if settings.svd else None
    prepare = _editor(context, settings.power, settings.samples)

    def delta(w0: torch.Tensor) -> torch.Tensor:
        w0 = w0.double()
        inputs = prepare(w0)
        return (
            released.editor_a(w0, *inputs, eta=settings.erase, a_min=settings.floor, svd=svd) - w0
        )

    return LayerEdit(delta=delta)


@variant(name="released-B", reference="arXiv 2601.06162", settings=ReleasedBSettings)
def released_b(context: SolveContext, settings: ReleasedBSettings) -> LayerEdit:
    """The second editor that the authors released. It does not read the keep list."""
    prepare = _editor(context, settings.power, settings.samples)

    def delta(w0: torch.Tensor) -> torch.Tensor:
        w0 = w0.double()
        masks, blocks, neutral, concepts, entropy = prepare(w0)
        penalty = None
        if settings.spectral:
            # The release has exponents of its own for the mask and for this: 1 in all of its runs.
            penalty = released.ased(concepts, float(entropy.mean()))
        new = released.editor_b(
            w0,
            masks,
            blocks,
            neutral,
            concepts,
            entropy,
            eta=settings.erase,
            r=penalty,
            steps=int(settings.steps),
        )
        return new - w0

    return LayerEdit(delta=delta)


EditorInputs = tuple[
    torch.Tensor, list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor
]


def _editor(
    context: SolveContext, power: float, samples: int, seed: int = 0
) -> Callable[[torch.Tensor], EditorInputs]:
    """A function of a layer w0 -> (masks, O_k, N_k, C, row entropy), what both editors read."""
    names, blocks = context.name_states(), context.name_blocks()
    concepts = names.names.T
    generator = torch.Generator().manual_seed(seed)

    def noisy(state: torch.Tensor, count: int) -> torch.Tensor:
        noise = torch.randn(count, len(state), generator=generator, dtype=torch.float64)
        return state + tuning.NOISE * noise

    def prepare(w0: torch.Tensor) -> EditorInputs:
        def activations(state: torch.Tensor, count: int) -> torch.Tensor:
            return noisy(state, count) @ w0.T

        masks = torch.stack(
            [
                released.mask(
                    activations(state, tuning.POINTS),
                    activations(blocks.empty, tuning.POINTS),
                    power,
                )
                for state in names.names
            ]
        )
        seen = torch.cat([activations(state, int(samples)) for state in names.names])
        return masks, blocks.names, blocks.replacements, concepts, released.entropy(seen)

    return prepare
