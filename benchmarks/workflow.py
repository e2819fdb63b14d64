"""The example workflows as graphs: UI-format files turned into API format, with values put in by node title."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "example_workflows"


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def to_api(workflow):
    """UI format (version 0.4) -> API format {id: {class_type, inputs, _meta}}; notes are left out.

    Widget values stand in the order of the inputs that have a widget; a seed is followed by its control_after_generate.
    """
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        values = list(node.get("widgets_values", []))
        inputs = {}
        for entry in node.get("inputs", []):
            if "widget" in entry and values:
                inputs[entry["name"]] = values.pop(0)
                if entry["name"] in ("seed", "noise_seed"):
                    values.pop(0)
            if entry.get("link") is not None:
                inputs[entry["name"]] = list(links[entry["link"]])
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title", node["type"])}}
    return graph


def titled(graph, title):
    """Id of the one node with this title."""
    found = [i for i, n in graph.items() if n["_meta"]["title"] == title]
    if len(found) != 1:
        raise KeyError(f"{len(found)} nodes are titled '{title}'")
    return found[0]


def put(graph, title, **values):
    """Sets input values of the node with this title."""
    graph[titled(graph, title)]["inputs"].update(values)
    return graph


CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
SAMPLER = {"seed": 7, "steps": 20, "cfg": 7.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}


def quick_erase():
    """Forget objects and a style by ScaPre, see before and after with the same seed: (id -> (class, title, place, inputs), note)."""
    solve = {
        "model": ["1", 0],
        "clip": ["1", 1],
        "concepts": ["3", 0],
        "variant": "anchored",
        "variant.erase": 100.0,
        "variant.preserve": 1.0,
        "variant.anchor": 0.05,
        "variant.spectral": 0.0,
        "variant.informax": False,
        "variant.overshoot": 1.0,
        "variant.drift": 0.15,
        "tokens": "all",
        "prior": True,
        "templates": "",
        "estimator": "graded",
        "hard_keep": 0.0,
        "rounds": 0,
        "expand": False,
        "auto_protect": 0.0,
    }
    note = (
        "## Quick erase\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint.\n2. **Objects to Forget**, **Styles to "
        "Forget**: one per line, `name -> what to draw instead`; list look-alikes under keep.\n3. **Prompt**: something with a forgotten "
        "concept in it.\n4. Press **Run**. Before and After share one seed.\n\nSomething kept has changed? Add it to *keep*, or raise "
        "*preserve*. It came back? Raise *erase* tenfold."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": ("UnlearnConcepts", "Styles to Forget", (40, 570, 400, 300), {**STYLE, "more": ["2", 0]}),
        "4": ("ScaPreSolve", "ScaPre Solve", (490, 60, 400, 700), solve),
    }
    return _before_and_after(erasers, {"4": 0}, "a painting of a church by van gogh", ["4", 1], ["4", 2], 940), note


NO_FILE = {"preset": "none", "file": "none"}
OBJECTS = {"forget": "garbage truck -> vehicle\nchurch -> building", "keep": "fire truck\ntown hall", "kind": "object", **NO_FILE}
STYLE = {"forget": "van gogh", "keep": "monet", "kind": "style", **NO_FILE}


def neuron_pruning():
    """Forget objects by FIA: measure, fuse, apply."""
    measure = {
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
    fuse = {
        "saliency.saliency0": ["3", 0],
        "r2": 0.03,
        "alpha": 0.6,
        "granularity": "connection",
        "parts": "all",
        "from_depth": 0.0,
        "to_depth": 1.0,
        "per_concept": "",
    }
    note = (
        "## Neuron pruning\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint.\n2. **Objects to Forget**: one per line.\n"
        "3. Press **Run**. Concept Saliency starts a few pictures with and without each concept; that takes a while, once.\n4. Change *r2* "
        "in **Fuse Neuron Masks** and press Run again: only the masks are made anew.\n\nIt came back? Raise *r2*, up to the ceiling of "
        "Concept Saliency. Something else suffers? Lower it."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": ("ConceptSaliency", "Concept Saliency", (490, 60, 400, 560), measure),
        "4": ("NeuronMaskFuse", "Fuse Neuron Masks", (940, 60, 400, 330), fuse),
    }
    return _before_and_after(erasers, {"4": 0}, "a photo of a church", ["4", 1], ["4", 2], 1390), note


def one_after_another():
    """Forget objects in sequence by Sculpting Memory, see the loss."""
    train = {
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
        "hold": 1.0,
        "precision": "auto",
        "checkpointing": False,
        "preview_every": 0,
        "low_rank": 0,
        "on_cancel": "discard",
        "resume": "",
        "templates": "",
    }
    note = (
        "## One after another\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint that is not quantised.\n2. **Objects to "
        "Forget**: one per line with a superclass, in the order they are forgotten; list what you care about under keep.\n3. Press "
        "**Run**. The model draws its own training pictures, then trains: minutes on a GPU.\n\nIt came back? Take the preset *balanced*. "
        "Something kept has changed? Raise *hold* (advanced). To forget one more later, connect this patch to *earlier*."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (490, 60, 400, 860), train),
        "17": ("LossGraphNode", "Loss", (40, 1090, 400, 300), {"loss": ["3", 1], "filename_prefix": "unlearn/loss"}),
    }
    return _before_and_after(erasers, {"3": 0}, "a photo of a church", ["3", 2], ["3", 3], 940), note


def _before_and_after(erasers, patches, prompt, picture, words, x):
    """The nodes around erasers: loader, patches (id -> output) applied, one prompt sampled before and after, from column `x` on."""
    wires = {"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0]}
    applied = {f"patches.patch{k}": [i, out] for k, (i, out) in enumerate(patches.items())}
    return {
        "1": ("CheckpointLoaderSimple", "Load Checkpoint", (40, 60, 330, 110), {"ckpt_name": CHECKPOINT}),
        **erasers,
        "5": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            (x, 60, 330, 150),
            {"model": ["1", 0], **applied, "strength": 1.0, "mismatch": "warn"},
        ),
        "6": ("CLIPTextEncode", "Prompt", (x, 260, 400, 140), {"clip": ["1", 1], "text": prompt}),
        "7": ("CLIPTextEncode", "Negative Prompt", (x, 450, 400, 120), {"clip": ["1", 1], "text": ""}),
        "8": ("EmptyLatentImage", "Picture Size", (40, 920, 330, 120), {"width": 512, "height": 512, "batch_size": 1}),
        "9": ("KSampler", "Before", (x + 450, 60, 300, 290), {"model": ["1", 0], **SAMPLER, **wires}),
        "10": ("KSampler", "After", (x + 450, 400, 300, 290), {"model": ["5", 0], **SAMPLER, **wires}),
        "11": ("VAEDecode", "Decode Before", (x + 800, 60, 180, 60), {"samples": ["9", 0], "vae": ["1", 2]}),
        "12": ("VAEDecode", "Decode After", (x + 800, 400, 180, 60), {"samples": ["10", 0], "vae": ["1", 2]}),
        "13": ("SaveImage", "Picture Before", (x + 1030, 60, 330, 330), {"images": ["11", 0], "filename_prefix": "unlearn/before"}),
        "14": ("SaveImage", "Picture After", (x + 1030, 440, 330, 330), {"images": ["12", 0], "filename_prefix": "unlearn/after"}),
        "15": ("PreviewImage", "Report", (x, 870, 400, 320), {"images": picture}),
        "16": ("PreviewAny", "Report in Words", (x, 630, 400, 190), {"source": words}),
    }


SOURCES = {"quick_erase": quick_erase, "neuron_pruning": neuron_pruning, "one_after_another": one_after_another}


def source(name):
    """The graph a workflow file was drawn from, in API format."""
    return {i: {"class_type": c, "inputs": v, "_meta": {"title": t}} for i, (c, t, _, v) in SOURCES[name]()[0].items()}
