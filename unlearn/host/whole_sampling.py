"""Prompts sampled one denoising step at a time, for every family.

UNets take many prompts in one call (batched_sampling.py). Diffusion transformers read more of a
text encoder's output than token states, of another length for every prompt, so each prompt goes
through them by itself, with its conditioning in full.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.samplers
import torch

from . import architectures, batched_sampling, memory, observed_text, predictions
from .architectures import Transformer
from .batched_sampling import SamplingPlan, Watch
from .model_types import Clip, Model


def sample(model: Model, clip: Clip, plan: SamplingPlan, watch: Watch) -> int:
    """Runs all prompts of a plan through the first `window` steps.

    Returns prompts times steps that went through the model. A model of videos samples one frame.
    Cancelling raises within one call of the model, and `watch.end()` is called whatever happens.
    """
    family = architectures.of(model)
    if not isinstance(family, Transformer):
        return batched_sampling.sample(model, clip, plan, watch)
    known = predictions.encoded_texts(clip, [*plan.texts, ""], dict(plan.encoded))
    form: Any = model.get_model_object("latent_format")
    shape = observed_text.latent_shape(family, plan.size // form.spacial_downscale_ratio)
    run = _Run(plan, watch, batched_sampling.seeded_noise(shape, plan.seeds))
    positive = [list(known[text]) for text in (*plan.texts, "")]
    sampling: Any = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", plan.steps)[: plan.window + 1]
    observed_text.inside_sampling(model, positive, shape, sigmas, plan.seeds[0], run.steps)
    return run.calls


class _Run:
    """One run of `sample`, once the model is loaded."""

    def __init__(self, plan: SamplingPlan, watch: Watch, noise: torch.Tensor) -> None:
        self.plan, self.watch, self.noise = plan, watch, noise
        self.calls = 0  # prompts times steps that went through the model

    def steps(self, guider: Any, sigmas: torch.Tensor, options: dict) -> None:
        """All steps of all groups."""
        x = self.noise.to(sigmas.device)
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], x, torch.zeros_like(x), True)
        try:
            self.watch.begin(guider)
            for step in range(len(sigmas) - 1):
                now, following = sigmas[step : step + 1], sigmas[step + 1]
                for g, group in enumerate(self.plan.groups):
                    for number in group:
                        memory.raise_if_cancelled()
                        one = x[number : number + 1]
                        work = functools.partial(self._denoised, guider, options, one, now, number)
                        x0 = memory.alone(work)
                        x[number] += (x[number] - x0[0]) / now * (following - now)
                        self.calls += 1
                    self.watch.group(step, g)
        finally:
            self.watch.end()

    def _denoised(
        self, guider: Any, options: dict, x: torch.Tensor, sigma: torch.Tensor, number: int
    ) -> torch.Tensor:
        """x0 [1, ...] that the model predicts for a prompt. Its conditional half comes first."""
        model, conds = guider.inner_model, guider.conds["positive"]
        cond, empty = [conds[number]], [conds[-1]]
        self.watch.batch([number], 1)
        call = comfy.samplers.calc_cond_batch
        (said,) = call(model, [cond], x, sigma, options)
        if self.plan.cfg == 1:
            return said
        (unsaid,) = call(model, [empty], x, sigma, options)
        cfg = self.plan.cfg
        return comfy.samplers.cfg_function(model, said, unsaid, cfg, x, sigma, options, cond, empty)
