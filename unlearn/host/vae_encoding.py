"""Pictures of the artist's own as latents."""

from __future__ import annotations

import comfy.utils
import torch

from ..errors import UnlearnError
from . import matching
from .batched_sampling import latent_shape
from .model_types import Model, Vae


def encode_squares(vae: Vae, model: Model, images: torch.Tensor, size: int) -> torch.Tensor:
    """Latents, float32 [n, c, h, w] on the CPU in the model's scale, of an IMAGE batch.

    images: [n, h, w, 3] in [0, 1]; the middle of each is cropped to a square of `size` pixels.
    Raises UnlearnError for a VAE of other latents than the MODEL's.
    """
    matching.check_vae(model, vae)
    channels_first = images[:, :, :, :3].movedim(-1, 1)
    square = comfy.utils.common_upscale(channels_first, size, size, "lanczos", "center")
    with torch.inference_mode():
        encoded = vae.encode(square.movedim(1, -1))
        wanted = latent_shape(model, size)
        if list(encoded.shape[1:]) != wanted:
            raise UnlearnError(
                f"The input 'vae' gives latents of shape {list(encoded.shape[1:])} where the model "
                f"has {wanted}; connect the VAE of the same checkpoint."
            )
        latents = model.model.process_latent_in(encoded)
    with torch.inference_mode(False):
        return latents.float().cpu().clone()
