"""Previews of unfinished pictures, and a progress bar that shows them in the page."""

import comfy.utils
import latent_preview
import torch
from PIL import Image

from .model_types import Model

PREVIEW_SIDE = 1280  # pixels; the page scales larger previews down


class LatentPreviewer:
    """Turns latents into rough pictures with the colour factors that ComfyUI has for the model."""

    def __init__(self, model: Model) -> None:
        form = model.get_model_object("latent_format")
        self._previewer = None
        if form.latent_rgb_factors is not None:
            self._previewer = latent_preview.Latent2RGBPreviewer(
                form.latent_rgb_factors,
                form.latent_rgb_factors_bias,
                getattr(form, "latent_rgb_factors_reshape", None),
            )

    def picture(self, latent: torch.Tensor) -> Image.Image | None:
        """A rough picture of one latent [c, h, w]; None for models without colour factors."""
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
