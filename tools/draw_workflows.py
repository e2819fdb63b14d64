"""`dev.py tool draw_workflows`: draws the example workflows and the subgraph blueprint.

It loads their sources (testbed/graphs.py) into the real frontend, lays the nodes out, and saves the
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


def view(drawing, size):
    """Scale and offset of the canvas that show a whole drawing in a window of this size."""
    places = [
        drawing.at,
        *drawing.groups.values(),
        *(place for _, _, place, _ in drawing.nodes.values()),
    ]
    left, top = (min(p[k] for p in places) for k in (0, 1))
    width, height = (max(p[k] + p[k + 2] for p in places) - (left, top)[k] for k in (0, 1))
    fits = min((size[0] - 200) / width, (size[1] - 180) / height)
    scale = round(max(0.6, min(0.9, fits)), 2)  # below 0.6 the canvas draws no text
    return {"scale": scale, "offset": [round(100 / scale - left), round(130 / scale - top)]}


def drawn(page, name):
    """The UI-format workflow that the frontend makes of a source graph."""
    drawing = graphs.drawing(name)
    page.evaluate(
        "([graph, name]) => { app.loadApiJson(graph, name) }", [graphs.source(name), name]
    )
    page.wait_for_timeout(2500)
    places = {title: place for _, title, place, _ in drawing.nodes.values()}
    text = page.evaluate(
        """([places, note, at, groups, muted]) => {
            for (const n of app.graph._nodes) {
                const p = places[n.title]
                for (const w of n.widgets ?? []) {
                    // Before and after have the same seed.
                    if (w.name === 'control_after_generate') w.value = 'fixed'
                }
                if (p) {
                    n.pos = [p[0], p[1]]
                    n.setSize ? n.setSize([p[2], p[3]]) : n.size = [p[2], p[3]]
                }
                if (muted.includes(String(n.id))) n.mode = LiteGraph.NEVER
            }
            const m = LiteGraph.createNode('MarkdownNote')
            m.title = 'What to change'
            m.pos = [at[0], at[1]]
            m.size = [at[2], at[3]]
            m.color = '#432'
            m.bgcolor = '#653'
            app.graph.add(m)
            m.widgets[0].value = note
            for (const [title, p] of Object.entries(groups)) {
                const g = new LiteGraph.LGraphGroup(title)
                g.pos = [p[0], p[1]]; g.size = [p[2], p[3]]
                app.graph.add(g)
            }
            return JSON.stringify(app.graph.serialize())
        }""",
        [places, drawing.note, drawing.at, drawing.groups, drawing.muted],
    )
    made = json.loads(text)
    made["extra"] = {"ds": view(drawing, (1800, 1000)), "workflowRendererVersion": "LG"}
    packs = page.evaluate(
        "() => Object.fromEntries(app.graph._nodes.map(n => [n.type, "
        "n.constructor.nodeData?.python_module ?? '']))"
    )
    for node in made["nodes"]:
        node["title"] = (
            drawing.nodes[str(node["id"])][1] if str(node["id"]) in drawing.nodes else node["title"]
        )
        node["properties"].update(origin(packs[node["type"]]), **graphs.downloads(node))
    return made


def blueprint(page):
    """The subgraph blueprint: a UI-format workflow of one box around the nodes of its source."""
    nodes, inputs, outputs = graphs.blueprint()
    page.evaluate(
        "([graph, name]) => { app.loadApiJson(graph, name) }", [graphs.api(nodes), graphs.BLUEPRINT]
    )
    page.wait_for_timeout(2500)
    made = page.evaluate(
        """([places, inputs, outputs, name]) => {
            for (const n of app.graph._nodes) {
                const p = places[n.title]
                n.pos = [p[0], p[1]]
                n.setSize([p[2], p[3]])
            }
            const {subgraph, node} = app.graph.convertToSubgraph(new Set(app.graph._nodes))
            const at = (id) => subgraph.getNodeById(id)
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
            node.pos = [0, 0]; node.setSize([380, 330])
            return app.graph.serialize()
        }""",
        [
            {title: place for _, title, place, _ in nodes.values()},
            inputs,
            outputs,
            graphs.BLUEPRINT,
        ],
    )
    (inner,) = made["definitions"]["subgraphs"]
    about = (
        "Makes a model forget: name what to forget and what to keep, one per line, "
        "and sample with the model that comes out."
    )
    inner |= {"category": "unlearn", "description": about}
    for node in inner["nodes"]:
        node["properties"]["cnr_id"] = "unlearn-diffusion"
    extra = {"BlueprintDescription": about, "BlueprintSearchAliases": graphs.BLUEPRINT_WORDS}
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
        name = f"unlearn-diffusion/{graphs.BLUEPRINT}/{k}"
        text = text.replace(part["id"], str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
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
        "names", nargs="*", help="example workflows, or 'blueprint'; everything by default"
    )
    given, size = parser.parse_args(), (2400, 1300)
    with Server() as server, sync_playwright() as play:
        page = ready(
            launched(play).new_page(viewport={"width": size[0], "height": size[1]}), server
        )
        for name in given.names or [*graphs.SOURCES, *graphs.FAMILIES, "blueprint"]:
            if name == "blueprint":
                path = graphs.FOLDER.parent / "subgraphs" / f"{graphs.BLUEPRINT}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(blueprint(page) + "\n", encoding="utf-8")
                print(path)
                continue
            made = drawn(page, name)
            path = graphs.FOLDER / f"{name}.json"
            path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            shown = {**made, "extra": {**made["extra"], "ds": view(graphs.drawing(name), size)}}
            page.evaluate("(w) => app.loadGraphData(w)", shown)
            page.wait_for_timeout(2500)
            page.keyboard.press("Escape")  # the dialog about missing models
            picture = Path("output") / f"{name}.png"
            picture.parent.mkdir(exist_ok=True)
            page.screenshot(path=picture)
            counts = f"{len(made['nodes'])} nodes, {len(made['links'])} links"
            print(f"{path}: {counts}; picture: {picture}")


if __name__ == "__main__":
    main()
