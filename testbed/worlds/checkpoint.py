"""The worlds' files: the compact file that ships, and the checkpoint that is made from it.

A compact file is safetensors with the tensors `unet.*` and `judge.*`:
- a matrix is int8, with a float16 scale for each row (`NAME.scale`); the rest is float16;
- a large matrix may have 4 bits (`NAME.nibbles`), with a float16 scale for every 64 entries of a
  row (`NAME.scale`). A world trained from another stores the difference to that one's matrix.

The text encoder is made from its seed or from the file of testbed/worlds/meaning.py, and the
autoencoder is written by hand. The metadata:
- `format`; `training`: JSON of the arguments it was trained with;
- `planted`: JSON, concept -> block -> hidden units;
- `world`; `base`: the world that differences refer to, or empty. Older files have neither;
- `text`: `sd15` or `sdxl`, if keys and values read text in the coordinates of meaning.py, or the
  format of a diffusion transformer, see transformers.py. Such a file also has `shapes`, of what has
  4 bits, and `empty`, residual blocks that are all zero.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from . import autoencoder, catalogue, encoder, meaning, transformers
from .rounding import from_nibbles, nibbles, quantise, scaled

SHIPPED = catalogue.SPRITES.file
FORMAT = "sprite-world-1"
NAME = catalogue.SPRITES.checkpoint


def few_bits(name, w, text="sd15"):
    """Whether a matrix of a world with `text` is stored in 4 bits."""
    if text in transformers.FORMATS:
        return transformers.few_bits(name, w, text)
    return w.numel() >= 100_000 and not name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def write_compact(
    path,
    unet,
    judge,
    training=None,
    planted=None,
    world=catalogue.SPRITES,
    base=None,
    text="",
    empty=(),
):
    """Writes a compact file.

    base: name of a world. For matrices that its file has too, the difference is stored in 4 bits.
    text, empty: see above.
    """
    tensors, shapes = {}, {}
    start = read_compact(catalogue.get(base).file) if base else {}
    for prefix, sd in (("unet.", unet), ("judge.", judge)):
        for name, w in sd.items():
            at = f"{prefix}{name}"
            if w.ndim > 1 and prefix == "unet." and name in start:
                d = w.float() - start[name].float()
                tensors[f"{at}.nibbles"], tensors[f"{at}.scale"] = nibbles(d)
            elif w.ndim > 1 and prefix == "unet." and text and few_bits(name, w, text):
                tensors[f"{at}.nibbles"], tensors[f"{at}.scale"] = nibbles(w)
                shapes[at] = list(w.shape)
            elif w.ndim > 1:
                tensors[at], tensors[f"{at}.scale"] = quantise(w)
            elif w.is_floating_point():
                tensors[at] = w.half().contiguous()
    metadata = {
        "format": FORMAT,
        "training": json.dumps(training or {}),
        "planted": json.dumps(planted or {}),
        "world": world.name,
        "base": base or "",
    }
    if text:
        metadata |= {"text": text, "shapes": json.dumps(shapes), "empty": json.dumps(list(empty))}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)


def recipe(given):
    """The arguments of the script that made a file, as text; of paths only the names."""
    return {
        k: v.name if isinstance(v, Path) else str(v) for k, v in vars(given).items() if k != "out"
    }


def read_compact(path=SHIPPED, prefix="unet.", narrow=False):
    """State dict of one part, float16, names without the prefix.

    narrow: leave out empty blocks, and leave what reads text in the coordinates of meaning.py.
    """
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        if metadata["format"] != FORMAT:
            raise ValueError(f"{path} is not a {FORMAT} file")
        names = set(f.keys())
        base, shapes = metadata.get("base"), json.loads(metadata.get("shapes", "{}"))
        start = read_compact(catalogue.get(base).file, prefix) if base else {}
        out = {}
        for name in sorted(names):
            if name.startswith(prefix) and not name.endswith(".scale"):
                w = f.get_tensor(name)
                if name.endswith(".nibbles"):
                    name = name.removesuffix(".nibbles")
                    scale = f.get_tensor(f"{name}.scale")
                    if name in shapes:
                        w = from_nibbles(w, scale, shapes[name]).half()
                    else:
                        of = start[name.removeprefix(prefix)].float()
                        w = (of + from_nibbles(w, scale, of.shape)).half()
                elif f"{name}.scale" in names:
                    w = scaled(w, f.get_tensor(f"{name}.scale")).half()
                out[name.removeprefix(prefix)] = w
    if prefix == "unet." and metadata.get("text") and not narrow:
        out = widened(out, metadata["text"])
        for block in json.loads(metadata["empty"]):
            out |= empty_block(block, 640 if f"{block}.skip_connection.weight" in out else 320)
    return out


def text_format(path=SHIPPED):
    """The file's `text`, see above; empty in older files."""
    with safe_open(path, "pt") as f:
        return f.metadata().get("text", "")


def text_parts(path=SHIPPED):
    """The text encoders in a file's checkpoint: (), of the seed or none; or of meaning.py."""
    return {"sd15": ("l",), "sdxl": ("l", "g"), "sd3": ("l",)}.get(text_format(path), ())


def widened(unet, text):
    """The matrices that read text, from the coordinates of meaning.py to the encoder's states."""
    if text in transformers.FORMATS:
        return transformers.widened(unet, text)
    parts = {"sd15": ("l",), "sdxl": ("l", "g")}[text]
    wide = torch.block_diag(*(meaning.widening(meaning.KINDS[part]) for part in parts))
    out = {}
    for name, w in unet.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            w = (w.float() @ wide.T).half()
        elif name == "label_emb.0.0.weight":
            pooled = meaning.widening(meaning.KINDS["g"])
            sizes = torch.zeros(len(w), 6 * 256)  # the picture's sizes make no difference
            w = torch.cat([w.float() @ pooled.T, sizes], 1).half()
        out[name] = w
    return out


def empty_block(at, into, out=320, times=1280):
    """A residual block that adds nothing, in the names of SD1.5."""
    shapes = {
        "in_layers.0": (into,),
        "in_layers.2": (out, into, 3, 3),
        "emb_layers.1": (out, times),
        "out_layers.0": (out,),
        "out_layers.3": (out, out, 3, 3),
    }
    sd = {}
    for name, shape in shapes.items():
        sd[f"{at}.{name}.weight"] = torch.zeros(shape, dtype=torch.float16)
        sd[f"{at}.{name}.bias"] = torch.zeros(shape[0], dtype=torch.float16)
    return sd


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


def checkpoint_state_dict(unet, parts=(), text=""):
    """The whole checkpoint, float16, in the original names of SD1.5, SDXL or a transformer.

    parts: see text_parts; text: see text_format.
    """
    sd = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    if text in transformers.FORMATS:
        sd |= transformers.beside_the_network(text)
        return {k: v.half().contiguous() for k, v in sd.items()}
    scale = 0.18215
    if "g" in parts:
        scale = 0.13025
        sd |= meaning.state_dict("l", "conditioner.embedders.0.transformer.text_model.")
        sd |= meaning.open_clip_state_dict("conditioner.embedders.1.model.")
    elif parts:
        sd |= meaning.state_dict("l", "cond_stage_model.transformer.text_model.")
    else:
        sd |= encoder.state_dict("cond_stage_model.transformer.text_model.")
    sd |= {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict(scale).items()}
    return {k: v.half().contiguous() for k, v in sd.items()}


def expand(folder, path=SHIPPED, name=NAME):
    """Writes the checkpoint `name` into `folder`, unless it is there and made from this file.

    Returns its path.
    """
    target, stamp = Path(folder) / name, Path(folder) / f"{name}.stamp"
    made_of = f"{FORMAT} {Path(path).stat().st_size} {_digest(path)}"
    for part in text_parts(path):
        made_of += f" {_digest(meaning.file_of(part))}"
    if target.exists() and stamp.exists() and stamp.read_text() == made_of:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".part{os.getpid()}")
    made = checkpoint_state_dict(read_compact(path), text_parts(path), text_format(path))
    save_file(made, part)
    os.replace(part, target)
    stamp.write_text(made_of)
    return target


def _digest(path):
    import hashlib

    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
