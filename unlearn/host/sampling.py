"""Sampling as the KSampler node does it, for many prompts at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import comfy.sample
import torch

from .model_types import Model

Conditioning: TypeAlias = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of token states [n, 77, d] and a dict of what goes with them."""

OnStep: TypeAlias = Callable[[torch.Tensor], None]
"""Called after each sampling step with the predicted final latents [n, c, h, w]."""


@dataclass(frozen=True)
class SamplerSettings:
    """The settings of a KSampler, by ComfyUI's names."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    seed: int  # of samplers that add noise in each step


def select(conditioning: Conditioning, chosen: Sequence[int]) -> Conditioning:
    """The conditioning of some of the prompts that were encoded as one batch."""
    picked, index = [], list(chosen)
    for states, extra in conditioning:
        kept = {name: v[index] if torch.is_tensor(v) else v for name, v in extra.items()}
        picked.append([states[index], kept])
    return picked


def sample(
    model: Model,
    start: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning,
    settings: SamplerSettings,
    on_step: OnStep,
) -> torch.Tensor:
    """Latents [n, c, h, w] float32 on the CPU, drawn from the noise `start` of the same shape.

    With the noise of `batched_sampling.seeded_noise` they are what KSampler draws with that seed.
    """

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        on_step(x0)

    latents = comfy.sample.sample(
        model,
        start,
        settings.steps,
        settings.cfg,
        settings.sampler,
        settings.scheduler,
        positive,
        negative,
        torch.zeros_like(start),
        callback=callback,
        disable_pbar=True,
        seed=settings.seed,
    )
    return latents.float().cpu()
