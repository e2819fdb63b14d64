"""Pictures in the making, as ComfyUI shows them while it samples."""

from __future__ import annotations

from typing import Any

import comfy.utils
import latent_preview
import torch
from PIL import Image

from .model_types import Model

PREVIEW_SIDE = 1280  # pixels; the page scales larger previews down


def latent_previewer(model: Model) -> latent_preview.LatentPreviewer | None:
    """What turns a MODEL's latents on the CPU into small pictures; None where nothing can.

    It is the previewer that the artist has chosen for samplers. Where previews are off there, it is
    the fast one, because this pack shows previews only when they were asked for.
    """
    latent_format = model.get_model_object("latent_format")
    chosen = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    return _fast_previewer(latent_format) if chosen is None else chosen


def _fast_previewer(latent_format: Any) -> latent_preview.LatentPreviewer | None:
    """The previewer by colour factors alone; None for latents that have none."""
    if latent_format.latent_rgb_factors is None:
        return None
    return latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        getattr(latent_format, "latent_rgb_factors_reshape", None),
    )


class FastPreviewer:
    """Turns a MODEL's latents into rough pictures, fast enough for many at once."""

    def __init__(self, model: Model) -> None:
        self._previewer = _fast_previewer(model.get_model_object("latent_format"))

    def picture(self, latent: torch.Tensor) -> Image.Image | None:
        """A rough picture of one latent [c, h, w]; None where the model has no colour factors."""
        if self._previewer is None:
            return None
        return self._previewer.decode_latent_to_preview(torch.nan_to_num(latent[None]))


class PictureProgress:
    """A progress bar of the running node that can show a picture."""

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def show(self, done: int, picture: Image.Image | None = None) -> None:
        """Shows that `done` steps are done, and the picture, if there is one."""
        preview = None if picture is None else ("JPEG", picture, PREVIEW_SIDE)
        self._bar.update_absolute(done, preview=preview)
