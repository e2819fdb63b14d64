"""Small VAEs of ComfyUI's own classes with random weights, for the latents of a MODEL."""

import functools
from typing import Any

import torch

WAN_WIDTH = 8  # channels at the pixels' end; the true ones have 96


def _random(module: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a module that keep what it reads at its size."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, weight in module.state_dict().items():
        fan = max(1, weight[0].numel()) if weight.ndim > 1 else 1
        state[key] = torch.randn(weight.shape, generator=g) / fan**0.5
    return state


@functools.cache
def _of_pictures(channels: int) -> Any:
    import comfy.sd
    import comfy.taesd.taesd

    made = comfy.taesd.taesd.TAESD(latent_channels=channels)
    return comfy.sd.VAE(sd=_random(made), metadata={"tae_latent_channels": channels})


@functools.cache
def _of_videos() -> Any:
    import comfy.ldm.wan.vae
    import comfy.sd

    made = comfy.ldm.wan.vae.WanVAE(
        dim=WAN_WIDTH,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        image_channels=3,
        conv_out_channels=3,
        dropout=0.0,
    )
    return comfy.sd.VAE(sd=_random(made))


def vae(model: Any) -> Any:
    """A VAE for the latents of a MODEL: TAESD for pictures, Wan 2.1's for 16 channels of video."""
    form = model.get_model_object("latent_format")
    if form.latent_dimensions == 2:
        return _of_pictures(form.latent_channels)
    if form.latent_channels != 16:
        raise ValueError("no small VAE for these latents")
    return _of_videos()
