"""`dev.py tool draw_workflows`: draws the example workflows and the subgraph blueprint.

It loads their sources (testbed/graphs/) into the real frontend, lays the nodes out, and saves the
frontend's JSON. Pictures of them go to output/. It needs a Chromium.
"""

import argparse
import json
import shutil
import uuid
from pathlib import Path

from testbed import graphs
from testbed.server import Server


def chromium():
    """Path of a Chromium, or None."""
    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, paths), None)


def launched(play):
    """A headless Chromium."""
    return play.chromium.launch(
        executable_path=chromium(),
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
    )


def ready(page, server):
    """The page with the frontend loaded and its dialogs closed."""
    page.goto(server.url)
    page.wait_for_function(
        "() => window.app && window.app.graph && window.app.loadApiJson", timeout=60000
    )
    page.wait_for_timeout(4000)
    page.keyboard.press("Escape")
    return page


def drawn(page, name):
    """The UI-format workflow that the frontend makes of a source graph."""
    drawing = graphs.drawing(name)
    boxes = {i: n for i, n in drawing.nodes.items() if n[0] in graphs.BOXES}
    rest = {i: n for i, n in drawing.nodes.items() if i not in boxes}
    flat = graphs.api(rest)
    for node in flat.values():  # links from boxes are added below
        node["inputs"] = {
            k: v for k, v in node["inputs"].items() if not (isinstance(v, list) and v[0] in boxes)
        }
    made = placed(page, name, flat, drawing)
    packs = page.evaluate(
        "() => Object.fromEntries(app.graph._nodes.map(n => [n.type, "
        "n.constructor.nodeData?.python_module ?? '']))"
    )
    for node in made["nodes"]:
        node["title"] = rest[str(node["id"])][1] if str(node["id"]) in rest else node["title"]
        node["properties"].update(origin(packs[node["type"]]), **graphs.downloads(node))
        dress(node)
    for i, (kind, title, place, inputs) in boxes.items():
        add_box(made, json.loads(blueprint(page, kind)), int(i), (title, place, inputs))
    for i, (_, _, _, inputs) in rest.items():
        for key, value in inputs.items():
            if isinstance(value, list) and value[0] in boxes:
                connect(made, (int(value[0]), value[1]), (int(i), key))
    made["extra"] = {"workflowRendererVersion": "LG"}
    return made


def placed(page, name, flat, drawing):
    """The nodes of an API graph where a drawing wants them, with its note and groups."""
    page.evaluate("([graph, name]) => { app.loadApiJson(graph, name) }", [flat, name])
    page.wait_for_timeout(2500)
    text = page.evaluate(
        """([places, note, at, groups, muted, folded]) => {
            for (const n of app.graph._nodes) {
                const p = places[String(n.id)]
                for (const w of n.widgets ?? []) {
                    // Before and after have the same seed.
                    if (w.name === 'control_after_generate') w.value = 'fixed'
                }
                if (p) {
                    n.pos = [p[0], p[1]]
                    n.setSize ? n.setSize([p[2], p[3]]) : n.size = [p[2], p[3]]
                }
                if (muted.includes(String(n.id))) n.mode = LiteGraph.NEVER
                if (folded.includes(String(n.id))) n.collapse()
            }
            const m = LiteGraph.createNode('MarkdownNote')
            m.id = 100
            m.title = 'What to do'
            m.pos = [at[0], at[1]]
            m.size = [at[2], at[3]]
            app.graph.add(m)
            m.widgets[0].value = note
            for (const [title, p] of Object.entries(groups)) {
                const g = new LiteGraph.LGraphGroup(title)
                g.pos = [p[0], p[1]]; g.size = [p[2], p[3]]
                app.graph.add(g)
            }
            return JSON.stringify(app.graph.serialize())
        }""",
        [
            {i: place for i, (_, _, place, _) in drawing.nodes.items()},
            drawing.note,
            drawing.at,
            drawing.groups,
            drawing.muted,
            drawing.folded,
        ],
    )
    return json.loads(text)


# Title bar and body of nodes by what they are for: concepts, saliency, patches, models, notes.
COLOURS = {
    "concepts": ("#5a4520", "#3b2e17"),
    "saliency": ("#1f4e54", "#17373b"),
    "patch": ("#5e2c40", "#3f2030"),
    "model": ("#33415c", "#252f42"),
    "note": ("#443322", "#665533"),
}
ROLES = {
    "UnlearnConcepts": "concepts",
    graphs.BLUEPRINT: "concepts",
    "ConceptSaliency": "saliency",
    "NeuronMaskFuse": "saliency",
    "ScaPreSolve": "patch",
    "DynamicMaskTrainer": "patch",
    "TextEncoderSolve": "patch",
    "ApplyUnlearnPatch": "patch",
    "LoadUnlearnPatch": "patch",
    "SaveUnlearnPatch": "patch",
    "SaveUnlearnLoRA": "patch",
    "SaveUnlearnedCheckpoint": "model",
    "CheckpointLoaderSimple": "model",
    "UNETLoader": "model",
    "CLIPLoader": "model",
    "DualCLIPLoader": "model",
    "VAELoader": "model",
    "LoraLoaderModelOnly": "model",
    "MarkdownNote": "note",
}


def dress(node, kind=None):
    """Gives a node the colours of its role, and Compare Images its divider in classic."""
    kind = kind or node["type"]
    if kind in ROLES:
        node["color"], node["bgcolor"] = COLOURS[ROLES[kind]]
    if kind == "ImageCompare":
        node["properties"]["unlearn_divider"] = True


def add_box(made, source, i, given):
    """Puts the node of a blueprint into a workflow: its title, place, values and links."""
    title, place, inputs = given
    (host,) = source["nodes"]
    (inner,) = source["definitions"]["subgraphs"]
    names = [e["name"] for e in host["inputs"] if "widget" in e]
    host |= {
        "id": i,
        "title": title,
        "pos": list(place[:2]),
        "size": list(place[2:]),
        "order": len(made["nodes"]),
        "widgets_values": [
            inputs.get(name, value)
            for name, value in zip(names, host["widgets_values"], strict=True)
        ],
    }
    host["properties"]["cnr_id"] = "unlearn-diffusion"
    dress(host, inner["name"])
    made["nodes"].append(host)
    made["last_node_id"] = max(made["last_node_id"], i)
    made.setdefault("definitions", {}).setdefault("subgraphs", []).append(inner)
    for key, value in inputs.items():
        if isinstance(value, list):
            connect(made, (int(value[0]), value[1]), (i, key))


def connect(made, start, end):
    """Adds a link to a UI-format workflow, from (node, slot) to (node, input)."""
    nodes = {n["id"]: n for n in made["nodes"]}
    slot = [e["name"] for e in nodes[end[0]]["inputs"]].index(end[1])
    output = nodes[start[0]]["outputs"][start[1]]
    link = made["last_link_id"] = made["last_link_id"] + 1
    made["links"].append([link, *start, end[0], slot, output["type"]])
    output["links"] = [*(output.get("links") or []), link]
    nodes[end[0]]["inputs"][slot]["link"] = link


def blueprint(page, name):
    """The subgraph blueprint: a UI-format workflow of one box around the nodes of its source."""
    box = graphs.BOXES[name]()
    page.evaluate(
        "([graph, name]) => { app.loadApiJson(graph, name) }", [graphs.api(box.nodes), name]
    )
    page.wait_for_timeout(2500)
    made = page.evaluate(
        """([places, inputs, outputs, name, size]) => {
            for (const n of app.graph._nodes) {
                const p = places[String(n.id)]
                for (const w of n.widgets ?? []) {
                    if (w.name === 'control_after_generate') w.value = 'fixed'
                }
                n.pos = [p[0], p[1]]
                n.setSize([p[2], p[3]])
            }
            const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph._nodes))
            const at = (id) => subgraph.getNodeById(id)
            // The frontend has put seeds on the face by itself.
            for (const slot of [...subgraph.inputs]) subgraph.removeInput(slot)
            for (const [name, type, to] of inputs) {
                const slot = subgraph.addInput(name, type)
                for (const [id, input] of to) {
                    slot.connect(at(id).inputs.find((i) => i.name === input), at(id))
                }
            }
            for (const [name, type, id, k] of outputs) {
                subgraph.addOutput(name, type).connect(at(id).outputs[k], at(id))
            }
            subgraph.name = node.title = name
            node.pos = [0, 0]; node.setSize(size)
            return app.graph.serialize()
        }""",
        [
            {i: place for i, (_, _, place, _) in box.nodes.items()},
            box.inputs,
            box.outputs,
            name,
            box.size,
        ],
    )
    (inner,) = made["definitions"]["subgraphs"]
    inner |= {"category": "unlearn", "description": box.about}
    ours = graphs.OURS
    for node in inner["nodes"]:
        node["properties"]["cnr_id"] = "unlearn-diffusion" if node["type"] in ours else "comfy-core"
        node["title"] = box.nodes[str(node["id"])][1]
        dress(node)
    picture = "$$canvas-image-preview"
    made["nodes"][0]["properties"]["previewExposures"] = [
        {"name": picture, "sourceNodeId": str(i), "sourcePreviewName": picture} for i in box.shown
    ]
    dress(made["nodes"][0], name)
    extra = {"BlueprintDescription": box.about, "BlueprintSearchAliases": box.words}
    made = {
        k: made[k]
        for k in (
            "revision",
            "last_node_id",
            "last_link_id",
            "nodes",
            "links",
            "version",
            "definitions",
        )
    } | {"extra": extra}
    text = json.dumps(without_empty(made), indent=1)
    # Ids that stay the same from one drawing to the next.
    for k, part in enumerate((inner, *inner["inputs"], *inner["outputs"])):
        stable = f"unlearn-diffusion/{name}/{k}"
        text = text.replace(part["id"], str(uuid.uuid5(uuid.NAMESPACE_URL, stable)))
    return text


def without_empty(value):
    """JSON without the empty entries that the frontend writes out for every slot."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v is not None or k in ("link", "links")}
        return {k: without_empty(v) for k, v in kept.items()}
    return [without_empty(v) for v in value] if isinstance(value, list) else value


def origin(module):
    """What lets the frontend offer to install the pack that a node comes from."""
    if module.startswith("custom_nodes."):
        return {"cnr_id": "unlearn-diffusion"}
    return {"cnr_id": "comfy-core"} if module else {}


def main():
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="example workflows or blueprints; everything by default"
    )
    given, size = parser.parse_args(), (1920, 1080)
    with Server() as server, sync_playwright() as play:
        page = ready(
            launched(play).new_page(viewport={"width": size[0], "height": size[1]}), server
        )
        names = given.names or [*graphs.BOXES, *graphs.SOURCES, *graphs.FAMILIES]
        for name in names:
            if name in graphs.BOXES:
                path = graphs.FOLDER.parent / "subgraphs" / f"{name}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(blueprint(page, name) + "\n", encoding="utf-8")
                print(path)
                continue
            made = drawn(page, name)
            path = graphs.path(name)
            path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            page.evaluate(
                "([w, n]) => app.loadGraphData(w, true, true, n, {openSource: 'template'})",
                [made, name],
            )
            page.wait_for_timeout(2500)
            page.keyboard.press("Escape")  # the dialog about missing models
            picture = Path("output") / f"{name}.png"
            picture.parent.mkdir(exist_ok=True)
            page.screenshot(path=picture)
            counts = f"{len(made['nodes'])} nodes, {len(made['links'])} links"
            print(f"{path}: {counts}; picture: {picture}")


if __name__ == "__main__":
    main()
