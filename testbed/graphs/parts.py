"""Nodes that several example workflows have, as a source lists them, and what a source is."""

from typing import NamedTuple

CHECKPOINT, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
URLS = {  # for the frontend's dialog about missing models
    CHECKPOINT: "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    + CHECKPOINT,
    SDXL: f"https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}",
}
SAMPLER = {
    "seed": 7,
    "steps": 20,
    "cfg": 7.0,
    "sampler_name": "ddim",
    "scheduler": "ddim_uniform",
    "denoise": 1.0,
}
NO_FILE = {"preset": "none", "file": "none"}
OBJECTS = {
    "forget": "garbage truck -> vehicle\nchurch -> building",
    "keep": "fire truck\ntown hall",
    "kind": "object",
    **NO_FILE,
}
STYLE = {"forget": "van gogh", "keep": "monet", "kind": "style", **NO_FILE}


class Drawing(NamedTuple):
    """What a workflow file is drawn from; a place is (x, y, width, height)."""

    nodes: dict  # id -> (class, title, place, inputs)
    note: str  # Markdown
    at: tuple  # the note's place
    groups: dict = {}  # title -> place
    muted: tuple = ()  # ids
    folded: tuple = ()  # ids of nodes that show their title only


MODEL, CLIP, VAE = ["1", 0], ["1", 1], ["1", 2]


class Loaded(NamedTuple):
    """Nodes that load a model, and the outputs that give it."""

    nodes: dict
    model: list = MODEL
    clip: list = CLIP
    vae: list = VAE


def solve_inputs(concepts, variant="anchored", model=MODEL, clip=CLIP, **settings):
    """Inputs of ScaPreSolve on node `concepts`; `settings` are those of the variant."""
    known = {
        "erase": 100.0,
        "preserve": 1.0,
        "anchor": 0.05,
        "spectral": 0.0,
        "informax": False,
        "overshoot": 1.0,
        "drift": 0.14,
    }
    return {
        "model": model,
        "clip": clip,
        "concepts": [concepts, 0],
        "variant": variant,
        **{f"variant.{k}": v for k, v in (settings or known).items()},
        "tokens": "all",
        "prior": True,
        "templates": "",
        "estimator": "graded",
        "hard_keep": 0.0,
        "rounds": 0,
        "expand": False,
        "auto_protect": 0.0,
        "strength": "normal",
    }


MEASURE = {
    "model": ["1", 0],
    "clip": ["1", 1],
    "concepts": ["2", 0],
    "score": "paper",
    "prompts": 5,
    "steps": 50,
    "window": 10,
    "cfg": 7.5,
    "seed": 1244,
    "size": 0,
    "ceiling": 0.06,
    "r1": 0.05,
    "scale": "layer_max",
    "halves": "conditional",
    "first": 0,
    "templates": "",
    "base": "",
    "contexts": "",
    "raw_statistics": "",
}
FUSE = {
    "saliency.saliency0": ["3", 0],
    "r2": 0.03,
    "alpha": 0.6,
    "granularity": "connection",
    "parts": "all",
    "from_depth": 0.0,
    "to_depth": 1.0,
    "per_concept": "",
}
TRAIN = {
    "model": ["1", 0],
    "clip": ["1", 1],
    "concepts": ["2", 0],
    "variant": "replay",
    "preset": "quick",
    "cfg": 7.5,
    "size": 0,
    "seed": 0,
    "trainable": "cross-attention",
    "density": 0.5,
    "turnover": 0.2,
    "warmup": 50,
    "refresh": 100,
    "importance": "signed",
    "align": 0.25,
    "distil": 0.25,
    "hold": 5.0,
    "precision": "auto",
    "checkpointing": False,
    "preview_every": 0,
    "low_rank": 0,
    "on_cancel": "discard",
    "resume": "",
    "templates": "",
    "strength": "normal",
}


def loader(name, place):
    return "CheckpointLoaderSimple", "Load Checkpoint", place, {"ckpt_name": name}


def saved(name, picture, place):
    inputs = {"images": picture, "filename_prefix": f"unlearn/{name.lower()}"}
    return "SaveImage", f"Picture {name}", place, inputs


def compared(before, after, place):
    """The stock node with a divider that follows the pointer."""
    return "ImageCompare", "Compare Images", place, {"image_a": before, "image_b": after}


def api(nodes):
    """Nodes as a source lists them -> API format."""
    return {
        i: {"class_type": c, "inputs": v, "_meta": {"title": t}}
        for i, (c, t, _, v) in nodes.items()
    }


def checkpoint_loader(name):
    """One file with all that draws."""
    return Loaded({"1": loader(name, (0, 275, 380, 102))})


def before_and_after(erasers, patches, prompt, checkpoint=CHECKPOINT, side=512):
    """The nodes around the erasers: a loader, the patches applied, one prompt before and after.

    `patches` are ids of nodes that give a patch.
    """
    loaded = checkpoint_loader(checkpoint)
    room = "EmptyLatentImage", {"width": side, "height": side, "batch_size": 1}
    around = patched(loaded, patches, prompt, room, 860)
    return {**loaded.nodes, **erasers, **around, **drawn_twice(loaded, SAMPLER, 1240)}


def patched(loaded, patches, prompt, room, x, negative=""):
    """The patches applied, the prompts and the size. No text: the prompt's conditioning, zeroed."""
    applied = {f"patches.patch{k}": [i, 0] for k, i in enumerate(patches)}
    more = 26 * (len(patches) - 1)  # height of the sockets
    node, size = room
    without = "ConditioningZeroOut", "No Negative Prompt", (x, 440 + more, 340, 60)
    against = "CLIPTextEncode", "Negative Prompt", (x, 440 + more, 340, 102)
    return {
        "5": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            (x, 0, 340, 240 + more),
            {
                "model": loaded.model,
                **applied,
                "strength": 1.0,
                "mismatch": "warn",
                "quantised": "auto",
            },
        ),
        "6": (
            "CLIPTextEncode",
            "Prompt",
            (x, 290 + more, 340, 102),
            {"clip": loaded.clip, "text": prompt},
        ),
        "7": (*without, {"conditioning": ["6", 0]})
        if negative is None
        else (*against, {"clip": loaded.clip, "text": negative}),
        "8": (
            node,
            "Picture Size",
            (x, 590 + more, 340, 118 + 28 * ("length" in size)),
            size,
        ),
    }


def drawn_twice(loaded, sampler, x, fps=0):
    """Samplers before and after, and what saves their pictures; videos at `fps` frames a second."""
    wires = {"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0]}
    nodes = {}
    both = ("Before", loaded.model, 0), ("After", ["5", 0], 610 if fps else 530)
    for k, (name, model, y) in enumerate(both):
        sample, decode, save, make = (str(n + k) for n in (9, 11, 13, 23))
        inputs = {"model": model, **sampler, **wires}
        nodes[sample] = ("KSampler", name, (x, y, 290, 290), inputs)
        inputs = {"samples": [sample, 0], "vae": loaded.vae}
        nodes[decode] = ("VAEDecode", f"Decode {name}", (x, y + 340, 290, 50), inputs)
        place = (x + 330, y, 460, 485)
        if not fps:
            nodes[save] = saved(name, [decode, 0], place)
            continue
        inputs = {"images": [decode, 0], "fps": fps}
        nodes[make] = ("CreateVideo", f"Video {name}", (x, y + 440, 290, 110), inputs)
        inputs = {
            "video": [make, 0],
            "filename_prefix": f"unlearn/{name.lower()}",
            "format": "auto",
            "codec": "auto",
        }
        nodes[save] = ("SaveVideo", f"Save Video {name}", place, inputs)
    return nodes


def report_nodes(picture, words, at=(420, 750, 400, 290), beside=(860, 815, 340, 225)):
    """An eraser's report, as a picture and in words. The wire to the last decoder runs above it."""
    return {
        "15": ("PreviewImage", "Report", at, {"images": picture}),
        "16": ("PreviewAny", "Report in Words", beside, {"source": words}),
    }
