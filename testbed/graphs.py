"""The example workflows as graphs: reading their files, and the source they are drawn from."""

import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "example_workflows"
MUTED = 2  # LiteGraph's mode "never"


def path(name):
    """The file of an example workflow. Its name is what the template browser shows."""
    return FOLDER / f"{TITLES[name]}.json"


def load(name):
    return json.loads(path(name).read_text(encoding="utf-8"))


def to_api(workflow, muted=False):
    """UI format (version 0.4) -> API format {id: {class_type, inputs, _meta}}, without notes.

    A node of a subgraph gets the id `outer:inner`, as the frontend does it. Muted nodes are left
    out unless `muted` is True.
    """
    inside = _subgraphs(workflow)
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def origin(link):
        node, slot = links[link]
        if node not in inside:
            return [str(node), slot]
        (source,) = [k for k in inside[node]["links"] if _ends_at(k, OUTPUTS, slot)]
        return [f"{node}:{source['origin_id']}", source["origin_slot"]]

    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote") or (node["mode"] == MUTED and not muted):
            continue
        if node["id"] in inside:
            graph |= _opened(node, inside[node["id"]], origin)
        else:
            graph[str(node["id"])] = _as_api(node, origin)
    return graph


INPUTS, OUTPUTS = -10, -20  # ids of the two ends of a subgraph among its links


def _subgraphs(workflow):
    """Node id -> the subgraph that the node stands for."""
    known = {d["id"]: d for d in workflow.get("definitions", {}).get("subgraphs", ())}
    return {n["id"]: known[n["type"]] for n in workflow["nodes"] if n["type"] in known}


def _ends_at(link, node, slot):
    return (link["target_id"], link["target_slot"]) == (node, slot)


def _opened(outer, subgraph, origin):
    """The nodes in a subgraph, in API format. Its inputs bring what the outer node has there."""
    links = {link["id"]: link for link in subgraph["links"]}
    values = _widgets(outer)
    prefix = outer["id"]

    def given(link):
        link = links[link]
        if link["origin_id"] != INPUTS:
            return [f"{prefix}:{link['origin_id']}", link["origin_slot"]]
        entry = outer["inputs"][link["origin_slot"]]
        if entry.get("link") is not None:
            return origin(entry["link"])
        return values.get(entry["name"])

    return {f"{prefix}:{node['id']}": _as_api(node, given) for node in subgraph["nodes"]}


def _widgets(node):
    """Input -> value of the widgets of a node. A seed is followed by its control_after_generate."""
    values, found = list(node.get("widgets_values", [])), {}
    for entry in node.get("inputs", []):
        if "widget" in entry and values:
            found[entry["name"]] = values.pop(0)
            if entry["name"] in SEEDS and values and values[0] in CONTROLS:
                values.pop(0)
    return found


SEEDS, CONTROLS = ("seed", "noise_seed"), ("fixed", "increment", "decrement", "randomize")


def _as_api(node, given):
    """A node in API format; `given` says what a link brings, None for nothing."""
    inputs = _widgets(node)
    for entry in node.get("inputs", []):
        if entry.get("link") is not None and (brought := given(entry["link"])) is not None:
            inputs[entry["name"]] = brought
    return {
        "class_type": node["type"],
        "inputs": inputs,
        "_meta": {"title": node.get("title", node["type"])},
    }


def filled(workflow, graph):
    """A UI-format workflow with the values of an API graph of the same nodes and inputs.

    The list of models to download is left out.
    """
    workflow = json.loads(json.dumps(workflow))
    for node in workflow["nodes"]:
        if str(node["id"]) in graph:
            _fill(workflow, node, graph[str(node["id"])])
    for outer, subgraph in _subgraphs(workflow).items():
        for node in subgraph["nodes"]:
            _fill(subgraph, node, graph[f"{outer}:{node['id']}"])
        (host,) = [n for n in workflow["nodes"] if n["id"] == outer]
        _fill_face(host, subgraph, graph)
    return workflow


def _fill(workflow, node, given):
    node.get("properties", {}).pop("models", None)
    if not node.get("widgets_values"):
        return
    inputs = {k: v for k, v in given["inputs"].items() if not isinstance(v, list)}
    known = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    for name in reversed([name for name in inputs if name not in known]):
        add_widget(workflow, node, name)
    values, at = node["widgets_values"], 0
    for entry in node["inputs"]:
        if "widget" in entry:
            values[at] = inputs.get(entry["name"], values[at])
            more = values[at + 1 : at + 2] and values[at + 1] in CONTROLS
            at += 1 + bool(entry["name"] in SEEDS and more)


def _fill_face(outer, subgraph, graph):
    """Gives the widgets on the face of a subgraph the values of the inputs that they go to."""
    shown = [k for k, entry in enumerate(outer["inputs"]) if "widget" in entry]
    for at, slot in enumerate(shown):
        for link in subgraph["links"]:
            if (link["origin_id"], link["origin_slot"]) == (INPUTS, slot):
                (node,) = [n for n in subgraph["nodes"] if n["id"] == link["target_id"]]
                name = node["inputs"][link["target_slot"]]["name"]
                value = graph[f"{outer['id']}:{node['id']}"]["inputs"][name]
                if not isinstance(value, list):
                    outer["widgets_values"][at] = value


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
        inner = isinstance(link, dict)  # in a subgraph
        end, slot = ("target_id", "target_slot") if inner else (3, 4)
        if link[end] == node["id"] and link[slot] > place:
            link[slot] += 1


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


def say(graph, text):
    """Sets the text of the node with the title Prompt."""
    node = graph[titled(graph, "Prompt")]
    return put(graph, "Prompt", **{"value" if "value" in node["inputs"] else "text": text})


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
FACE = {"negative": "", **{k: SAMPLER[k] for k in ("seed", "steps", "cfg")}}  # of DRAW
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


def quick_erase():
    """Forget objects and a style in one box, see before and after with the same seed."""
    note = (
        "## Quick erase\n\n1. **Load Checkpoint**: pick a model.\n2. **Erase Concepts**: under "
        "*forget* one thing per line, *name -> what to draw instead*; under *keep* what looks like "
        "it.\n3. **Prompt**: something to forget. Press **Run**.\n\nFirst the plain picture "
        "comes, then the edited one. Move the pointer over **Compare Images**. **Erase Concepts** "
        "draws its own check, with a verdict on top."
    )
    erase = {
        "model": MODEL,
        "clip": CLIP,
        "vae": VAE,
        "forget": "garbage truck -> vehicle\nchurch -> building\nstyle: van gogh",
        "keep": "fire truck\ntown hall\nstyle: monet",
        "kind": "object",
        "strength": 1.0,
    }
    prompt = {"clip": CLIP, "text": "a painting of a church by van gogh"}
    room = {"width": 512, "height": 512, "batch_size": 1}
    # At 1366x768 the frontend fits this to the window at three quarters of its size.
    nodes = {
        "1": _loader(CHECKPOINT, (0, 250, 300, 98)),
        "4": (BLUEPRINT, BLUEPRINT, (330, 0, 340, 718), erase),
        "6": ("CLIPTextEncode", "Prompt", (0, 425, 300, 100), prompt),
        "8": ("EmptyLatentImage", "Picture Size", (0, 572, 300, 118), room),
        "9": (DRAW, DRAW, (700, 0, 260, 345), _drawing(["4", 0])),
        "13": _saved("Before", ["9", 0], (700, 393, 260, 325)),
        "14": _saved("After", ["9", 1], (990, 393, 356, 325)),
        "15": _compared(["9", 0], ["9", 1], (990, 0, 356, 345)),
    }
    return Drawing(nodes, note, (0, 0, 300, 205))


def _drawing(edited):
    """Inputs of the box that draws with the plain and with the edited model."""
    wires = {"positive": ["6", 0], "latent": ["8", 0]}
    return {"model": MODEL, "edited": edited, "clip": CLIP, "vae": VAE, **wires, **FACE}


def _loader(name, place):
    return "CheckpointLoaderSimple", "Load Checkpoint", place, {"ckpt_name": name}


def _saved(name, picture, place):
    inputs = {"images": picture, "filename_prefix": f"unlearn/{name.lower()}"}
    return "SaveImage", f"Picture {name}", place, inputs


def _compared(before, after, place):
    """The stock node with a divider that follows the pointer."""
    return "ImageCompare", "Compare Images", place, {"image_a": before, "image_b": after}


def erase_sdxl():
    """Every step as a node of its own, at SDXL's size."""
    note = (
        "## Erase in SDXL, step by step\n\n1. **Load Checkpoint**: SDXL, or any model made from "
        "it.\n2. **Objects to Forget**, **Styles to Forget**: one per line, *name -> what to draw "
        "instead*.\n3. **Prompt**: something to forget. Press **Run**.\n\nSomething kept has "
        "changed? Add it to *keep*. It came back? Raise *erase* tenfold. Not enough memory? Set "
        "**Picture Size** to 768."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (0, 775, 380, 266),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 700), _solve("3")),
    }
    prompt = "a painting of a church by van gogh"
    nodes = _before_and_after(erasers, ["4"], prompt, SDXL, 1024) | _report(["4", 1], ["4", 2])
    return Drawing(nodes, note, (0, 0, 380, 230))


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
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": ("ConceptSaliency", "Concept Saliency", (420, 0, 400, 640), MEASURE),
        "4": ("NeuronMaskFuse", "Fuse Neuron Masks", (420, 700, 400, 300), FUSE),
    }
    report = _report(["4", 1], ["4", 2], (0, 780, 380, 275))
    nodes = _before_and_after(erasers, ["4"], "a photo of a church") | report
    return Drawing(nodes, note, (0, 0, 380, 230))


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
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (420, 0, 400, 850), TRAIN),
        "17": (
            "LossGraphNode",
            "Loss",
            (0, 780, 380, 285),
            {"loss": ["3", 1], "filename_prefix": "unlearn/loss"},
        ),
    }
    report = _report(["3", 2], ["3", 3], (420, 900, 400, 270))
    nodes = _before_and_after(erasers, ["3"], "a photo of a church") | report
    return Drawing(nodes, note, (0, 0, 380, 230))


def all_three_stacked():
    """Each method forgets what suits it; one Apply Unlearn Patch takes all three patches."""
    note = (
        "## All three, stacked\n\nA style by **ScaPre**, an object by **FIA**, another by "
        "**Dynamic Mask Trainer** (minutes on a GPU).\n\n1. **Load Checkpoint**: a model that is "
        "not quantised.\n2. Fill the three lists. **Run**.\n\nChange one list, and only that one "
        "runs again. Too slow? Cut the link from the trainer to **Apply Unlearn Patch**."
    )

    def one(forget, keep, kind="object"):
        return {
            "forget": forget,
            "keep": keep,
            "kind": kind,
            **NO_FILE,
        }

    style, pruned = one("van gogh", "monet", "style"), one("church -> building", "town hall")
    trained = one("garbage truck -> vehicle", "fire truck")
    measure, train = {**MEASURE, "concepts": ["17", 0]}, {**TRAIN, "concepts": ["21", 0]}
    fuse = {**FUSE, "saliency.saliency0": ["18", 0]}
    loaded, prompt = _checkpoint(CHECKPOINT), "a painting of a garbage truck in front of a church"
    room = "EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}
    around = _patched(loaded, ["3", "19", "22"], f"{prompt} by van gogh", room, 1520)
    del around["7"]  # it is in the box
    for i, y in (("6", 0), ("8", 150), ("5", 320)):  # what goes into the box stands above it
        kind, title, (x, _, width, height), inputs = around[i]
        around[i] = (kind, title, (x, y, width, height), inputs)
    nodes = {
        "1": _loader(CHECKPOINT, (0, 275, 340, 102)),
        "2": ("UnlearnConcepts", "Style to Forget", (0, 450, 340, 266), style),
        "3": ("ScaPreSolve", "ScaPre Solve", (380, 0, 340, 430), _solve("2")),
        "17": ("UnlearnConcepts", "Object to Prune", (380, 845, 340, 266), pruned),
        "18": ("ConceptSaliency", "Concept Saliency", (760, 0, 340, 560), measure),
        "19": ("NeuronMaskFuse", "Fuse Neuron Masks", (760, 625, 340, 280), fuse),
        "21": ("UnlearnConcepts", "Object to Train Away", (380, 480, 340, 266), trained),
        "22": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (1140, 0, 340, 850), train),
        **around,
        "9": (DRAW, DRAW, (1520, 690, 340, 345), _drawing(["5", 0])),
        "13": _saved("Before", ["9", 0], (1900, 0, 280, 330)),
        "14": _saved("After", ["9", 1], (1900, 375, 280, 330)),
        "24": ("PreviewAny", "What Was Applied", (1900, 750, 280, 285), {"source": ["5", 1]}),
    }
    return Drawing(nodes, note, (0, 0, 340, 230))


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
    prompt = {"clip": CLIP, "text": "a painting of a church by van gogh"}
    room = {"width": 512, "height": 512, "batch_size": 1}
    nodes = {
        "1": _loader(CHECKPOINT, (0, 1082, 380, 102)),
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 355, 380, 266), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (0, 718, 380, 266),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": ("CLIPTextEncode", "Prompt", (800, 0, 290, 102), prompt),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (800, 200, 290, 102),
            {"clip": CLIP, "text": ""},
        ),
        "6": ("EmptyLatentImage", "Picture Size", (800, 920, 290, 118), room),
        "7": ("PrimitiveInt", "Seed for All", (800, 1080, 290, 82), {"value": SAMPLER["seed"]}),
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
    # A row of small nodes for each variant, and the pictures in a square.
    for k, name in enumerate(("plain", *variants)):
        x, y, side, model, i = 1190, 300 * k, 150, MODEL, 10 * (k + 1)
        if name in variants:
            model = [str(i + 1), 0]
            apply = {
                "model": MODEL,
                "patches.patch0": [str(i), 0],
                "strength": 1.0,
                "mismatch": "warn",
                "quantised": "auto",
            }
            solve = _solve("3", name, **variants[name])
            place = (420, 310 * (k - 1), 340, 260)
            nodes[str(i)] = ("ScaPreSolve", f"Solve: {name}", place, solve)
            nodes[str(i + 1)] = ("ApplyUnlearnPatch", f"Apply: {name}", (x, y, side, 200), apply)
        seed = {"seed": ["7", 0]}
        nodes[str(i + 2)] = (
            "KSampler",
            f"Sample: {name}",
            (x, y + 45, side, 262),
            {"model": model, **SAMPLER, **seed, **wires},
        )
        decode = {"samples": [str(i + 2), 0], "vae": VAE}
        nodes[str(i + 3)] = ("VAEDecode", f"Decode: {name}", (x, y + 90, side, 50), decode)
        save = {"images": [str(i + 3), 0], "filename_prefix": f"unlearn/{name}"}
        place = (1440 + 390 * (k % 2), 620 * (k // 2), 370, 550)
        nodes[str(i + 4)] = ("SaveImage", f"Picture: {name}", place, save)
    folded = [
        i for i, node in nodes.items() if node[0] in ("ApplyUnlearnPatch", "KSampler", "VAEDecode")
    ]
    return Drawing(nodes, note, (0, 0, 380, 310), folded=tuple(folded))


def export_and_reload():
    """Forget and save; with the second group switched on, load the files: the same pictures."""
    note = (
        "## Save and load again\n\n1. Press **Run**: group 1 writes a patch and a LoRA.\n2. "
        "Press **R**, so that the new files are listed. Draw a box around group 2 with **Ctrl** "
        "held down, and press **Ctrl+M**.\n3. **Run**: *live*, *from patch* and *from LoRA* are "
        "the same.\n\n**Ctrl+M** switches on **Save Unlearned Checkpoint** too; it writes "
        "gigabytes."
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

    room = {"width": 512, "height": 512, "batch_size": 1}
    prompt = {"clip": CLIP, "text": "a photo of a church"}
    name = {"name": "my_patch.safetensors"}
    nodes = {
        "1": _loader(CHECKPOINT, (0, 275, 340, 102)),
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 450, 340, 266), OBJECTS),
        "4": ("CLIPTextEncode", "Prompt", (1080, 487, 300, 102), prompt),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (1080, 810, 300, 102),
            {"clip": CLIP, "text": ""},
        ),
        "6": ("EmptyLatentImage", "Picture Size", (1080, 658, 300, 118), room),
        "7": ("ScaPreSolve", "ScaPre Solve", (400, 0, 300, 260), _solve("2")),
        "8": ("ApplyUnlearnPatch", "Apply Unlearn Patch", (1080, 0, 300, 130), apply("7")),
        "9": (
            "SaveUnlearnPatch",
            "Save Unlearn Patch",
            (740, 0, 300, 150),
            {"patch": ["7", 0], "name": "my_patch"},
        ),
        "10": ("SaveUnlearnLoRA", "Save Unlearn Patch as LoRA", (740, 390, 300, 200), lora),
        "11": (
            "SaveUnlearnedCheckpoint",
            "Save Unlearned Checkpoint",
            (1080, 295, 300, 134),
            whole,
        ),
        "12": ("LoadUnlearnPatch", "Load Unlearn Patch", (400, 900, 300, 130), name),
        "13": ("ApplyUnlearnPatch", "Apply Loaded Patch", (1080, 960, 300, 200), apply("12")),
        "14": ("LoraLoaderModelOnly", "Load LoRA", (400, 1104, 300, 86), stock),
    }
    rows = {
        "before": ("1", (1420, 0), (1720, 0, 460, 320)),
        "live": ("8", (1420, 375), (1720, 375, 460, 360)),
        "from patch": ("13", (1420, 930), (1720, 900, 225, 280)),
        "from LoRA": ("14", (1420, 1135), (1955, 900, 225, 280)),
    }
    for k, (name, (model, (x, y), place)) in enumerate(rows.items()):
        i = 20 + 10 * k
        sample = {"model": [model, 0], **SAMPLER, **wires}
        small = k > 1
        high = 60 if small else 262
        nodes[str(i)] = ("KSampler", f"Sample: {name}", (x, y, 260, high), sample)
        decode = {"samples": [str(i), 0], "vae": VAE}
        below = 45 if small else 315
        nodes[str(i + 1)] = ("VAEDecode", f"Decode: {name}", (x, y + below, 260, 50), decode)
        prefix = f"unlearn/{name.replace(' ', '_').lower()}"
        save = {"images": [str(i + 1), 0], "filename_prefix": prefix}
        nodes[str(i + 2)] = ("SaveImage", f"Picture: {name}", place, save)
    groups = {
        "1. Forget, look, save": (385, -80, 1810, 895),
        "2. Load again (switched off)": (385, 822, 1810, 380),
    }
    return Drawing(
        nodes,
        note,
        (0, 0, 340, 230),
        groups,
        ("11", "12", "13", "14", "40", "41", "42", "50", "51", "52"),
        ("5", "21", "31", "40", "41", "50", "51"),
    )


SAFE_NOTE = (
    "## Safe for children\n\nMakes a model file that has forgotten nudity and sex, in the "
    "model and in its text encoder.\n\n1. "
    "**Load Checkpoint**: pick a model of the kind SD1.5 or SDXL.\n2. **What to Forget**: the "
    "preset *nsfw* is chosen, under *Show advanced inputs*. "
    "Write more under *forget*, such as *gun*.\n3. **Run**. A harmless picture must stay as "
    "it was.\n4. Click **Save Unlearned Checkpoint**, press **Ctrl+M**, then **Run**. It "
    "writes a model of full size into *output/checkpoints*. Give out that file only.\n\n"
    "**It promises** that the listed words, in plain prompts, mostly no longer bring such "
    "pictures.\n\n**It does not promise** a safe model. It is no filter: it looks at no "
    "prompt and at no picture. Whoever searches can bring back what was forgotten. Other "
    "words, other languages, LoRAs, embeddings and pictures as input can too. Violence is not "
    "on the list. So stay in the room, and try your own prompts first, alone. Figures: "
    "*docs/promises.md* in this pack's folder."
)


def safe_for_children():
    """The explicit preset, in both the model and its text encoder, before and after; a file."""
    forget = {
        "forget": "",
        "keep": "child\nfamily\nbeach\nswimming\nbaby\nportrait",
        "kind": "explicit",
        "preset": "nsfw",
        "file": "none",
    }
    whole = {
        "model": ["5", 0],
        "filename_prefix": "checkpoints/safe_for_children",
        "clip": ["5", 2],
        "vae": VAE,
    }
    prompt = "a photo of a family at the beach"
    text = {"text": ["21", 0]}  # written once, read by both text encoders
    erasers = {
        "2": ("UnlearnConcepts", "What to Forget", (0, 720, 380, 290), forget),
        "3": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 700), _solve("2")),
        "18": (
            "SaveUnlearnedCheckpoint",
            "Save Unlearned Checkpoint",
            (1240, 985, 290, 134),
            whole,
        ),
        "19": (
            "TextEncoderSolve",
            "Erase in Text Encoder",
            (420, 750, 400, 300),
            {"clip": CLIP, "concepts": ["2", 0]},
        ),
        "15": ("PreviewImage", "Report", (860, 735, 340, 305), {"images": ["3", 1]}),
        "21": ("PrimitiveStringMultiline", "Prompt", (860, 281, 340, 102), {"value": prompt}),
    }
    nodes = _before_and_after(erasers, ["3", "19"], prompt)
    nodes["5"][-1]["clip"] = CLIP
    nodes["10"][-1]["positive"] = ["20", 0]
    for i, name, clip in (("6", "Before", CLIP), ("20", "After", ["5", 2])):
        place = (1240, 455 if i == "20" else -45, 225, 60)
        nodes[i] = ("CLIPTextEncode", f"Prompt {name}", place, {"clip": clip, **text})
    for i in ("5", "7", "8"):  # higher, so that no wire to a decoder runs behind a title
        kind, title, (x, y, *size), inputs = nodes[i]
        nodes[i] = (kind, title, (x, y - (45 if i == "5" else 35), *size), inputs)
    nodes["1"] = _loader(CHECKPOINT, (0, 545, 380, 98))
    return Drawing(nodes, SAFE_NOTE, (0, 0, 380, 500), muted=("18",), folded=("6", "20"))


class Box(NamedTuple):
    """A subgraph that is shown as one node, a blueprint in subgraphs/.

    inputs: (name, type, [(node, input)]); outputs: (name, type, node, slot). about, words: what
    the frontend says of it, and finds it by. size: of the one node. shown: ids of the nodes whose
    pictures it shows.
    """

    nodes: dict
    inputs: tuple
    outputs: tuple
    about: str
    words: list
    size: tuple
    shown: tuple = ()


BLUEPRINT, DRAW = "Erase Concepts", "Draw Before and After"


def erase_concepts():
    """Solve, patch and report in one.

    ComfyUI runs first what is at most two nodes away from a node that shows something. The report
    is one. A switch keeps the solve three nodes away from it, so the plain pictures come first.
    Three more keep the edited model away from it, so that the edited pictures come before the
    report's.
    """
    solve = {k: v for k, v in _solve("1").items() if k not in ("model", "clip")}
    report = {
        "concepts": ["1", 0],
        "after": ["8", 0],
        "seed": 0,
        "seeds": 1,
        "kept": 2,
        "steps": 20,
        "cfg": 7.0,
        "size": 0,
        "sampler": "ddim",
        "scheduler": "ddim_uniform",
        "templates": "",
    }
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
            (940, 60, 330, 210),
            {"patches.patch0": ["2", 0], "strength": 1.0, "mismatch": "warn", "quantised": "auto"},
        ),
        "4": (
            "ComfySwitchNode",
            "Plain Pictures First",
            (940, 330, 330, 100),
            {"switch": True, "on_true": ["3", 0]},
        ),
        "5": ("ErasureReport", "Erasure Report", (1320, 60, 400, 420), report),
    }
    for i, source in ((6, "4"), (7, "6"), (8, "7")):
        values = {"switch": True, "on_true": [source, 0]}
        place, title = (940, 120 * i - 240, 330, 100), f"Edited Pictures First, {i - 5} of 3"
        nodes[str(i)] = ("ComfySwitchNode", title, place, values)
    plain = [(i, "on_false") for i in (4, 6, 7, 8)]
    inputs = (
        ("model", "MODEL", [(2, "model"), (3, "model"), *plain, (5, "before")]),
        ("clip", "CLIP", [(2, "clip"), (5, "clip")]),
        ("forget", "STRING", [(1, "forget")]),
        ("keep", "STRING", [(1, "keep")]),
        ("kind", "COMBO", [(1, "kind")]),
        ("strength", "FLOAT", [(3, "strength")]),
        ("vae", "VAE", [(5, "vae")]),
    )
    outputs = (
        ("model", "MODEL", 4, 0),
        ("report_image", "IMAGE", 2, 1),
        ("report", "STRING", 2, 2),
        ("grid", "IMAGE", 5, 0),
        ("verdict", "STRING", 5, 2),
    )
    about = (
        "Makes a model forget: name what to forget and what to keep, one per line, and sample "
        "with the model that comes out. Draws before and after by itself, with a verdict."
    )
    words = ["erase", "forget", "unlearn", "remove", "concept", "censor", "nsfw", "style", "ban"]
    return _shifted(Box(nodes, inputs, outputs, about, words, (400, 780), (5,)), 200)


def draw_before_and_after():
    """Two samplers with one seed, and their pictures."""
    sample, again = ({**SAMPLER, "negative": ["5", 0]} for _ in range(2))
    nodes = {
        "1": ("KSampler", "Before", (400, 60, 300, 290), sample),
        "2": ("KSampler", "After", (400, 420, 300, 290), again),
        "3": ("VAEDecode", "Decode Before", (760, 60, 200, 60), {"samples": ["1", 0]}),
        "4": ("VAEDecode", "Decode After", (760, 420, 200, 60), {"samples": ["2", 0]}),
        "5": ("CLIPTextEncode", "Negative Prompt", (40, 60, 300, 110), {"text": ""}),
    }

    def both(name):
        return [(1, name), (2, name)]

    inputs = (
        ("model", "MODEL", [(1, "model")]),
        ("edited", "MODEL", [(2, "model")]),
        ("positive", "CONDITIONING", both("positive")),
        ("clip", "CLIP", [(5, "clip")]),
        ("latent", "LATENT", both("latent_image")),
        ("vae", "VAE", [(3, "vae"), (4, "vae")]),
        ("negative", "STRING", [(5, "text")]),
        ("seed", "INT", both("seed")),
        ("steps", "INT", both("steps")),
        ("cfg", "FLOAT", both("cfg")),
    )
    outputs = (("before", "IMAGE", 3, 0), ("after", "IMAGE", 4, 0))
    about = "Draws one prompt with two models, with the same seed."
    box = Box(nodes, inputs, outputs, about, ["compare", "before after"], (260, 345))
    return _shifted(box, 300)


def _shifted(box, by):
    """The box with other ids: the frontend renumbers inner nodes whose id an outer node has."""

    def moved(value):
        return [str(int(value[0]) + by), value[1]] if isinstance(value, list) else value

    nodes = {
        str(int(i) + by): (*node, {k: moved(v) for k, v in inputs.items()})
        for i, (*node, inputs) in box.nodes.items()
    }
    inputs = tuple((n, kind, [(i + by, k) for i, k in ends]) for n, kind, ends in box.inputs)
    outputs = tuple((n, kind, i + by, slot) for n, kind, i, slot in box.outputs)
    shown = tuple(i + by for i in box.shown)
    return box._replace(nodes=nodes, inputs=inputs, outputs=outputs, shown=shown)


OURS = ("UnlearnConcepts", "ScaPreSolve", "ApplyUnlearnPatch", "ErasureReport")  # in boxes
BOXES = {BLUEPRINT: erase_concepts, DRAW: draw_before_and_after}


def api(nodes):
    """Nodes as a source lists them -> API format."""
    return {
        i: {"class_type": c, "inputs": v, "_meta": {"title": t}}
        for i, (c, t, _, v) in nodes.items()
    }


def _checkpoint(name):
    """One file with all that draws."""
    return Loaded({"1": _loader(name, (0, 275, 380, 102))})


def _before_and_after(erasers, patches, prompt, checkpoint=CHECKPOINT, side=512):
    """The nodes around the erasers: a loader, the patches applied, one prompt before and after.

    `patches` are ids of nodes that give a patch.
    """
    loaded = _checkpoint(checkpoint)
    room = "EmptyLatentImage", {"width": side, "height": side, "batch_size": 1}
    around = _patched(loaded, patches, prompt, room, 860)
    return {**loaded.nodes, **erasers, **around, **_drawn_twice(loaded, SAMPLER, 1240)}


def _patched(loaded, patches, prompt, room, x, negative=""):
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


def _drawn_twice(loaded, sampler, x, fps=0):
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
            nodes[save] = _saved(name, [decode, 0], place)
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


def _report(picture, words, at=(420, 750, 400, 290), beside=(860, 815, 340, 225)):
    """An eraser's report, as a picture and in words. The wire to the last decoder runs above it."""
    return {
        "15": ("PreviewImage", "Report", at, {"images": picture}),
        "16": ("PreviewAny", "Report in Words", beside, {"source": words}),
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
        "1": ("UNETLoader", "Load Diffusion Model", (0, 295, 380, 90), inputs),
        "21": (kind, "Load CLIP", (0, 460, 380, 140), encoder),
        "22": ("VAELoader", "Load VAE", (0, 675, 380, 60), {"vae_name": vae}),
    }
    out = MODEL
    if template.shift:
        node, shift = template.shift
        inputs, out = {"model": MODEL, "shift": shift}, ["20", 0]
        nodes["20"] = (node, "Shift", (0, 460, 380, 60), inputs)
        nodes["21"] = (kind, "Load CLIP", (0, 567, 380, 140), encoder)
        nodes["22"] = ("VAELoader", "Load VAE", (0, 782, 380, 60), {"vae_name": vae})
    return Loaded(nodes, out, ["21", 0], ["22", 0])


def _of_family(template, prompt, note):
    """Quick erase with the loaders, files and settings of a template of ComfyUI's."""
    loaded, x = _loaders(template), 860
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
    nodes = {
        **loaded.nodes,
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 920, 380, 266), OBJECTS),
        "4": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 560), solve),
        **_patched(loaded, ["4"], prompt, template.room, x, template.negative),
        **_drawn_twice(loaded, how, x + 380, template.fps),
        **_report(["4", 1], ["4", 2], (420, 620, 400, 420), (860, 810, 340, 230)),
    }
    kind, title, (x, y, *size), inputs = nodes["8"]
    nodes["8"] = (kind, title, (x, y + 20, *size), inputs)  # below the wire to the first decoder
    return Drawing(nodes, note, (0, 0, 380, 250))


AT_THE_ENTRY = (
    "Text enters here through one layer, where it is erased, and is then mixed with the picture. "
    "So compare pictures, and raise *drift* to 0.3 where something comes back. Real models of this "
    "family have not been measured."
)
EXACT = (
    "Text enters here through keys and values alone, so what is erased there is gone. Raise "
    "*drift* to 0.3 where something comes back. Real models of this family have not been measured."
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
        compare_variants,
        export_and_reload,
        safe_for_children,
        one_after_another,
        neuron_pruning,
        all_three_stacked,
    )
}


TITLES = {  # name -> what the template browser shows
    "quick_erase": "1 Quick erase",
    "erase_sdxl": "2 Erase in SDXL, step by step",
    "compare_variants": "3 Compare variants",
    "export_and_reload": "4 Save and load again",
    "safe_for_children": "5 Safe for children",
    "one_after_another": "6 One after another",
    "neuron_pruning": "7 Neuron pruning",
    "all_three_stacked": "8 All three methods, stacked",
    "erase_flux": "9 Erase in Flux.1",
    "erase_z_image": "9 Erase in Z-Image",
    "erase_qwen_image": "9 Erase in Qwen-Image",
    "erase_wan": "9 Erase in Wan, as videos",
    "erase_anima": "9 Erase in Anima",
}


# Workflows of families that no small world has. They are drawn, loaded and checked, but not run.
FAMILIES = {
    f.__name__: f for f in (erase_z_image, erase_flux, erase_qwen_image, erase_wan, erase_anima)
}


def drawing(name):
    """The Drawing of a workflow file."""
    return {**SOURCES, **FAMILIES}[name]()


def source(name):
    """The graph a workflow file was drawn from, in API format, muted nodes included.

    Boxes are opened: the nodes in them have ids `outer:inner`.
    """
    graph = api(drawing(name).nodes)
    boxes = {i: BOXES[n["class_type"]]() for i, n in graph.items() if n["class_type"] in BOXES}

    def origin(value):
        if isinstance(value, list) and value[0] in boxes:
            _, _, node, slot = boxes[value[0]].outputs[value[1]]
            return [f"{value[0]}:{node}", slot]
        return value

    for i, box in boxes.items():
        given = graph.pop(i)["inputs"]
        inner = api(box.nodes)
        for node in inner.values():
            links = {k: v for k, v in node["inputs"].items() if isinstance(v, list)}
            node["inputs"] |= {k: [f"{i}:{v[0]}", v[1]] for k, v in links.items()}
        for name, _, ends in box.inputs:
            for node, key in ends:
                if name in given:
                    inner[str(node)]["inputs"][key] = given[name]
        graph |= {f"{i}:{k}": node for k, node in inner.items()}
    for node in graph.values():
        node["inputs"] = {k: origin(v) for k, v in node["inputs"].items()}
    return graph


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
