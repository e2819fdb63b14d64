"""Many prompts sampled together, one denoising step at a time.

All prompts finish a step before the next step begins, so what is measured at a step is final.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch

from ..errors import UnlearnError
from . import architectures, text_encoding
from .memory import BatchSize, raise_if_cancelled
from .model_types import Clip, Model
from .tuning import MOST_PREDICTED, PREDICTED_PLACES

UPSCALER_RATIO = 4  # pixels per latent of the x4 upscaler, whose latent format does not tell it
CHUNK = 77  # token states that CLIP gives for each part of a prompt
LARGEST_BATCH = 8  # prompts in one UNet call. Not measured
# Share of free memory by which a batch must be smaller than ComfyUI's estimate of it, because hooks
# keep activations as well. Not measured.
MEMORY_MARGIN = 1.5
# What is passed on of a text encoder's output in addition to the token states, where no
# architecture says otherwise.
EXTRAS = ("pooled_output",)
# Text -> (token states [1, length, d], what else the text encoder says of it).
Encoded = dict[str, tuple[torch.Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class SamplingPlan:
    """Which prompts are sampled and how.

    texts: the prompts; seeds: of the noise of each; groups: lists of prompt numbers that are run
    one after another at each step; steps: of the whole DDIM schedule, of which only the first
    `window` are run; size: of the pictures in pixels; encoded: states of texts in place of what
    the CLIP says.
    """

    texts: Sequence[str]
    seeds: Sequence[int]
    groups: Sequence[Sequence[int]]
    steps: int
    window: int
    cfg: float
    size: int
    encoded: Encoded = field(default_factory=dict)


class Watch(Protocol):
    """What `sample` tells about its progress, for who measures activations meanwhile."""

    def begin(self, guider: Any) -> None:
        """The model is loaded."""
        ...

    def end(self) -> None:
        """Sampling is over, by success, error or cancelling."""
        ...

    def batch(self, chosen: Sequence[int], b: int) -> None:
        """The UNet will be called on prompts `chosen`, `b` of them.

        The conditional halves come first in the batch, then, where cfg is not 1, the others.
        """
        ...

    def group(self, step: int, g: int) -> None:
        """Group `g` has finished step `step`."""
        ...


class InsideGuider(comfy.samplers.Sampler):
    """A sampler that hands the loaded model to `body(guider, sigmas, model_options)`."""

    def __init__(self, body: Callable[[Any, torch.Tensor, dict], None]) -> None:
        self.body = body

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict,
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Runs the body, as ComfyUI runs a sampler."""
        self.body(model_wrap, sigmas, extra_args["model_options"])
        return noise


def latent_shape(model: Model, size: int) -> list[int]:
    """[channels, height, width] of the MODEL's latents for square pictures of `size` pixels.

    Raises UnlearnError for a model of videos or sound, whose latents have other axes.
    """
    form: Any = model.get_model_object("latent_format")
    if form.latent_dimensions != 2:
        raise UnlearnError(
            f"The input 'model' ({architectures.kind(model)}) makes no single pictures; use a "
            "model of pictures."
        )
    ratio = form.spacial_downscale_ratio
    if isinstance(form, comfy.latent_formats.SD_X4):
        ratio = UPSCALER_RATIO
    side = max(1, size // ratio)
    return [form.latent_channels, side, side]


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    """Noise [n, *shape] float32 on the CPU, each row of its own seed."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


def conditioning(
    clip: Clip,
    texts: Sequence[str],
    size: int,
    extras: Sequence[str] = EXTRAS,
    encoded: Encoded | None = None,
) -> tuple[list, list]:
    """(positive, negative) CONDITIONING, each text encoded once.

    The positive one holds all texts as one batch [n, 77, d], the negative one the empty prompt.
    `extras` names what else of the text encoder's output the model reads. encoded: what the CLIP
    said of texts before; new ones are added. Raises UnlearnError where texts have states of lengths
    that cannot be joined.
    """
    found = {} if encoded is None else encoded
    for text in dict.fromkeys([*texts, ""]):
        raise_if_cancelled()
        if text in found:
            continue
        ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        found[text] = states, more

    def batch(chosen: Sequence[str]) -> list:
        extra: dict[str, Any] = {"width": size, "height": size}
        for name in extras:
            if found[chosen[0]][1].get(name) is not None:
                extra[name] = torch.cat([found[text][1][name] for text in chosen])
        return [[_as_batch([found[text][0] for text in chosen]), extra]]

    return batch(list(texts)), batch([""])


def _as_batch(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Token states [1, length, d] as one batch.

    Shorter ones are repeated, as ComfyUI does with prompts of several chunks: cross-attention then
    gives the same.
    """
    lengths = {state.shape[1] for state in states}
    if len(lengths) > 1 and any(length % CHUNK for length in lengths):
        raise UnlearnError(
            "The input 'clip' gives states of another length for every prompt, which cannot be "
            "drawn together; use the CLIP of an SD1.x, SD2.x or SDXL checkpoint."
        )
    whole = math.lcm(*lengths)
    return torch.cat([state.repeat(1, whole // state.shape[1], 1) for state in states])


def _conditioning_of(
    model: Model, clip: Clip, texts: Sequence[str], size: int, encoded: Encoded | None = None
) -> tuple[list, list]:
    """As `conditioning`, of what a MODEL reads; raises UnlearnError for a CLIP of another width."""
    family = architectures.of(model)
    positive, negative = conditioning(clip, texts, size, family.conditioning_extras, encoded)
    text_encoding.check_width(positive[0][0].shape[-1], family.text_width())
    return positive, negative


def _of_prompts(cond: dict, chosen: Sequence[int], n: int) -> dict:
    """The conditioning of prompts `chosen` out of n.

    Every tensor that has one row for each prompt is cut to these rows.
    """
    out = {}
    for name, value in cond["model_conds"].items():
        tensor = value.cond
        per_prompt = torch.is_tensor(tensor) and tensor.shape[:1] == (n,)
        out[name] = value._copy_with(tensor[chosen]) if per_prompt else value
    return {**cond, "model_conds": out}


def _joined(first: dict, second: dict, b: int) -> dict:
    """The conditioning of b prompts, and that of one prompt repeated, as one batch of 2 b."""
    out = {}
    for name, value in first["model_conds"].items():
        other = second["model_conds"][name]
        if torch.is_tensor(value.cond):
            parts = [v.process_cond(batch_size=b, area=None).cond for v in (value, other)]
            value = value._copy_with(torch.cat(parts))
        out[name] = value
    return {**first, "model_conds": out}


def _fitting(model: Model, shape: Sequence[int], halves: int, most: int | None = None) -> int:
    """How many prompts, at most `most` or LARGEST_BATCH, fit into free memory at once."""
    free = comfy.model_management.get_free_memory(model.load_device)
    b = most or LARGEST_BATCH
    while b > 1 and model.model.memory_required([b * halves, *shape]) * MEMORY_MARGIN > free:
        b //= 2
    return b


def sample(model: Model, clip: Clip, plan: SamplingPlan, watch: Watch) -> int:
    """Runs all prompts of a plan through the first `window` DDIM steps.

    Returns prompts times steps that went through the UNet. Batches shrink when memory runs out.
    Cancelling raises within one UNet call, and `watch.end()` is called whatever happens.
    """
    shape = latent_shape(model, plan.size)
    halves = 1 if plan.cfg == 1 else 2
    known = dict(plan.encoded)
    positive, negative = _conditioning_of(model, clip, plan.texts, plan.size, known)
    sampling: Any = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", plan.steps)[: plan.window + 1]
    batch = BatchSize(_fitting(model, shape, halves))
    run = _Run(plan, watch, batch, seeded_noise(shape, plan.seeds))
    # ComfyUI makes room in memory for a batch of this shape.
    room = torch.zeros([batch.rows, *shape])
    comfy.sample.sample_custom(
        model,
        room,
        plan.cfg,
        InsideGuider(run.steps),
        sigmas,
        positive,
        negative,
        room,
        disable_pbar=True,
        seed=plan.seeds[0],
    )
    return run.calls


class _Run:
    """One run of `sample`, once the model is loaded."""

    def __init__(
        self, plan: SamplingPlan, watch: Watch, batch: BatchSize, noise: torch.Tensor
    ) -> None:
        self.plan = plan
        self.watch = watch
        self.batch = batch
        self.noise = noise
        self.calls = 0  # prompts times steps that went through the UNet
        self.guider: Any = None
        self.options: dict = {}

    def steps(self, guider: Any, sigmas: torch.Tensor, options: dict) -> None:
        """All steps of all groups."""
        self.guider, self.options = guider, options
        x = self.noise.to(sigmas.device)
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], x, torch.zeros_like(x), True)
        try:
            self.watch.begin(guider)
            for step in range(len(sigmas) - 1):
                for g, group in enumerate(self.plan.groups):
                    self._step(x, group, sigmas[step], sigmas[step + 1])
                    self.watch.group(step, g)
        finally:
            self.watch.end()

    def _step(
        self, x: torch.Tensor, group: Sequence[int], now: torch.Tensor, following: torch.Tensor
    ) -> None:
        """One DDIM step of a group of prompts, in place in the latents x [n, c, h, w]."""
        at = 0
        while at < len(group):
            raise_if_cancelled()
            left = group[at:]
            n, x0 = self.batch.run(len(left), functools.partial(self._denoised, x, now, left))
            chosen = left[:n]
            x[chosen] += (x[chosen] - x0) / now * (following - now)
            at += n
            self.calls += n

    def _denoised(
        self, x: torch.Tensor, sigma: torch.Tensor, left: Sequence[int], b: int
    ) -> torch.Tensor:
        """x0 [b, c, h, w] that the model predicts for the first b of the prompts `left`."""
        chosen = left[:b]
        model, conds = self.guider.inner_model, self.guider.conds
        cond = _of_prompts(conds["positive"][0], chosen, len(self.plan.texts))
        x = x[chosen]
        self.watch.batch(chosen, b)
        call = comfy.samplers.calc_cond_batch
        if self.plan.cfg == 1:
            return call(model, [[cond]], x, sigma.expand(b), self.options)[0]
        cond = _joined(cond, conds["negative"][0], b)
        both = call(model, [[cond]], torch.cat([x, x]), sigma.expand(2 * b), self.options)[0]
        return comfy.samplers.cfg_function(
            model,
            both[:b],
            both[b:],
            self.plan.cfg,
            x,
            sigma.expand(b),
            self.options,
            [cond],
            conds["negative"],
        )


def predict_from_noise(
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
    """Pictures x0 that a MODEL predicts from noise alone under each text.

    Returns [texts, seeds, c * h * w] float32 on the CPU, from one prediction for each text and
    seed at the noise level `level` (0..1 of the schedule). `step` is called after each batch.
    encoded: what the CLIP said of texts before, so that several models are asked about texts that
    are read once. Batches shrink when memory runs out.
    """
    shape, n = latent_shape(model, size), len(texts)
    positive, negative = _conditioning_of(model, clip, texts, size, encoded)
    noise = seeded_noise(shape, seeds)
    sampling: Any = model.get_model_object("model_sampling")
    schedule = torch.tensor([sampling.percent_to_sigma(1 - level), 0.0], dtype=torch.float32)
    # Of small pictures a call takes more: reading the weights is then most of its work.
    most = max(LARGEST_BATCH, min(MOST_PREDICTED, PREDICTED_PLACES // math.prod(shape[1:])))
    batch = BatchSize(_fitting(model, shape, 1, most))
    predictions = _Predictions(n, noise, batch, step)
    room = torch.zeros([batch.rows, *shape])
    comfy.sample.sample_custom(
        model,
        room,
        1.0,
        InsideGuider(predictions.make),
        schedule,
        positive,
        negative,
        room,
        disable_pbar=True,
        seed=seeds[0],
    )
    return torch.cat(predictions.found).view(n, len(seeds), -1)


class _Predictions:
    """The predictions of `predict_from_noise`, once the model is loaded."""

    def __init__(
        self, texts: int, noise: torch.Tensor, batch: BatchSize, step: Callable[[], None]
    ) -> None:
        self.texts = texts
        self.noise = noise
        self.batch = batch
        self.step = step
        self.found: list[torch.Tensor] = []  # for each batch x0 [b, c, h, w] on the CPU
        self.guider: Any = None
        self.options: dict = {}

    def make(self, guider: Any, sigmas: torch.Tensor, options: dict) -> None:
        """Predicts from the noise of every seed under every text."""
        self.guider, self.options = guider, options
        x = self.noise.to(sigmas.device)
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], x, torch.zeros_like(x), False)
        left = [(text, seed) for text in range(self.texts) for seed in range(len(x))]
        while left:
            raise_if_cancelled()
            work = functools.partial(self._predicted, x, sigmas[0], left)
            count, x0 = self.batch.run(len(left), work)
            self.found.append(x0)
            left = left[count:]
            self.step()

    def _predicted(
        self, x: torch.Tensor, sigma: torch.Tensor, left: list[tuple[int, int]], count: int
    ) -> torch.Tensor:
        """x0 [count, c, h, w] for the first of the pairs (text, seed) that are left."""
        part = left[:count]
        positive = self.guider.conds["positive"][0]
        cond = _of_prompts(positive, [text for text, _ in part], self.texts)
        noisy = x[[seed for _, seed in part]]
        out = comfy.samplers.calc_cond_batch(
            self.guider.inner_model, [[cond]], noisy, sigma.expand(count), self.options
        )
        return out[0].float().cpu()
