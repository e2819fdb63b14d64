"""`dev.py tool draw_help_pictures`: draws the picture of each help page.

A picture shows the node in the real frontend after it ran on the emoji world, and to its right
what it gave. Nodes that prune run on the sprite world. It needs a Chromium.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from testbed import example_pictures, graphs, judged
from testbed.server import BASE, Server
from tools import draw_workflows

FOLDER = graphs.FOLDER.parent / "web" / "docs" / "pictures"
WIDTH, QUALITY = 900, 82
TASK = judged.SHOWN
GONE, SIDE = TASK.forget[:2], 8 * TASK.world.size
NAME = "help_page"  # of the files that are saved and loaded again
WRITTEN = [
    BASE / "models" / folder / f"{NAME}.safetensors"
    for folder in ("unlearn_patches", "loras", "unlearn_saliency")
]


def listed(names, task=TASK):
    """Inputs of Concepts to Forget: these names are forgotten, and everything else is kept."""
    forget, keep = task.forget_lines(names), task.keep_lines(names)
    return {"forget": forget, "keep": keep, "kind": "object", **graphs.NO_FILE}


TRAIN = {f"preset.{k}": v for k, v in example_pictures.TRAINING.items()} | {
    "preset": "custom",
    "warmup": 10,
    "refresh": 25,
    "hold": 5.0,
    "cfg": 3.0,
    "size": SIDE,
}
LOADED, PRUNED = ["1", 0], ["16", 0]
IMAGES, TEXT = "PreviewImage", "PreviewAny"


def shown(source, slot, kind=TEXT):
    return kind, {"images" if kind == IMAGES else "source": [source, slot]}


# Two rounds, because the second loads what the first saved.
# Node id -> (class, inputs, what stands to its right).
FIRST = {
    "2": ("UnlearnConcepts", listed(GONE), [shown("2", 1)]),
    "3": (
        "ScaPreSolve",
        {**graphs.solve_inputs("2"), "model": LOADED},
        [shown("3", 1, IMAGES), shown("3", 2)],
    ),
    "4": (
        "ApplyUnlearnPatch",
        {"model": LOADED, "patches.patch0": ["3", 0], "strength": 1.0, "mismatch": "warn"},
        [shown("4", 1)],
    ),
    "5": (
        "CollateralForecast",
        {
            "model": LOADED,
            "clip": ["1", 1],
            "patch": ["3", 0],
            "concepts": ["2", 0],
            "strength": 1.0,
        },
        [shown("5", 0, IMAGES)],
    ),
    "6": (
        "ErasureReport",
        {
            "before": LOADED,
            "after": ["4", 0],
            "clip": ["1", 1],
            "vae": ["1", 2],
            "concepts": ["2", 0],
            "seed": 0,
            "seeds": 2,
            "kept": 4,
            "steps": 10,
        }
        | {
            "cfg": 3.0,
            "size": SIDE,
            "sampler": "ddim",
            "scheduler": "ddim_uniform",
            "templates": "an image of a {concept}",
        },
        [shown("6", 0, IMAGES), shown("6", 2)],
    ),
    "7": (
        "ConceptSaliency",
        {
            **graphs.MEASURE,
            "model": PRUNED,
            "clip": ["16", 1],
            "concepts": ["8", 0],
            "prompts": 8,
            "steps": 15,
            "window": 10,
            "cfg": 3.0,
            "size": 8 * judged.SPRITES.world.size,
        },
        [shown("7", 1)],
    ),
    "9": (
        "NeuronMaskFuse",
        {**graphs.FUSE, "saliency.saliency0": ["7", 0]},
        [shown("9", 1, IMAGES)],
    ),
    "10": ("SaveConceptSaliency", {"saliency": ["7", 0], "name": NAME}, []),
    "11": ("SaveUnlearnPatch", {"patch": ["3", 0], "name": NAME}, []),
    "12": (
        "SaveUnlearnLoRA",
        {"model": LOADED, "patch": ["3", 0], "name": NAME, "size": "exact", "precision": "float16"},
        [shown("12", 1)],
    ),
    "13": (
        "SaveUnlearnedCheckpoint",
        {
            "model": ["4", 0],
            "filename_prefix": f"checkpoints/{NAME}",
            "clip": ["1", 1],
            "vae": ["1", 2],
        },
        [],
    ),
    "14": (
        "DynamicMaskTrainer",
        {**graphs.TRAIN, **TRAIN, "concepts": ["15", 0]},
        [shown("14", 2, IMAGES), shown("14", 3)],
    ),
    "17": (
        "UnlearnStrengthSweep",
        {
            "model": LOADED,
            "patch": ["3", 0],
            "vae": ["1", 2],
            "positive": ["18", 0],
            "negative": ["19", 0],
            "pictures": 5,
            "seed": 0,
            "steps": 10,
            "cfg": 3.0,
            "size": SIDE,
            "sampler": "ddim",
            "scheduler": "ddim_uniform",
        },
        [shown("17", 0, IMAGES), shown("17", 2)],
    ),
    "26": ("TextEncoderSolve", {"clip": ["1", 1], "concepts": ["2", 0]}, [shown("26", 1)]),
}
HELPERS = {  # not pictured
    "18": ("CLIPTextEncode", {"clip": ["1", 1], "text": f"an image of a {GONE[0]}"}),
    "19": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
    "1": ("CheckpointLoaderSimple", {"ckpt_name": TASK.world.checkpoint}),
    "8": ("UnlearnConcepts", listed(judged.SPRITES.pruned, judged.SPRITES)),
    "15": ("UnlearnConcepts", listed(GONE[:1])),
    "16": ("CheckpointLoaderSimple", {"ckpt_name": judged.SPRITES.world.checkpoint}),
}
SECOND = {
    "20": ("LoadUnlearnPatch", {"name": f"{NAME}.safetensors"}, [shown("20", 1)]),
    "21": ("UnlearnPatchInfo", {"patch": ["20", 0], "model": LOADED}, [shown("21", 0)]),
    "25": (
        "RefitUnlearnPatch",
        {"patch": ["20", 0], "model": LOADED, "clip": ["1", 1]},
        [shown("25", 1)],
    ),
    "22": ("LoadConceptSaliency", {"name": f"{NAME}.safetensors"}, []),
    "23": ("MergeConceptSaliency", {"saliency.saliency0": ["22", 0], "model": PRUNED}, []),
    "24": ("SaveConceptSaliency", {"saliency": ["23", 0], "name": NAME}, []),
}


def graph(nodes, helpers):
    """(API graph, node id -> ids of what stands to its right)."""
    out = {
        i: {"class_type": c, "inputs": v, "_meta": {"title": i}} for i, (c, v) in helpers.items()
    }
    beside = {}
    for i, (kind, inputs, right) in nodes.items():
        out[i] = {"class_type": kind, "inputs": inputs, "_meta": {"title": i}}
        beside[i] = [f"{i}{k:02}" for k in range(1, 1 + len(right))]
        out |= {
            n: {"class_type": c, "inputs": v, "_meta": {"title": n}}
            for n, (c, v) in zip(beside[i], right, strict=True)
        }
    return out, beside


LAYOUT = """([beside, ids]) => {
    const at = (id) => app.graph._nodes.find((n) => n.title === id)
    const boxes = {}
    let y = 0
    for (const n of app.graph._nodes) if (!ids.includes(n.title)) n.pos = [-3000, (y -= 900)]
    y = 0
    for (const [id, right] of Object.entries(beside)) {
        const node = at(id), size = node.computeSize()
        node.pos = [0, y]; node.setSize([420, Math.max(size[1], 100)])
        let x = 480
        for (const other of right) {
            const image = at(other).type === 'PreviewImage'
            at(other).pos = [x, y]
            at(other).setSize([image ? 520 : 420, image ? 460 : 300])
            x += image ? 560 : 460
        }
        const height = Math.max(node.size[1], ...right.map((o) => at(o).size[1]))
        boxes[id] = [0, y - 52, x - 50, 90 + height]
        y += boxes[id][3] + 200
    }
    return boxes
}"""
LOADED_IMAGES = """() => app.graph._nodes
    .filter((n) => n.type === 'PreviewImage' && app.canvas.visible_nodes.includes(n))
    .every((n) => n.imgs?.length && n.imgs.every((i) => i.complete && i.naturalWidth))
"""
RENAME = """() => {
    for (const n of app.graph._nodes) {
        n.title = n.constructor.nodeData?.display_name ?? n.constructor.title ?? n.type
    }
}"""


def pictured(page, nodes, helpers):
    """Runs the nodes and yields (class, screenshot) of each with what stands to its right."""
    made, beside = graph(nodes, helpers)
    page.evaluate("async () => { await app.refreshComboInNodes?.() }")
    page.evaluate("g => { app.loadApiJson(g, 'help') }", made)
    page.wait_for_timeout(3000)
    boxes = page.evaluate(
        LAYOUT, [beside, [*beside, *(i for right in beside.values() for i in right)]]
    )
    page.evaluate(RENAME)
    page.evaluate(
        "() => { window.over = null; for (const n of ['execution_success', 'execution_error']) "
        "app.api.addEventListener(n, (e) => { window.over = [n, e.detail] }); app.queuePrompt(0) }"
    )
    page.wait_for_function("() => window.over", timeout=1_800_000)
    event, detail = page.evaluate("() => window.over")
    assert event == "execution_success", detail
    page.wait_for_timeout(2500)
    for i, box in boxes.items():
        if nodes[i][0] == "SaveConceptSaliency" and nodes is SECOND:
            continue
        scale = min(1.0, 1700 / box[2], 1500 / box[3])
        page.evaluate(
            "([x, y, s]) => { app.canvas.ds.scale = s; app.canvas.ds.offset = [120 / s - x, 120 / "
            "s - y]; app.canvas.setDirty(true) }",
            [box[0], box[1], scale],
        )
        page.wait_for_timeout(1200)
        page.wait_for_function(LOADED_IMAGES, timeout=60_000)
        clip = {"x": 112, "y": 112, "width": box[2] * scale + 16, "height": box[3] * scale + 16}
        yield nodes[i][0], Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def needed(nodes, wanted):
    """The nodes of these classes, and those of `nodes` that they hang on."""
    found, open_ = {}, [i for i, (kind, *_) in nodes.items() if kind in wanted]
    while open_:
        if (i := open_.pop()) in nodes and i not in found:
            found[i] = nodes[i]
            open_ += [wire[0] for wire in nodes[i][1].values() if isinstance(wire, list)]
    return {i: nodes[i] for i in nodes if i in found}


def main():
    from playwright.sync_api import sync_playwright

    every = [kind for nodes in (FIRST, SECOND) for kind, *_ in nodes.values()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="nodes to draw")
    only = parser.parse_args().only
    for task in (TASK, judged.SPRITES):
        task.world.expand(BASE / "models" / "checkpoints")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with Server(leaves=WRITTEN) as server, sync_playwright() as play:
        page = draw_workflows.ready(
            draw_workflows.launched(play).new_page(viewport={"width": 2000, "height": 1800}), server
        )
        for nodes, helpers in ((FIRST, HELPERS), (SECOND, {i: HELPERS[i] for i in ("1", "16")})):
            chosen = needed(nodes, only)
            for name, picture in pictured(page, chosen, helpers) if chosen else ():
                if name not in only:
                    continue
                path = Path(FOLDER) / f"{name}.jpg"
                picture.thumbnail((WIDTH, WIDTH))
                picture.save(path, quality=QUALITY)
                print(
                    f"{path}: {picture.size[0]} x {picture.size[1]}, "
                    f"{path.stat().st_size // 1024} KB",
                    flush=True,
                )
    for path in (BASE / "output" / "checkpoints").glob(f"{NAME}*"):
        path.unlink()


if __name__ == "__main__":
    main()
