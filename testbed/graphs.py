"""The example workflows as graphs: reading their files, and the source they are drawn from."""

import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "example_workflows"
MUTED = 2  # LiteGraph's mode "never"


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def to_api(workflow, muted=False):
    """UI format (version 0.4) -> API format {id: {class_type, inputs, _meta}}, without notes.

    Muted nodes are left out unless `muted` is True. Widget values stand in the order of the inputs
    that have a widget, and a seed is followed by its control_after_generate.
    """
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote") or (node["mode"] == MUTED and not muted):
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
        graph[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title", node["type"])},
        }
    return graph


def filled(workflow, graph):
    """A UI-format workflow with the values of an API graph of the same nodes and inputs.

    The list of models to download is left out.
    """
    workflow = json.loads(json.dumps(workflow))
    for node in workflow["nodes"]:
        node.get("properties", {}).pop("models", None)
        if (given := graph.get(str(node["id"]))) is None or not node.get("widgets_values"):
            continue
        inputs = {k: v for k, v in given["inputs"].items() if not isinstance(v, list)}
        known = {entry["name"] for entry in node["inputs"] if "widget" in entry}
        for name in reversed([name for name in inputs if name not in known]):
            add_widget(workflow, node, name)
        values, at = node["widgets_values"], 0
        for entry in node["inputs"]:
            if "widget" in entry:
                values[at] = inputs.get(entry["name"], values[at])
                at += 1 + (entry["name"] in ("seed", "noise_seed"))
    return workflow


def add_widget(workflow, node, name):
    """Gives a node of a UI-format workflow the widget `outer.inner`, first below `outer`.

    The frontend makes such widgets when the choice `outer` is changed.
    """
    outer, _, inner = name.rpartition(".")
    places = [k for k, entry in enumerate(node["inputs"]) if entry["name"] == outer]
    if not places:
        raise KeyError(f"'{node['type']}' has no widget {name} in the workflow")
    (place,) = places
    before = [entry["name"] for entry in node["inputs"][: place + 1] if "widget" in entry]
    seeds = sum(n in ("seed", "noise_seed") for n in before)
    node["widgets_values"].insert(len(before) + seeds, None)
    entry = {"localized_name": inner, "name": name, "widget": {"name": name}, "link": None}
    node["inputs"].insert(place + 1, entry)
    for link in workflow["links"]:
        if link[3] == node["id"] and link[4] > place:
            link[4] += 1


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


MODEL, CLIP, VAE = ["1", 0], ["1", 1], ["1", 2]


class Loaded(NamedTuple):
    """Nodes that load a model, and the outputs that give it."""

    nodes: dict
    model: list = MODEL
    clip: list = CLIP
    vae: list = VAE


def _solve(concepts, variant="anchored", model=MODEL, clip=CLIP, **settings):
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
}


def quick_erase(checkpoint=CHECKPOINT, side=512, note=None):
    """Forget objects and a style by ScaPre, see before and after with the same seed."""
    note = note or (
        "## Quick erase\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint.\n2. "
        "**Objects to Forget**, **Styles to "
        "Forget**: one per line, *name -> what to draw instead*; list look-alikes under keep.\n3. "
        "**Prompt**: something with a forgotten "
        "concept in it.\n4. Press **Run**. Before and After share one seed.\n\nSomething kept has "
        "changed? Add it to *keep*, or raise "
        "*preserve*. It came back? Raise *erase* tenfold."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (40, 570, 400, 300),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": ("ScaPreSolve", "ScaPre Solve", (490, 60, 400, 700), _solve("3")),
    }
    nodes = _before_and_after(
        erasers, ["4"], "a painting of a church by van gogh", 940, checkpoint, side
    ) | _report(["4", 1], ["4", 2], 940)
    return Drawing(nodes, note, (1390, 740, 530, 260))


def erase_sdxl():
    """Quick erase at SDXL's size."""
    note = (
        "## Quick erase for SDXL\n\n1. **Load Checkpoint**: SDXL base, or any model made from "
        "it.\n2. **Objects to Forget**, **Styles to "
        "Forget**: one per line, *name -> what to draw instead*.\n3. **Prompt**: something with a "
        "forgotten concept in it.\n4. Press "
        "**Run**. The patch fits SDXL models alone; make one per base model.\n\nSomething kept has "
        "changed? Add it to *keep*, or raise "
        "*preserve*. Not enough memory? Set **Picture Size** to 768."
    )
    return quick_erase(SDXL, 1024, note)


def neuron_pruning():
    """Forget objects by FIA: measure, fuse, apply."""
    note = (
        "## Neuron pruning\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL "
        "checkpoint.\n2. **Objects to Forget**: one per line.\n"
        "3. Press **Run**. Concept Saliency starts a few pictures with and without each concept; "
        "that takes a while, once.\n4. Change *r2* "
        "in **Fuse Neuron Masks** and press Run again: only the masks are made anew.\n\nIt came "
        "back? Raise *r2*, up to the ceiling of "
        "Concept Saliency. Something else suffers? Lower it."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": ("ConceptSaliency", "Concept Saliency", (490, 60, 400, 620), MEASURE),
        "4": ("NeuronMaskFuse", "Fuse Neuron Masks", (940, 60, 400, 330), FUSE),
    }
    nodes = _before_and_after(erasers, ["4"], "a photo of a church", 1390) | _report(
        ["4", 1], ["4", 2], 1390
    )
    return Drawing(nodes, note, (1840, 740, 530, 260))


def one_after_another():
    """Forget objects in sequence by Sculpting Memory, see the loss."""
    note = (
        "## One after another\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint "
        "that is not quantised.\n2. **Objects to "
        "Forget**: one per line with a superclass, in the order they are forgotten; list what you "
        "care about under keep.\n3. Press "
        "**Run**. The model draws its own training pictures, then trains: minutes on a GPU.\n\nIt "
        "came back? Take the preset *balanced*. "
        "Something kept has changed? Raise *hold* (advanced). To forget one more later, connect "
        "this patch to *earlier*."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "3": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (490, 60, 400, 860), TRAIN),
        "17": (
            "LossGraphNode",
            "Loss",
            (40, 1090, 400, 300),
            {"loss": ["3", 1], "filename_prefix": "unlearn/loss"},
        ),
    }
    nodes = _before_and_after(erasers, ["3"], "a photo of a church", 940) | _report(
        ["3", 2], ["3", 3], 940
    )
    return Drawing(nodes, note, (1390, 740, 530, 260))


def all_three_stacked():
    """Each method forgets what suits it; one Apply Unlearn Patch takes all three patches."""
    note = (
        "## All three, stacked\n\nA style by **ScaPre** (seconds), an object by **FIA** (a "
        "minute), another by **Dynamic Mask Trainer** "
        "(minutes on a GPU); each from the same plain model. **Apply Unlearn Patch** puts them on "
        "in order.\n\n1. **Load Checkpoint**: "
        "any SD1.5, SD2.1 or SDXL checkpoint that is not quantised.\n2. Name a concept in each "
        "group.\n3. Press **Run**. What is "
        "done is not done again: change one group, and only that one runs.\n\nToo slow? Cut the "
        "link from the trainer to **Apply Unlearn "
        "Patch**: it does not run then. More patches? A new socket appears with each link."
    )

    def one(forget, keep, kind="object"):
        return {
            "forget": forget,
            "keep": keep,
            "kind": kind,
            **NO_FILE,
        }

    erasers = {
        "2": (
            "UnlearnConcepts",
            "Style to Forget",
            (490, 60, 400, 260),
            one("van gogh", "monet", "style"),
        ),
        "3": ("ScaPreSolve", "ScaPre Solve", (490, 370, 400, 700), _solve("2")),
        "4": ("PreviewImage", "Report: ScaPre", (490, 1550, 400, 320), {"images": ["3", 1]}),
        "17": (
            "UnlearnConcepts",
            "Object to Prune",
            (940, 60, 400, 260),
            one("church -> building", "town hall"),
        ),
        "18": (
            "ConceptSaliency",
            "Concept Saliency",
            (940, 370, 400, 620),
            {**MEASURE, "concepts": ["17", 0]},
        ),
        "19": (
            "NeuronMaskFuse",
            "Fuse Neuron Masks",
            (940, 1110, 400, 330),
            {**FUSE, "saliency.saliency0": ["18", 0]},
        ),
        "20": ("PreviewImage", "Report: FIA", (940, 1550, 400, 320), {"images": ["19", 1]}),
        "21": (
            "UnlearnConcepts",
            "Object to Train Away",
            (1390, 60, 400, 260),
            one("garbage truck -> vehicle", "fire truck"),
        ),
        "22": (
            "DynamicMaskTrainer",
            "Dynamic Mask Trainer",
            (1390, 370, 400, 860),
            {**TRAIN, "concepts": ["21", 0]},
        ),
        "23": (
            "PreviewImage",
            "Report: Dynamic Mask",
            (1390, 1550, 400, 320),
            {"images": ["22", 2]},
        ),
        "24": ("PreviewAny", "What Was Applied", (1860, 730, 400, 260), {"source": ["5", 1]}),
    }
    prompt = "a painting of a garbage truck in front of a church by van gogh"
    nodes = _before_and_after(erasers, ["3", "19", "22"], prompt, 1860)
    groups = {
        "ScaPre: closed form": (470, -20, 440, 1910),
        "FIA: pruning": (920, -20, 440, 1910),
        "Dynamic mask: training": (1370, -20, 440, 1910),
    }
    return Drawing(nodes, note, (40, 220, 390, 400), groups)


def compare_variants():
    """The same concepts by three variants of ScaPre, sampled beside the plain model."""
    note = (
        "## Compare variants\n\nThe same concepts, forgotten by three variants of **ScaPre "
        "Solve**, one prompt and one seed.\n\n- "
        "**anchored**: this pack's own, with which to start\n- **paper**: the system of the "
        "paper\n- **uce**: plain UCE, the classic\n\n"
        "1. **Load Checkpoint**, **Objects to Forget**, **Styles to Forget**, **Prompt**: put in "
        "yours.\n2. Press **Run**.\n\nTo compare "
        "settings instead, choose the same *variant* thrice and change one number in each."
    )
    wires = {"positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    nodes = {
        "1": (
            "CheckpointLoaderSimple",
            "Load Checkpoint",
            (40, 60, 400, 110),
            {"ckpt_name": CHECKPOINT},
        ),
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 270), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (40, 540, 400, 270),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": (
            "CLIPTextEncode",
            "Prompt",
            (490, 60, 400, 140),
            {"clip": ["1", 1], "text": "a painting of a church by van gogh"},
        ),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (490, 250, 400, 120),
            {"clip": ["1", 1], "text": ""},
        ),
        "6": (
            "EmptyLatentImage",
            "Picture Size",
            (490, 420, 400, 120),
            {"width": 512, "height": 512, "batch_size": 1},
        ),
    }
    variants = {
        "anchored": {},
        "paper": {
            "erase": 10.0,
            "preserve": 1.0,
            "anchor": 0.05,
            "step": 0.1,
            "informax": True,
            "as_printed": False,
        },
        "uce": {"erase": 1.0, "preserve": 1.0, "anchor": 0.5},
    }
    for k, name in enumerate(("plain", *variants)):
        x, model, i = 490 + 450 * k, ["1", 0], 10 * (k + 1)
        if name in variants:
            model = [str(i + 1), 0]
            apply = {
                "model": ["1", 0],
                "patches.patch0": [str(i), 0],
                "strength": 1.0,
                "mismatch": "warn",
                "quantised": "auto",
            }
            nodes[str(i)] = (
                "ScaPreSolve",
                f"Solve: {name}",
                (x, 60, 400, 700),
                _solve("3", name, **variants[name]),
            )
            nodes[str(i + 1)] = ("ApplyUnlearnPatch", f"Apply: {name}", (x, 860, 400, 210), apply)
            nodes[str(i + 5)] = (
                "PreviewAny",
                f"Report: {name}",
                (x, 2030, 400, 260),
                {"source": [str(i), 2]},
            )
        nodes[str(i + 2)] = (
            "KSampler",
            f"Sample: {name}",
            (x, 1120, 400, 290),
            {"model": model, **SAMPLER, **wires},
        )
        nodes[str(i + 3)] = (
            "VAEDecode",
            f"Decode: {name}",
            (x, 1460, 400, 60),
            {"samples": [str(i + 2), 0], "vae": ["1", 2]},
        )
        save = {"images": [str(i + 3), 0], "filename_prefix": f"unlearn/{name}"}
        nodes[str(i + 4)] = ("SaveImage", f"Picture: {name}", (x, 1570, 400, 410), save)
    return Drawing(nodes, note, (40, 1120, 400, 430))


def export_and_reload():
    """Forget and save; with the second group switched on, load the files: the same pictures."""
    note = (
        "## Export and reload\n\n1. **Load Checkpoint**, **Objects to Forget**, **Prompt**: put in "
        "yours.\n2. Press **Run**: group 1 "
        "writes a patch into *models/unlearn_patches* and a LoRA into *models/loras*.\n3. Press "
        "**R**, so that the new files are listed. "
        "Draw a box around group 2 with **Ctrl** held down, and press **Ctrl+M**: it is switched "
        "on.\n4. Press **Run**: *live*, *from "
        "patch* and *from LoRA* are the same picture.\n\nThe LoRA needs no extra nodes to be "
        "loaded: send it to anybody who has the same "
        "checkpoint. **Save Unlearned Checkpoint** is switched off, for it writes gigabytes; "
        "**Ctrl+M** switches it on."
    )
    wires = {"positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    whole = {
        "model": ["8", 0],
        "filename_prefix": "checkpoints/unlearned",
        "clip": ["1", 1],
        "vae": ["1", 2],
    }
    lora = {
        "model": ["1", 0],
        "patch": ["7", 0],
        "name": "my_unlearn_lora",
        "size": "exact",
        "precision": "float32",
    }
    stock = {"model": ["1", 0], "lora_name": "my_unlearn_lora.safetensors", "strength_model": 1.0}

    def apply(patch):
        return {
            "model": ["1", 0],
            "patches.patch0": [patch, 0],
            "strength": 1.0,
            "mismatch": "warn",
            "quantised": "auto",
        }

    nodes = {
        "1": (
            "CheckpointLoaderSimple",
            "Load Checkpoint",
            (40, 60, 400, 110),
            {"ckpt_name": CHECKPOINT},
        ),
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 220, 400, 300), OBJECTS),
        "4": (
            "CLIPTextEncode",
            "Prompt",
            (40, 570, 400, 140),
            {"clip": ["1", 1], "text": "a photo of a church"},
        ),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (40, 760, 400, 120),
            {"clip": ["1", 1], "text": ""},
        ),
        "6": (
            "EmptyLatentImage",
            "Picture Size",
            (40, 930, 400, 120),
            {"width": 512, "height": 512, "batch_size": 1},
        ),
        "7": ("ScaPreSolve", "ScaPre Solve", (510, 60, 400, 700), _solve("2")),
        "8": ("ApplyUnlearnPatch", "Apply Unlearn Patch", (960, 60, 400, 210), apply("7")),
        "9": (
            "SaveUnlearnPatch",
            "Save Unlearn Patch",
            (960, 320, 400, 120),
            {"patch": ["7", 0], "name": "my_patch"},
        ),
        "10": ("SaveUnlearnLoRA", "Save Unlearn Patch as LoRA", (960, 490, 400, 210), lora),
        "11": ("SaveUnlearnedCheckpoint", "Save Unlearned Checkpoint", (960, 750, 400, 130), whole),
        "12": (
            "LoadUnlearnPatch",
            "Load Unlearn Patch",
            (510, 1020, 400, 170),
            {"name": "my_patch.safetensors"},
        ),
        "13": ("ApplyUnlearnPatch", "Apply Loaded Patch", (960, 1020, 400, 210), apply("12")),
        "14": ("LoraLoaderModelOnly", "Load LoRA", (960, 1440, 400, 110), stock),
    }
    rows = {
        "before": ("1", 60),
        "live": ("8", 480),
        "from patch": ("13", 1020),
        "from LoRA": ("14", 1440),
    }
    for k, (name, (model, y)) in enumerate(rows.items()):
        i = 20 + 10 * k
        nodes[str(i)] = (
            "KSampler",
            f"Sample: {name}",
            (1410, y, 300, 290),
            {"model": [model, 0], **SAMPLER, **wires},
        )
        nodes[str(i + 1)] = (
            "VAEDecode",
            f"Decode: {name}",
            (1760, y, 180, 60),
            {"samples": [str(i), 0], "vae": ["1", 2]},
        )
        save = {
            "images": [str(i + 1), 0],
            "filename_prefix": f"unlearn/{name.replace(' ', '_').lower()}",
        }
        nodes[str(i + 2)] = ("SaveImage", f"Picture: {name}", (1990, y, 330, 330), save)
    groups = {
        "1. Forget, look, save": (490, -20, 1850, 920),
        "2. Load again (switched off)": (490, 940, 1850, 850),
    }
    return Drawing(
        nodes,
        note,
        (40, 1100, 400, 430),
        groups,
        ("11", "12", "13", "14", "40", "41", "42", "50", "51", "52"),
    )


BLUEPRINT = "Erase Concepts"
BLUEPRINT_WORDS = ["erase", "forget", "unlearn", "remove", "concept", "censor"]  # found by these


def blueprint():
    """The subgraph `Erase Concepts`: (nodes, inputs, outputs).

    An input is (name, type, [(node, input)]), an output (name, type, node, slot).
    """
    solve = {k: v for k, v in _solve("1").items() if k not in ("model", "clip")}
    nodes = {
        "1": (
            "UnlearnConcepts",
            "Concepts to Forget",
            (40, 60, 400, 330),
            {"forget": "", "keep": "", "kind": "object", **NO_FILE},
        ),
        "2": ("ScaPreSolve", "ScaPre Solve", (490, 60, 400, 700), solve),
        "3": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            (940, 60, 330, 150),
            {"patches.patch0": ["2", 0], "strength": 1.0, "mismatch": "warn", "quantised": "auto"},
        ),
    }
    inputs = (
        ("model", "MODEL", [(2, "model"), (3, "model")]),
        ("clip", "CLIP", [(2, "clip")]),
        ("forget", "STRING", [(1, "forget")]),
        ("keep", "STRING", [(1, "keep")]),
        ("kind", "COMBO", [(1, "kind")]),
        ("strength", "FLOAT", [(3, "strength")]),
    )
    return (
        nodes,
        inputs,
        (("model", "MODEL", 3, 0), ("report_image", "IMAGE", 2, 1), ("report", "STRING", 2, 2)),
    )


def api(nodes):
    """Nodes as a source lists them -> API format."""
    return {
        i: {"class_type": c, "inputs": v, "_meta": {"title": t}}
        for i, (c, t, _, v) in nodes.items()
    }


def _checkpoint(name):
    """One file with all that draws."""
    loader = "CheckpointLoaderSimple", "Load Checkpoint", (40, 60, 330, 110), {"ckpt_name": name}
    return Loaded({"1": loader})


def _before_and_after(erasers, patches, prompt, x, checkpoint=CHECKPOINT, side=512):
    """The nodes around the erasers: a loader, the patches applied, one prompt before and after.

    `patches` are ids of nodes that give a patch; `x` is the first column.
    """
    loaded = _checkpoint(checkpoint)
    room = (
        "EmptyLatentImage",
        "Picture Size",
        (40, 920, 330, 120),
        {"width": side, "height": side, "batch_size": 1},
    )
    more = 30 * (len(patches) - 1)  # height of the sockets
    negative = (
        "CLIPTextEncode",
        "Negative Prompt",
        (x, 510 + more, 400, 110),
        {"clip": loaded.clip, "text": ""},
    )
    drawn = _drawn_twice(loaded, SAMPLER, x)
    around = _patched(loaded, patches, prompt, x)
    return {**loaded.nodes, **erasers, **around, "7": negative, "8": room, **drawn}


def _patched(loaded, patches, prompt, x):
    """The patches applied, and the prompt."""
    applied = {f"patches.patch{k}": [i, 0] for k, i in enumerate(patches)}
    more = 30 * (len(patches) - 1)
    return {
        "5": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            (x, 60, 400, 210 + more),
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
            (x, 320 + more, 400, 140),
            {"clip": loaded.clip, "text": prompt},
        ),
    }


def _drawn_twice(loaded, sampler, x, fps=0):
    """Samplers before and after, and what saves their pictures; videos at `fps` frames a second."""
    wires = {"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0]}
    nodes = {}
    both = ("Before", loaded.model, 60), ("After", ["5", 0], 400)
    for k, (name, model, y) in enumerate(both):
        sample, decode, save, make = (str(n + k) for n in (9, 11, 13, 23))
        nodes[sample] = (
            "KSampler",
            name,
            (x + 450, y, 300, 290),
            {"model": model, **sampler, **wires},
        )
        nodes[decode] = (
            "VAEDecode",
            f"Decode {name}",
            (x + 800, y, 180, 60),
            {"samples": [sample, 0], "vae": loaded.vae},
        )
        place = (x + 1030, 60 + 380 * k, 330, 330)
        prefix = f"unlearn/{name.lower()}"
        if not fps:
            inputs = {"images": [decode, 0], "filename_prefix": prefix}
            nodes[save] = ("SaveImage", f"Picture {name}", place, inputs)
            continue
        inputs = {"images": [decode, 0], "fps": fps}
        nodes[make] = ("CreateVideo", f"Video {name}", (x + 800, y + 120, 180, 90), inputs)
        inputs = {
            "video": [make, 0],
            "filename_prefix": prefix,
            "format": "auto",
            "codec": "auto",
        }
        nodes[save] = ("SaveVideo", f"Save Video {name}", place, inputs)
    return nodes


def _report(picture, words, x):
    """An eraser's report below the prompts."""
    return {
        "15": ("PreviewImage", "Report", (x, 950, 400, 320), {"images": picture}),
        "16": ("PreviewAny", "Report in Words", (x, 670, 400, 230), {"source": words}),
    }


# --- other families than UNets: loaders, files and settings of ComfyUI's own templates ---------

REPACKED = "https://huggingface.co/Comfy-Org/"
FILES = {  # name -> (folder of models/, address)
    "z_image_turbo_bf16.safetensors": (
        "diffusion_models",
        REPACKED + "z_image_turbo/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_3_4b.safetensors": (
        "text_encoders",
        REPACKED + "z_image_turbo/resolve/main/split_files/text_encoders/",
    ),
    "ae.safetensors": ("vae", REPACKED + "z_image_turbo/resolve/main/split_files/vae/"),
    "flux1-dev.safetensors": ("diffusion_models", REPACKED + "flux1-dev/resolve/main/"),
    "clip_l.safetensors": (
        "text_encoders",
        "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/",
    ),
    "t5xxl_fp16.safetensors": (
        "text_encoders",
        "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/",
    ),
    "qwen_image_fp8_e4m3fn.safetensors": (
        "diffusion_models",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": (
        "text_encoders",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders/",
    ),
    "qwen_image_vae.safetensors": (
        "vae",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/vae/",
    ),
    "wan2.1_t2v_1.3B_fp16.safetensors": (
        "diffusion_models",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "text_encoders",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/",
    ),
    "wan_2.1_vae.safetensors": (
        "vae",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/",
    ),
    "anima-base-v1.0.safetensors": (
        "diffusion_models",
        "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_3_06b_base.safetensors": (
        "text_encoders",
        "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files/text_encoders/",
    ),
}


class Template(NamedTuple):
    """What ComfyUI's own template of a family has.

    files: of the model, the text encoders and the VAE. kind: what the loader of text encoders calls
    it. shift: (node, shift) before the sampler, if any. room: (node, inputs) of the empty latents.
    sampler: steps, cfg, sampler, scheduler. negative: a text, None where the prompt's conditioning
    is zeroed. fps: of a video, 0 for pictures.
    """

    files: tuple
    kind: str
    shift: tuple
    room: tuple
    sampler: tuple
    negative: str | None
    fps: float = 0


def _square(side, node="EmptySD3LatentImage"):
    return node, {"width": side, "height": side, "batch_size": 1}


Z_IMAGE = Template(
    ("z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors"),
    "lumina2",
    ("ModelSamplingAuraFlow", 3.0),
    _square(1024),
    (8, 1.0, "res_multistep", "simple"),
    None,
)
FLUX = Template(
    (
        "flux1-dev.safetensors",
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
        "ae.safetensors",
    ),
    "flux",
    (),
    _square(1024),
    (20, 1.0, "euler", "simple"),
    None,
)
QWEN_IMAGE = Template(
    (
        "qwen_image_fp8_e4m3fn.safetensors",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors",
        "qwen_image_vae.safetensors",
    ),
    "qwen_image",
    ("ModelSamplingAuraFlow", 3.1),
    _square(1328),
    (20, 4.0, "euler", "simple"),
    "",
)
WAN = Template(
    (
        "wan2.1_t2v_1.3B_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "wan_2.1_vae.safetensors",
    ),
    "wan",
    ("ModelSamplingSD3", 8.0),
    ("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 33, "batch_size": 1}),
    (30, 6.0, "uni_pc", "simple"),
    "blurry, static, worst quality, low quality",
    16.0,
)
ANIMA = Template(
    ("anima-base-v1.0.safetensors", "qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors"),
    "stable_diffusion",
    (),
    _square(1024, "EmptyLatentImage"),
    (30, 4.0, "euler", "simple"),
    "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia",
)


def _loaders(template):
    """The loaders of a template's files, and the shift of its noise levels."""
    model, *encoders, vae = template.files
    given = {"clip_name": encoders[0]}
    if len(encoders) == 2:
        given = {f"clip_name{k}": name for k, name in enumerate(encoders, 1)}
    kind = "CLIPLoader" if len(encoders) == 1 else "DualCLIPLoader"
    inputs = {"unet_name": model, "weight_dtype": "default"}
    encoder = {**given, "type": template.kind, "device": "default"}
    nodes = {
        "1": ("UNETLoader", "Load Diffusion Model", (40, 60, 400, 110), inputs),
        "21": (kind, "Load CLIP", (40, 220, 400, 160), encoder),
        "22": ("VAELoader", "Load VAE", (40, 430, 400, 80), {"vae_name": vae}),
    }
    out = MODEL
    if template.shift:
        node, shift = template.shift
        inputs, out = {"model": MODEL, "shift": shift}, ["20", 0]
        nodes["20"] = (node, "Shift", (40, 560, 400, 80), inputs)
    return Loaded(nodes, out, ["21", 0], ["22", 0])


def _of_family(template, prompt, note):
    """Quick erase with the loaders, files and settings of a template of ComfyUI's."""
    loaded, x = _loaders(template), 940
    solve = _solve("2", model=loaded.model, clip=loaded.clip)
    steps, cfg, sampler, scheduler = template.sampler
    how = {
        "seed": 7,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": sampler,
        "scheduler": scheduler,
        "denoise": 1.0,
    }
    place = (x, 510, 400, 110)
    if template.negative is None:
        zeroed = {"conditioning": ["6", 0]}
        negative = "ConditioningZeroOut", "No Negative Prompt", place, zeroed
    else:
        given = {"clip": loaded.clip, "text": template.negative}
        negative = "CLIPTextEncode", "Negative Prompt", place, given
    room, size = template.room
    nodes = {
        **loaded.nodes,
        "2": ("UnlearnConcepts", "Objects to Forget", (40, 690, 400, 300), OBJECTS),
        "4": ("ScaPreSolve", "ScaPre Solve", (490, 60, 400, 700), solve),
        **_patched(loaded, ["4"], prompt, x),
        "7": negative,
        "8": (room, "Picture Size", (40, 1040, 400, 150), size),
        **_drawn_twice(loaded, how, x, template.fps),
        **_report(["4", 1], ["4", 2], x),
    }
    return Drawing(nodes, note, (1390, 840, 530, 330))


AT_THE_ENTRY = (
    "Text enters here through one layer, where it is erased, and is then mixed with the picture. "
    "So compare pictures, and raise *erase* tenfold where something comes back. Pictures of this "
    "family have not been measured."
)
EXACT = (
    "Text enters here through keys and values alone, so what is erased there is gone. Pictures of "
    "this family have not been measured."
)


def _note(title, files, exact, more=""):
    return (
        f"## {title}\n\n1. The loaders name the files of ComfyUI's own template: {files}.\n2. "
        "**Objects to Forget**: one per line, *name -> what to draw instead*; list look-alikes "
        "under keep.\n3. Press **Run**. Before and After share one seed.\n\n"
        f"{exact}{more}\n\nLoRAs go before **ScaPre Solve**. Speed-up LoRAs may follow it."
    )


def erase_z_image():
    """Forget objects in Z-Image Turbo."""
    note = _note("Erase in Z-Image", "Z-Image Turbo, or any Z-Image model", AT_THE_ENTRY)
    return _of_family(Z_IMAGE, "a photo of a church", note)


def erase_flux():
    """Forget objects in Flux.1."""
    note = _note("Erase in Flux.1", "Flux.1 dev, or a model made from it", AT_THE_ENTRY)
    return _of_family(FLUX, "a photo of a church", note)


def erase_qwen_image():
    """Forget objects in Qwen-Image."""
    note = _note("Erase in Qwen-Image", "Qwen-Image, or a newer one", AT_THE_ENTRY)
    return _of_family(QWEN_IMAGE, "a photo of a church", note)


def erase_wan():
    """Forget objects in Wan 2.1, before and after as videos."""
    more = " Wan 2.2 has two models of 14B: solve and patch **each** of them."
    note = _note("Erase in Wan", "Wan 2.1 with 1.3B", EXACT, more)
    return _of_family(WAN, "a church on a hill, clouds moving over it", note)


def erase_anima():
    """Forget objects in Anima."""
    note = _note("Erase in Anima", "Anima Base", EXACT)
    return _of_family(ANIMA, "1girl standing in front of a church", note)


SOURCES = {
    f.__name__: f
    for f in (
        quick_erase,
        erase_sdxl,
        neuron_pruning,
        one_after_another,
        all_three_stacked,
        compare_variants,
        export_and_reload,
    )
}


# Workflows of families that no small world has. They are drawn, loaded and checked, but not run.
FAMILIES = {
    f.__name__: f for f in (erase_z_image, erase_flux, erase_qwen_image, erase_wan, erase_anima)
}


def drawing(name):
    """The Drawing of a workflow file."""
    return {**SOURCES, **FAMILIES}[name]()


def source(name):
    """The graph a workflow file was drawn from, in API format, muted nodes included."""
    return api(drawing(name).nodes)


def downloads(node):
    """What lets the frontend offer to download the files of a loader, of a UI-format node."""
    found = []
    for name in node.get("widgets_values") or ():
        if name in URLS:
            found.append({"name": name, "url": URLS[name], "directory": "checkpoints"})
        elif name in FILES:
            folder, address = FILES[name]
            found.append({"name": name, "url": address + name, "directory": folder})
    return {"models": found} if found else {}
