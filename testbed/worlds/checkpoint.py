"""The worlds' files: the compact file that ships, and the SD1.5-format checkpoint made from it.

A compact file is safetensors with the tensors `unet.*` and `judge.*`:
- a matrix is int8, with a float16 scale for each row (`NAME.scale`); the rest is float16;
- a world trained from another stores how its UNet's matrices differ from that one's, in 4 bits
  (`NAME.nibbles`), with a float16 scale for every 64 entries of a row (`NAME.scale`).

The text encoder is made from its seed, and the autoencoder is written by hand. The metadata:
- `format`; `training`: JSON of the arguments it was trained with;
- `planted`: JSON, concept -> block -> hidden units;
- `world`; `base`: the world that differences refer to, or empty. Older files have neither.
"""

import json
import math
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from . import catalogue, encoder

SHIPPED = catalogue.SPRITES.file
FORMAT = "sprite-world-1"
NAME = catalogue.SPRITES.checkpoint


def quantise(w):
    """[rows, ...] -> int8 of that shape and float16 scales [rows]; the peak of a row is +-127."""
    flat = w.float().flatten(1)
    scale = (flat.abs().amax(1) / 127).clamp_min(1e-7).half()
    return (flat / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).view(
        w.shape
    ), scale


GROUP = 64


def nibbles(d):
    """[rows, ...] -> uint8 [rows, n / 2], two numbers of -8 to 7 each, and scales [rows, groups].

    The scales are float16; for each group the best of four is taken.
    """
    flat = d.float().flatten(1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
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
    q = ((flat / scale[..., None]).round().clamp(-8, 7) + 8).to(torch.uint8).flatten(1)
    return q[:, ::2] << 4 | q[:, 1::2], scale


def from_nibbles(packed, scale, shape):
    """What `nibbles` packed, float32 of the given shape."""
    q = torch.stack([packed >> 4, packed & 15], -1).flatten(1).float() - 8
    d = (q.unflatten(1, (-1, GROUP)) * scale.float()[..., None]).flatten(1)
    return d[:, : math.prod(shape[1:])].reshape(shape)


def write_compact(
    path, unet, judge, training=None, planted=None, world=catalogue.SPRITES, base=None
):
    """Writes a compact file.

    base: name of a world. For matrices that its file has too, the difference is stored in 4 bits.
    """
    tensors = {}
    start = read_compact(catalogue.get(base).file) if base else {}
    for prefix, sd in (("unet.", unet), ("judge.", judge)):
        for name, w in sd.items():
            if w.ndim > 1 and prefix == "unet." and name in start:
                d = w.float() - start[name].float()
                tensors[f"{prefix}{name}.nibbles"], tensors[f"{prefix}{name}.scale"] = nibbles(d)
            elif w.ndim > 1:
                tensors[f"{prefix}{name}"], tensors[f"{prefix}{name}.scale"] = quantise(w)
            elif w.is_floating_point():
                tensors[f"{prefix}{name}"] = w.half().contiguous()
    metadata = {
        "format": FORMAT,
        "training": json.dumps(training or {}),
        "planted": json.dumps(planted or {}),
    }
    metadata |= {"world": world.name, "base": base or ""}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)


def recipe(given):
    """The arguments of the script that made a file, as text; of paths only the names."""
    return {
        k: v.name if isinstance(v, Path) else str(v) for k, v in vars(given).items() if k != "out"
    }


def read_compact(path=SHIPPED, prefix="unet."):
    """State dict of one part, float16, names without the prefix."""
    with safe_open(path, "pt") as f:
        if f.metadata()["format"] != FORMAT:
            raise ValueError(f"{path} is not a {FORMAT} file")
        names = set(f.keys())
        base = f.metadata().get("base")
        start = read_compact(catalogue.get(base).file, prefix) if base else {}
        out = {}
        for name in sorted(names):
            if name.startswith(prefix) and not name.endswith(".scale"):
                w = f.get_tensor(name)
                if name.endswith(".nibbles"):
                    name = name.removesuffix(".nibbles")
                    of = start[name.removeprefix(prefix)].float()
                    w = (of + from_nibbles(w, f.get_tensor(f"{name}.scale"), of.shape)).half()
                elif f"{name}.scale" in names:
                    scale = f.get_tensor(f"{name}.scale").float()
                    w = (w.float() * scale.view(-1, *[1] * (w.ndim - 1))).half()
                out[name.removeprefix(prefix)] = w
    return out


def planted(path=SHIPPED):
    """Concept -> transformer block -> hidden units, for concepts planted into reserved units."""
    with safe_open(path, "pt") as f:
        return json.loads(f.metadata()["planted"])


def load_judge(path=SHIPPED):
    from .judge import Judge

    with safe_open(path, "pt") as f:
        judge = Judge(catalogue.get(f.metadata().get("world", "sprites")))
    state = {k: v.float() for k, v in read_compact(path, "judge.").items()}
    judge.load_state_dict(state, strict=False)  # batch counters are not stored
    return judge.eval()


def _tap(out, into, pairs, value=1.0):
    """3x3 convolution weights with only centre taps: channel pairs (to, from) -> value."""
    w = torch.zeros(out, into, 3, 3)
    for to, source in pairs:
        w[to, source, 1, 1] = value
    return w


def vae_state_dict():
    """A TAESD written by hand: latents are exactly the RGB, and its mean, of an 8x smaller picture.

    Every residual block is zero, and every other convolution has only a centre tap. The decoder
    clamps by 3 tanh(x/3), which is undone at x = +-1.
    """
    same = [(i, i) for i in range(3)]
    sd = {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}

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


def checkpoint_state_dict(unet):
    """The whole checkpoint, float16, in the original SD1.5 names."""
    sd = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    sd |= encoder.state_dict("cond_stage_model.transformer.text_model.")
    sd |= {f"first_stage_model.{k}": v for k, v in vae_state_dict().items()}
    return {k: v.half().contiguous() for k, v in sd.items()}


def expand(folder, path=SHIPPED, name=NAME):
    """Writes the checkpoint `name` into `folder`, unless it is there and made from this file.

    Returns its path.
    """
    target, stamp = Path(folder) / name, Path(folder) / f"{name}.stamp"
    made_of = f"{FORMAT} {Path(path).stat().st_size} {_digest(path)}"
    if target.exists() and stamp.exists() and stamp.read_text() == made_of:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".part{os.getpid()}")
    save_file(checkpoint_state_dict(read_compact(path)), part)
    os.replace(part, target)
    stamp.write_text(made_of)
    return target


def _digest(path):
    import hashlib

    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
