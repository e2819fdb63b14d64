"""Pictures in the making, as ComfyUI shows them while it samples."""

from __future__ import annotations

import latent_preview
import torch

from .model_types import Model


def latent_previewer(model: Model) -> latent_preview.LatentPreviewer | None:
    """What turns a MODEL's latents on the CPU into small pictures; None where nothing can.

    It is the previewer that the artist has chosen for samplers. Where previews are off there, it is
    the fast one, because this pack shows previews only when they were asked for.
    """
    latent_format = model.get_model_object("latent_format")
    chosen = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    if chosen is not None or latent_format.latent_rgb_factors is None:
        return chosen
    return latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
