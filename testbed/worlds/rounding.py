"""Matrices in few bits, for the files that ship: 8 bits with a scale for each row, or 4 bits."""

import math

import torch

GROUP = 64


def quantise(w):
    """[rows, ...] -> int8 of that shape and float16 scales [rows]; the peak of a row is +-127."""
    flat = w.float().flatten(1)
    scale = (flat.abs().amax(1) / 127).clamp_min(1e-7).half()
    return (flat / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).view(
        w.shape
    ), scale


def _grouped(d):
    """[rows, ...] -> float32 [rows, groups, 64], filled up with zeros."""
    flat = d.float().flatten(1)
    return torch.nn.functional.pad(flat, (0, -flat.shape[1] % GROUP)).unflatten(1, (-1, GROUP))


def scales(d):
    """Float16 scales [rows, groups] for 4 bits; for each group the best of four is taken."""
    flat = _grouped(d)
    peak = flat.abs().amax(-1).clamp_min(1e-6)
    best = torch.full_like(peak, torch.inf)
    scale = torch.zeros_like(peak, dtype=torch.float16)
    # Cutting off a few entries may be better than coarse steps for all.
    for share in (1.0, 0.9, 0.8, 0.7):
        tried = (peak * share / 7.5).half()
        error = (
            ((flat / tried[..., None]).round().clamp(-8, 7) * tried[..., None] - flat)
            .square()
            .sum(-1)
        )
        scale, best = torch.where(error < best, tried, scale), torch.minimum(error, best)
    return scale


def nibbles(d):
    """[rows, ...] -> uint8 [rows, n / 2], two numbers of -8 to 7 each, and `scales(d)`."""
    scale = scales(d)
    q = ((_grouped(d) / scale[..., None]).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(1)
    return q[:, ::2] << 4 | q[:, 1::2], scale


def on_grid(d, scale):
    """The matrix as 4 bits with these scales hold it, float32."""
    step = scale.float()[..., None]
    flat = ((_grouped(d) / step).round_().clamp_(-8, 7) * step).flatten(1)
    return flat[:, : math.prod(d.shape[1:])].reshape(d.shape)


def from_nibbles(packed, scale, shape):
    """What `nibbles` packed, float32 of the given shape."""
    q = torch.stack([packed >> 4, packed & 15], -1).flatten(1).float() - 8
    d = (q.unflatten(1, (-1, GROUP)) * scale.float()[..., None]).flatten(1)
    return d[:, : math.prod(shape[1:])].reshape(shape)


def scaled(w, scale):
    """What `quantise` made, float32 of the same shape."""
    return w.float() * scale.float().view(-1, *[1] * (w.ndim - 1))


def rounded(w):
    """The matrix as 4 bits hold it, float32."""
    return on_grid(w, scales(w))
