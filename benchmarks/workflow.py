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


def quick_erase():
    """The quick-erase graph, as it was drawn: forget objects and a style, see before and after with the same seed."""
    sampler = {"seed": 7, "steps": 20, "cfg": 7.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
    size = {"width": 512, "height": 512, "batch_size": 1}
    wires = {"positive": ["6", 0], "negative": ["7", 0], "latent_image": ["8", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", "Load Checkpoint", {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}),
        "2": (
            "UnlearnConcepts",
            "Objects to Forget",
            {"forget": "garbage truck -> vehicle\nchurch -> building", "keep": "fire truck\ntown hall", "kind": "object"},
        ),
        "3": ("UnlearnConcepts", "Styles to Forget", {"forget": "van gogh", "keep": "monet", "kind": "style", "more": ["2", 0]}),
        "4": (
            "ScaPreSolve",
            "ScaPre Solve",
            {
                "model": ["1", 0],
                "clip": ["1", 1],
                "concepts": ["3", 0],
                "variant": "anchored",
                "variant.erase": 100.0,
                "variant.preserve": 1.0,
                "variant.anchor": 0.05,
                "variant.spectral": 0.0,
                "variant.informax": False,
                "tokens": "all",
                "prior": True,
                "templates": "",
            },
        ),
        "5": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            {"model": ["1", 0], "patches.patch0": ["4", 0], "strength": 1.0, "mismatch": "warn"},
        ),
        "6": ("CLIPTextEncode", "Prompt", {"clip": ["1", 1], "text": "a painting of a church by van gogh"}),
        "7": ("CLIPTextEncode", "Negative Prompt", {"clip": ["1", 1], "text": ""}),
        "8": ("EmptyLatentImage", "Picture Size", size),
        "9": ("KSampler", "Before", {"model": ["1", 0], **sampler, **wires}),
        "10": ("KSampler", "After", {"model": ["5", 0], **sampler, **wires}),
        "11": ("VAEDecode", "Decode Before", {"samples": ["9", 0], "vae": ["1", 2]}),
        "12": ("VAEDecode", "Decode After", {"samples": ["10", 0], "vae": ["1", 2]}),
        "13": ("SaveImage", "Picture Before", {"images": ["11", 0], "filename_prefix": "unlearn/before"}),
        "14": ("SaveImage", "Picture After", {"images": ["12", 0], "filename_prefix": "unlearn/after"}),
        "15": ("PreviewImage", "Report", {"images": ["4", 1]}),
        "16": ("PreviewAny", "Report in Words", {"source": ["4", 2]}),
    }
    return {i: {"class_type": c, "inputs": v, "_meta": {"title": t}} for i, (c, t, v) in nodes.items()}
