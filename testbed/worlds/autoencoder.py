"""The worlds' autoencoder, written by hand: a TAESD whose latents are the colours of a picture."""

import math
from collections.abc import Sequence

import torch

SMALL = 0.05  # how latents of 16 channels are scaled, so that the decoder's clamp lets them pass


def _tap(out, into, pairs, value=1.0):
    """3x3 convolution weights with only centre taps: channel pairs (to, from) -> value."""
    w = torch.zeros(out, into, 3, 3)
    for to, source in pairs:
        w[to, source, 1, 1] = value
    return w


def state_dict(scale=0.18215):
    """A TAESD written by hand: latents are exactly the RGB, and its mean, of an 8x smaller picture.

    Every residual block is zero, and every other convolution has only a centre tap. The decoder
    clamps by 3 tanh(x/3), which is undone at x = +-1.
    """
    same = [(i, i) for i in range(3)]
    sd = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(0.0)}

    def block(name):
        for i in (0, 2, 4):
            sd[f"{name}.conv.{i}.weight"] = torch.zeros(64, 64, 3, 3)
            sd[f"{name}.conv.{i}.bias"] = torch.zeros(64)

    enc, dec = "taesd_encoder", "taesd_decoder"
    sd[f"{enc}.0.weight"], sd[f"{enc}.0.bias"] = _tap(64, 3, same), torch.zeros(64)
    for i in (2, 6, 10):
        sd[f"{enc}.{i}.weight"] = _tap(64, 64, same)
    for i in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        block(f"{enc}.{i}")
    sd[f"{enc}.14.weight"], sd[f"{enc}.14.bias"] = _tap(4, 64, same, 2.0), torch.full((4,), -1.0)
    sd[f"{enc}.14.weight"][3, :3, 1, 1] = 2 / 3
    sd[f"{dec}.1.weight"] = _tap(64, 4, same, 0.5 / (3 * math.tanh(1 / 3)))
    sd[f"{dec}.1.bias"] = torch.cat([torch.full((3,), 0.5), torch.zeros(61)])
    for i in (7, 12, 17):
        sd[f"{dec}.{i}.weight"] = _tap(64, 64, same)
    for i in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        block(f"{dec}.{i}")
    sd[f"{dec}.19.weight"], sd[f"{dec}.19.bias"] = _tap(3, 64, same), torch.zeros(3)
    return sd


def of_16_channels(mean: Sequence[float], std: Sequence[float]) -> dict[str, torch.Tensor]:
    """The same for latents [B, 16, h, w], of which the first three channels are the colours.

    mean, std: of these channels, as ComfyUI's latent format has them. A colour of -1 to 1 in the
    model is `std * colour + mean` in the latents. The other channels are 0 and are not read.
    """
    sd = state_dict(SMALL)
    m, s = torch.tensor(mean), torch.tensor(std)
    enc, dec = "taesd_encoder.14", "taesd_decoder.1"
    sd[f"{enc}.weight"], sd[f"{enc}.bias"] = torch.zeros(16, 64, 3, 3), torch.zeros(16)
    sd[f"{dec}.weight"] = torch.zeros(64, 16, 3, 3)
    for i in range(3):
        sd[f"{enc}.weight"][i, i, 1, 1] = 2 * SMALL * s[i]
        sd[f"{enc}.bias"][i] = SMALL * (m[i] - s[i])
        sd[f"{dec}.weight"][i, i, 1, 1] = 0.5 / (SMALL * s[i])
        sd[f"{dec}.bias"][i] = 0.5 - 0.5 * m[i] / s[i]
    return sd
