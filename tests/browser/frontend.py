"""A tab of the real frontend, as the browser tests drive it, and what it tells of a graph."""

import contextlib
import json
import re

from testbed import graphs
from testbed.worlds import checkpoint as world

SHOTS = graphs.FOLDER.parent / "output" / "browser"
# Messages of the stock page itself: optional files that are missing, and no network for the sizes
# of missing models.
STOCK = re.compile("404|Content Security Policy|Fetch API cannot load")
EVENTS = (
    "execution_start",
    "executing",
    "execution_cached",
    "execution_success",
    "execution_error",
    "execution_interrupted",
)
OVER = f"() => seen.some(([n]) => {list(EVENTS[3:])}.includes(n))"
# The frontend shows the graph that it opens with.
READY = (
    "() => window.app?.extensionManager?.workflow?.activeWorkflow && app.graph?._nodes.length > 0"
)
# (title, x, y, width, height of the node, height of the title's letters on the screen) of each node
# that is no group, of the graph or box that is open: in classic from its own bounds, in Nodes 2.0
# from the page.
BOXES = """vue => app.canvas.graph._nodes.map(n => {
    const s = app.canvas.ds.scale
    if (!vue) return [n.title, ...n.getBounding(), LiteGraph.NODE_TEXT_SIZE * s]
    const box = document.querySelector(`[data-node-id="${n.id}"]`)
    if (!box) return [n.title]
    const r = box.getBoundingClientRect()
    const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT)
    let text = walk.nextNode()
    while (text && text.textContent.trim() !== n.title) text = walk.nextNode()
    if (!text) return [n.title]
    const range = document.createRange()
    range.selectNodeContents(text)
    return [n.title, r.left / s, r.top / s, r.width / s, r.height / s,
        range.getBoundingClientRect().height]
})"""
# (title, wire) where a wire runs over the letters of a title of a node that it does not belong to,
# or of a group. The wires are the paths that the frontend has drawn; in classic the places of
# titles are those of its drawTitleText, in Nodes 2.0 those on the page.
WIRES = """vue => {
    app.canvas.draw(true, true)
    const { ds, connections_width: width, ctx } = app.canvas
    const left = app.canvas.canvas.getBoundingClientRect()
    const written = (font, text) => { ctx.font = font; return ctx.measureText(text).width }
    const titles = app.graph._nodes.map(n => {
        const high = LiteGraph.NODE_TITLE_HEIGHT, letters = LiteGraph.NODE_TEXT_SIZE
        if (!vue) {
            const base = n.pos[1] - high + LiteGraph.NODE_TITLE_TEXT_Y
            const long = written(n.titleFontStyle, n.getTitle())
            const room = n.flags.collapsed ? long : Math.min(long, n.size[0] - 2 * high)
            return [n.id, n.title, n.pos[0] + high, base - letters, room, letters]
        }
        const walk = document.createTreeWalker(
            document.querySelector(`[data-node-id="${n.id}"]`), NodeFilter.SHOW_TEXT)
        let text = walk.nextNode()
        while (text.textContent.trim() !== n.title) text = walk.nextNode()
        const range = document.createRange()
        range.selectNodeContents(text)
        const r = range.getBoundingClientRect()
        return [n.id, n.title, (r.left - left.left) / ds.scale - ds.offset[0],
            (r.top - left.top) / ds.scale - ds.offset[1], r.width / ds.scale, r.height / ds.scale]
    })
    for (const g of app.graph._groups) {
        const letters = g.font_size ?? LiteGraph.GROUP_TEXT_SIZE
        const long = written(`${letters}px Inter, Arial`, g.title)
        titles.push([null, g.title, g.pos[0] + 4, g.pos[1], long, letters])
    }
    const pen = document.createElement('canvas').getContext('2d'), found = []
    for (const link of app.graph._links.values()) {
        const name = id => app.graph.getNodeById(id).title
        const wire = `${name(link.origin_id)} -> ${name(link.target_id)}`
        if (!link.path) { found.push(['not drawn', wire]); continue }
        for (const [id, title, x, y, w, h] of titles) {
            if (id === link.origin_id || id === link.target_id) continue
            // What a pen as thick as the letters and the wire draws along it, at their middle.
            pen.lineWidth = h + width
            for (let at = 0; at <= w; at += 2) {
                if (!pen.isPointInStroke(link.path, x + at, y + h / 2)) continue
                found.push([title, wire])
                break
            }
        }
    }
    return found
}"""


def crowded(boxes):
    """Pairs of titles of nodes that lie over each other, of BOXES."""
    return [
        (a[0], b[0])
        for k, a in enumerate(boxes)
        for b in boxes[k + 1 :]
        if all(a[i] + 2 < b[i] + b[i + 2] and b[i] + 2 < a[i] + a[i + 2] for i in (1, 2))
    ]


def in_world(name):
    """An example workflow with the sprite world's checkpoint chosen."""
    text = json.dumps(graphs.load(name))
    return json.loads(text.replace(graphs.SDXL, world.NAME).replace(graphs.CHECKPOINT, world.NAME))


class Tab:
    """A tab with the frontend in it; `errors` are its console's, without the stock page's own."""

    def __init__(self, context, address):
        self.page, self.errors = context.new_page(), []
        self.page.on(
            "console",
            lambda m: m.type == "error" and not STOCK.search(m.text) and self.errors.append(m.text),
        )
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on(
            "response",
            lambda r: (
                r.status >= 400
                and "ComfyUI-Unlearn" in r.url
                and "/en." not in r.url
                and self.errors.append(r.url)
            ),
        )
        self.page.goto(address)
        self.page.wait_for_function(READY, timeout=60000)
        self.js(
            "names => { window.seen = []; for (const n of names) app.api.addEventListener(n, e => "
            "seen.push([n, e.detail])) }",
            EVENTS,
        )

    def js(self, code, *args):
        return self.page.evaluate(code, *args)

    def until(self, code, *args, seconds=30):
        """Waits until some JavaScript gives something true."""
        self.page.wait_for_function(code, arg=args[0] if args else None, timeout=1000 * seconds)

    def settled(self, code, *args):
        """What some JavaScript gives when it gives the same three times in a row."""
        found = []
        for _ in range(200):
            found.append(self.js(code, *args))
            if len(found) > 2 and found[-1] == found[-2] == found[-3]:
                break
            self.page.wait_for_timeout(100)
        return found[-1]

    def boxes(self, vue=False):
        """BOXES as soon as all nodes are there and none moves any more."""
        boxes = self.settled(BOXES, vue)
        assert all(len(box) == 6 for box in boxes), "a node is not on the page"
        return boxes

    def shows(self, workflow, vue, *how):
        """Opens a workflow in a renderer and waits until it stands still."""
        self.page.keyboard.press("Escape")
        for setting, value in (("VueNodes.Enabled", vue), ("RightSidePanel.IsOpen", False)):
            self.js(
                "([name, value]) => app.extensionManager.setting.set(`Comfy.${name}`, value)",
                [setting, value],
            )
        self.errors.clear()
        self.js("([w, how]) => app.loadGraphData(w, ...how)", [workflow, list(how)])
        self.until("n => app.graph._nodes.length === n", len(workflow["nodes"]))
        self.settled(BOXES, vue)
        return self

    def opened(self, workflow, vue=False):
        """Opens a workflow as the template browser does it, fitted to the window."""
        return self.shows(workflow, vue, True, True, "template", {"openSource": "template"})

    @contextlib.contextmanager
    def sending(self, graph):
        """While it lasts, Run sends the inputs of an API graph in place of those on the page."""

        def changed(route):
            body = route.request.post_data_json
            for i, node in body["prompt"].items():
                node["inputs"].update(graph[i]["inputs"])
            route.continue_(post_data=json.dumps(body))

        self.page.route("**/prompt", changed)
        yield
        self.page.unroute("**/prompt")

    def run(self):
        """Presses Run and waits; returns the nodes that ran, in order, and the cached ones."""
        self.js("() => { seen.length = 0 }")
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.until(OVER, seconds=180)
        said = self.js("() => seen")
        assert not [detail for event, detail in said if event == "execution_error"]
        return [d for event, d in said if event == "executing" and d], [
            i for event, d in said if event == "execution_cached" for i in d["nodes"]
        ]

    def picture(self, node, vue=False, go=True):
        """(address, width) of the picture a node shows; the test fails after 30 s without one.

        The classic canvas loads it when the node comes into view: `go` brings it there.
        """
        if go:
            self.js("id => app.canvas.centerOnNode(app.graph.getNodeById(id))", int(node))
        image = (
            f"document.querySelector('[data-node-id=\"{node}\"] img')"
            if vue
            else f"app.graph.getNodeById({node})?.imgs?.[0]"
        )
        found = f"() => {{ const i = {image}; return i?.naturalWidth && [i.src, i.naturalWidth] }}"
        self.until(found)
        return self.js(found)

    def shot(self, name):
        self.page.screenshot(path=SHOTS / f"{name}.png")
