"""Draws the pairs of the Erasure Report with one model, with progress and a live preview."""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ..host import batched_sampling, model_file, sampling
from ..host.drawn_prompts import DrawnPrompts
from ..host.memory import BatchSize, raise_if_cancelled
from ..host.model_types import Model, Vae
from ..host.previews import FastPreviewer, PictureProgress
from ..host.progress import status
from ..host.stages import Stage
from . import charts
from .picture_pairs import PicturePair
from .sheet import Thumbnails, draw_sheet

REDRAW_SECONDS = 1.0  # between live previews
BEFORE, AFTER = 0, 1  # which of the two models draws


class LiveSheet:
    """Progress in sampling steps of single pictures, with the unfinished sheet as the preview."""

    def __init__(
        self, pairs: Sequence[PicturePair], model: Model, steps: int, node_id: str | None = None
    ) -> None:
        self.pairs = pairs
        self.of_model = model_file.loaded_from(model)
        self.steps = steps
        self.done = 0
        self.thumbnails: Thumbnails = [[None, None] for _ in pairs]
        self._last = 0.0
        self._previewer = FastPreviewer(model)
        self._progress = PictureProgress(2 * len(pairs) * steps, node_id)
        self.stage = Stage(functools.partial(status, node_id=node_id))
        self.stage.begin("Reading the prompts")

    def start_at(self, when: int, number: int) -> None:
        """Counts as done what comes before pair `number` of the model `when`.

        A batch that is tried again with fewer pictures is thus not counted twice.
        """
        self.done = (when * len(self.pairs) + number) * self.steps
        self.stage.back_to(self.done)

    def step(self, when: int, start: int, latents: torch.Tensor) -> None:
        """Counts one step of the pairs from `start` on; latents [n, c, h, w] as predicted so far.

        Raises when the run is cancelled."""
        self.done += len(latents)
        self.stage.step(len(latents))
        if self._is_due():
            for number, latent in enumerate(latents, start):
                picture = self._previewer.picture(latent)
                if picture is not None:
                    self.thumbnails[number][when] = charts.thumbnail(picture)
        self.refresh()

    def begin_drawing(self) -> None:
        """From here on the steps are sampling steps."""
        total = 2 * len(self.pairs) * self.steps
        self.stage.begin(
            "Drawing picture {at} of {of}, without the patch and with it", total, self.steps
        )

    def finish(self, grid: Image.Image) -> None:
        """Shows the finished sheet in place of the last unfinished one."""
        self._progress.show(2 * len(self.pairs) * self.steps, grid)

    def refresh(self) -> None:
        """Shows the progress, and the sheet when the last one is old; raises when cancelled."""
        raise_if_cancelled()
        sheet = None
        if self._is_due():
            sheet = draw_sheet(
                "Drawing ...",
                charts.NEUTRAL,
                self.pairs,
                self.thumbnails,
                of_model=self.of_model,
            )
            self._last = time.monotonic()
        self._progress.show(self.done, sheet)

    def _is_due(self) -> bool:
        return time.monotonic() - self._last > REDRAW_SECONDS


@dataclass(frozen=True)
class DrawingJob:
    """What both models are asked to draw."""

    pairs: Sequence[PicturePair]
    shape: Sequence[int]  # of a latent: [c, h, w], of a model of videos [c, 1, h, w]
    prompts: DrawnPrompts  # of all pairs
    settings: sampling.SamplerSettings


def draw(model: Model, when: int, job: DrawingJob, live: LiveSheet) -> torch.Tensor:
    """The latents [n, *shape] float32 of all pairs, in batches that shrink on full memory.

    Raises UnlearnError for a model that needs more than prompts.
    """
    batch = BatchSize(job.prompts.at_once)
    parts, at = [], 0
    while at < len(job.pairs):
        live.start_at(when, at)
        live.refresh()
        work = functools.partial(_draw_batch, model, when, job, live, at)
        count, latents = batch.run(len(job.pairs) - at, work)
        parts.append(latents)
        at += count
    live.start_at(when, at)
    live.refresh()
    return torch.cat(parts)


def _draw_batch(
    model: Model, when: int, job: DrawingJob, live: LiveSheet, start: int, count: int
) -> torch.Tensor:
    """The latents of the `count` pairs from `start` on."""
    live.start_at(when, start)
    chosen = range(start, start + count)
    try:
        return sampling.sample(
            model,
            batched_sampling.seeded_noise(job.shape, [job.pairs[i].seed for i in chosen]),
            job.prompts.of(chosen),
            job.prompts.negative,
            job.settings,
            functools.partial(live.step, when, start),
        )
    except Exception as error:
        fault = job.prompts.fault(model, error)
        if fault is None:
            raise
        raise fault from error


def decode(vae: Vae, latents: torch.Tensor, when: int, live: LiveSheet) -> torch.Tensor:
    """The pictures [n, height, width, 3] float32 of latents, in batches that shrink likewise."""
    batch = BatchSize(batched_sampling.LARGEST_BATCH)
    parts, at = [], 0
    while at < len(latents):
        count, pictures = batch.run(
            len(latents) - at, functools.partial(decode_batch, vae, latents[at:])
        )
        for number, picture in enumerate(pictures, at):
            live.thumbnails[number][when] = charts.thumbnail(picture)
        parts.append(pictures)
        at += count
        live.refresh()
    return torch.cat(parts)


def decode_batch(vae: Vae, latents: torch.Tensor, count: int) -> torch.Tensor:
    """The pictures [count, height, width, 3] float32 of the first latents."""
    pictures = vae.decode(latents[:count]).float().cpu()
    # Of a video the first frame. A VAE of videos gives one more axis.
    return pictures.reshape(count, -1, *pictures.shape[-3:])[:, 0]
