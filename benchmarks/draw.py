"""`dev.py bench draw`: draws the example workflows in the real frontend and saves what it says, with a picture of each under output/.

Needs Playwright and a Chromium, which tests and the demo do not.
"""

import argparse
import json
import shutil
from pathlib import Path

from . import workflow
from .server import Server


def frontend(play, server, size=(2400, 1300)):
    """A page with the frontend ready, no dialogs."""
    browser = play.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    )
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(server.url)
    page.wait_for_function("() => window.app && window.app.graph && window.app.loadApiJson", timeout=60000)
    page.wait_for_timeout(5000)
    page.keyboard.press("Escape")
    return page


def drawn(page, name):
    """The UI-format workflow that the frontend makes of a source graph."""
    nodes, note = workflow.SOURCES[name]()
    page.evaluate("([graph, name]) => { app.loadApiJson(graph, name) }", [workflow.source(name), name])
    page.wait_for_timeout(2500)
    places = {title: place for _, title, place, _ in nodes.values()}
    text = page.evaluate(
        """([places, note, x]) => {
            for (const n of app.graph._nodes) {
                const p = places[n.title]
                for (const w of n.widgets ?? []) if (w.name === 'control_after_generate') w.value = 'fixed'  // one seed before and after
                if (p) { n.pos = [p[0], p[1]]; n.setSize ? n.setSize([p[2], p[3]]) : n.size = [p[2], p[3]] }
            }
            const m = LiteGraph.createNode('MarkdownNote')
            m.title = 'What to change'; m.pos = [x, 740]; m.size = [530, 260]; m.color = '#432'; m.bgcolor = '#653'
            app.graph.add(m)
            m.widgets[0].value = note
            app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [60, 80]
            app.canvas.setDirty(true, true)
            return JSON.stringify(app.graph.serialize())
        }""",
        [places, note, max(p[0] for p in places.values()) - 580],
    )
    made = json.loads(text)
    made["extra"] = {"ds": {"scale": 0.7, "offset": [60, 80]}}
    for node in made["nodes"]:
        node["title"] = nodes[str(node["id"])][1] if str(node["id"]) in nodes else node["title"]
    return made


def main():
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(workflow.SOURCES))
    given = parser.parse_args()
    with Server() as server, sync_playwright() as play:
        page = frontend(play, server)
        for name in given.names or workflow.SOURCES:
            made = drawn(page, name)
            path = workflow.FOLDER / f"{name}.json"
            path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            page.evaluate("(w) => app.loadGraphData(w)", made)
            page.wait_for_timeout(2500)
            picture = Path("output") / f"{name}.png"
            picture.parent.mkdir(exist_ok=True)
            page.screenshot(path=picture)
            print(f"{path}: {len(made['nodes'])} nodes, {len(made['links'])} links; picture: {picture}")


if __name__ == "__main__":
    main()
