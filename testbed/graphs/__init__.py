"""The example workflows as graphs: their files, and the sources these are drawn from."""

import json
from pathlib import Path

from .boxes import BLUEPRINT, BOXES, OURS, erase_concepts
from .families import FAMILIES, FILES
from .parts import CHECKPOINT, FUSE, MEASURE, NO_FILE, SDXL, TRAIN, URLS, api, solve_inputs
from .reading import filled, put, say, titled, to_api
from .unets import SOURCES

__all__ = [
    "BLUEPRINT",
    "BOXES",
    "CHECKPOINT",
    "FAMILIES",
    "FOLDER",
    "FUSE",
    "MEASURE",
    "NO_FILE",
    "OURS",
    "SDXL",
    "SOURCES",
    "TITLES",
    "TRAIN",
    "api",
    "downloads",
    "drawing",
    "erase_concepts",
    "filled",
    "load",
    "path",
    "put",
    "say",
    "solve_inputs",
    "source",
    "titled",
    "to_api",
]

FOLDER = Path(__file__).parents[2] / "example_workflows"


def path(name):
    """The file of an example workflow. Its name is what the template browser shows."""
    return FOLDER / f"{TITLES[name]}.json"


def load(name):
    return json.loads(path(name).read_text(encoding="utf-8"))


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
