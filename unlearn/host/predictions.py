"""What a MODEL predicts from noise alone under prompts, for every family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch

from . import architectures, batched_sampling, memory, observed_text
from .architectures import Transformer
from .batched_sampling import Encoded
from .model_types import Clip, Model


def from_noise(
    model: Model,
    clip: Clip,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    level: float,
    size: int,
    step: Callable[[], None] = lambda: None,
    encoded: Encoded | None = None,
) -> torch.Tensor:
    """Pictures x0 [texts, seeds, c * h * w] float32 on the CPU, of one prediction each.

    level: of the noise (0..1 of the schedule). size: side in pixels; a model of videos predicts one
    frame. step: called after each batch. encoded: what the CLIP said of texts before.
    """
    family = architectures.of(model)
    if not isinstance(family, Transformer):
        return batched_sampling.predict_from_noise(
            model, clip, texts, seeds, level=level, size=size, step=step, encoded=encoded
        )
    known = encoded_texts(clip, texts, {} if encoded is None else encoded)
    form: Any = model.get_model_object("latent_format")
    side = size // form.spacial_downscale_ratio
    shape = observed_text.latent_shape(family, side)
    run = _Predictions(batched_sampling.seeded_noise(shape, seeds), step)
    positive = [list(known[text]) for text in texts]
    schedule = observed_text.from_level(model, level)
    observed_text.inside_sampling(model, positive, shape, schedule, seeds[0], run.make)
    return torch.stack([torch.stack(rows).flatten(1) for rows in run.found])


def encoded_texts(clip: Clip, texts: Sequence[str], known: Encoded) -> Encoded:
    """What the CLIP says of texts, in full. New ones are added to `known`."""
    for text in dict.fromkeys(texts):
        memory.raise_if_cancelled()
        if text not in known:
            ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            known[text] = states, more
    return known


class _Predictions:
    """The predictions of `from_noise`, once the model is loaded."""

    def __init__(self, noise: torch.Tensor, step: Callable[[], None]) -> None:
        self.noise, self.step = noise, step
        self.found: list[list[torch.Tensor]] = []  # of each text, for each seed

    def make(self, guider: Any, sigmas: torch.Tensor, options: dict) -> None:
        """Predicts from the noise of every seed under every text."""
        conds = guider.conds["positive"]
        noise = self.noise.to(sigmas.device)
        sampling = guider.inner_model.model_sampling
        noisy = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
        self.found = [[] for _ in conds]
        for start in range(0, len(conds), batched_sampling.LARGEST_BATCH):
            part = conds[start : start + batched_sampling.LARGEST_BATCH]
            for x in noisy.split(1):
                memory.raise_if_cancelled()
                call = comfy.samplers.calc_cond_batch
                each = [[cond] for cond in part]  # of which ComfyUI runs as many as fit at once
                work = functools.partial(call, guider.inner_model, each, x, sigmas[:1], options)
                out = memory.alone(work)
                for place, one in enumerate(out):
                    self.found[start + place].append(one[0].float().cpu())
                self.step()
