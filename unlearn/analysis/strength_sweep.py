"""One prompt and seed drawn at several strengths of a patch, side by side."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image

from ..errors import UnlearnError
from ..host import (
    batched_sampling,
    drawn_prompts,
    matching,
    memory,
    patch_match,
    patching,
    sampling,
)
from ..host.architectures import native_size
from ..host.memory import raise_if_cancelled
from ..host.model_types import Model, Vae
from ..host.previews import FastPreviewer, PictureProgress
from ..host.sampling import Conditioning, SamplerSettings
from ..types import UnlearnPatch
from ..wording import Findings
from . import charts, drawing, tuning


@dataclass(frozen=True)
class SweepSettings:
    """What is drawn, and how. The names are those of the node's inputs.

    pictures: how many strengths, from 0 to 1 in even steps. size: in pixels; 0 is the size that the
    model was made for.
    """

    pictures: int = 5
    seed: int = 7
    steps: int = 20
    cfg: float = 7.0
    size: int = 0
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"

    @property
    def strengths(self) -> list[float]:
        """The strengths, from 0 to 1."""
        return [i / (self.pictures - 1) for i in range(self.pictures)]

    def for_sampler(self) -> SamplerSettings:
        """The part that a KSampler has too."""
        return SamplerSettings(self.steps, self.cfg, self.sampler, self.scheduler, self.seed)


class Prompts(NamedTuple):
    """What is asked for, and what is not, as a CLIP Text Encode gives it."""

    positive: Conditioning
    negative: Conditioning


class Sweep(NamedTuple):
    """The strip as one IMAGE, the pictures as a batch, and what came out in words."""

    strip: torch.Tensor
    pictures: torch.Tensor
    report: str


class _Strip:
    """The progress of all pictures, with the unfinished strip as the preview."""

    def __init__(self, model: Model, settings: SweepSettings, node_id: str | None) -> None:
        self.strengths, self.steps = settings.strengths, settings.steps
        self.shown: list[Image.Image | None] = [None] * settings.pictures
        self._previewer = FastPreviewer(model)
        self._progress = PictureProgress(settings.pictures * settings.steps, node_id)
        self._done, self._last = 0, 0.0

    def step(self, number: int, latents: torch.Tensor) -> None:
        """Counts one step of a picture; raises when the run is cancelled."""
        raise_if_cancelled()
        self._done += 1
        due = time.monotonic() - self._last > drawing.REDRAW_SECONDS
        if due:
            rough = self._previewer.picture(latents[0])
            self.shown[number] = None if rough is None else charts.thumbnail(rough)
            self._last = time.monotonic()
        self._progress.show(self._done, self.picture() if due else None)

    def finish(self, number: int, picture: torch.Tensor) -> None:
        """Shows a finished picture [h, w, 3]."""
        raise_if_cancelled()
        self.shown[number] = charts.thumbnail(picture)
        self._progress.show(self._done, self.picture())

    def picture(self) -> Image.Image:
        """The strip as far as it is drawn."""
        labels = [f"strength {strength:.2f}" for strength in self.strengths]
        return charts.strip("Strength Sweep", [*zip(labels, self.shown, strict=True)])


def sweep(
    model: Model,
    patch: UnlearnPatch,
    vae: Vae,
    prompts: Prompts,
    settings: SweepSettings,
    node_id: str | None = None,
) -> Sweep:
    """Draws the prompts once at every strength, all from the same noise.

    The MODEL is not changed. Cancelling raises within one sampling step. Raises UnlearnError for a
    patch that does not fit the MODEL, and for a VAE of another one.
    """
    matching.check_vae(model, vae)
    match = patch_match.match(model, patch)
    shape = drawn_prompts.latent_shape(model, settings.size or native_size(model))
    noise = batched_sampling.seeded_noise(shape, [settings.seed])
    strip, pictures = _Strip(model, settings, node_id), []
    for number, strength in enumerate(settings.strengths):
        patched, _ = patching.apply(model, patch, strength, match=match)
        on_step = functools.partial(strip.step, number)
        draw = functools.partial(_drawn, patched, noise, prompts, settings, on_step)
        latents = memory.alone(draw)
        pictures.append(memory.alone(functools.partial(drawing.decode_batch, vae, latents, 1)))
        strip.finish(number, pictures[-1][0])
    batch = torch.cat(pictures)
    told = Findings()
    match.tell(told)
    report = describe(settings.strengths, batch, told)
    return Sweep(charts.to_image(strip.picture()), batch, report)


def _drawn(
    model: Model,
    noise: torch.Tensor,
    prompts: Prompts,
    settings: SweepSettings,
    on_step: sampling.OnStep,
) -> torch.Tensor:
    """The latents [1, *shape] of one picture; raises UnlearnError for prompts of another CLIP."""
    try:
        return sampling.sample(
            model,
            noise.clone(),
            prompts.positive,
            prompts.negative,
            settings.for_sampler(),
            on_step,
        )
    except drawn_prompts.LACKING as error:
        if memory.is_full(error):
            raise
        raise UnlearnError(
            f"The input 'positive' or 'negative' does not go with the model ({error}); connect "
            "CLIP Text Encode with the CLIP of the same checkpoint."
        ) from error


def describe(strengths: Sequence[float], pictures: torch.Tensor, told: Findings) -> str:
    """The report: between which strengths the pictures [n, h, w, 3] change most.

    told: what there is to say besides.
    """
    changes = [float((b - a).abs().mean()) for a, b in zip(pictures, pictures[1:], strict=False)]
    shown = ", ".join(
        f"{low:.2f} to {high:.2f}: {change:.3f}"
        for low, high, change in zip(strengths, strengths[1:], changes, strict=False)
    )
    told.details.append(f"Mean change of the picture between strengths, of 1: {shown}.")
    if not max(changes) > tuning.SWEEP_NOTHING:
        told.advice.append(
            "Next: name a forgotten concept in the prompt at 'positive' of Unlearn Strength Sweep."
        )
        return told.report("Nothing changes at any strength.")
    at = changes.index(max(changes))
    low, high = strengths[at], strengths[at + 1]
    told.advice.append(f"Try: set 'strength' of Apply Unlearn Patch to {high:.2f}.")
    told.details.append(f"If the concept is still there at {high:.2f}, use strength 1.")
    return told.report(f"Most changes between strength {low:.2f} and {high:.2f}.")
