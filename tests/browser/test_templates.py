"""Every example workflow in the classic and the Vue renderer: as it opens, and after a run.

Pictures of the screen are in output/browser/.
"""

import pytest
from frontend import WIRES, crowded, in_world

from testbed import example_pictures, graphs, judged

pytestmark = pytest.mark.browser
# (name, whether Nodes 2.0 shows it). All are opened; those that the small worlds can run are run.
RUN = [(name, vue) for vue in (False, True) for name in graphs.SOURCES]
ALL = [*RUN, *((name, vue) for vue in (False, True) for name in graphs.FAMILIES)]
SMALLEST = 9  # pixels of a title's letters


def label(case):
    return f"{case[0]}-{'vue' if case[1] else 'classic'}"


@pytest.fixture(scope="module")
def wide(tab):
    tab.page.set_viewport_size({"width": 1920, "height": 1080})
    yield tab
    tab.page.set_viewport_size({"width": 1600, "height": 1000})


@pytest.fixture(scope="module")
def case(wide, request):
    """Opens an example workflow as the template browser does it, with a checkpoint that is here."""
    name, vue = request.param
    wide.page.set_viewport_size({"width": 1920, "height": 1080})
    wide.opened(in_world(name), vue)
    return request.param


def legible(tab, vue):
    """Titles can be read, no two nodes lie over each other, and no wire runs over a title."""
    boxes = tab.boxes(vue)
    assert min(box[5] for box in boxes) >= SMALLEST, min(boxes, key=lambda box: box[5])
    assert not crowded(boxes)
    assert not tab.js(WIRES, vue)


@pytest.mark.parametrize("case", ALL, indirect=True, ids=label)
def test_it_opens_readable(tab, case):
    """At 1920x1080; the first one at 1366x768 too. Nothing is missing but the models of families.

    What Run would send is what the file says; nodes that are switched off are left out.
    """
    name, vue = case
    legible(tab, vue)
    tab.shot(f"opened_{label(case)}")
    missing = "n => !LiteGraph.registered_node_types[n.type]"
    assert tab.js(f"app.graph._nodes.filter({missing}).map(n => n.type)") == []
    if name in graphs.SOURCES:
        assert tab.page.get_by_test_id("error-overlay").count() == 0
    if vue:
        whole = [n for n in graphs.load(name)["nodes"] if not n.get("flags", {}).get("collapsed")]
        assert tab.page.locator("[data-testid^='node-body-']").count() == len(whole)
    sent = tab.js("app.graphToPrompt().then(p => p.output)")
    want = graphs.to_api(in_world(name))
    assert set(sent) == set(want)
    for i, node in want.items():
        given = {k: sent[i]["inputs"].get(k) for k in node["inputs"]}
        assert given == node["inputs"], node["_meta"]["title"]
    if name in graphs.FAMILIES:
        assert {i: n["inputs"] for i, n in sent.items()} == {
            i: n["inputs"] for i, n in want.items()
        }
    if name == "quick_erase":
        tab.page.set_viewport_size({"width": 1366, "height": 768})
        tab.opened(in_world(name), vue)
        legible(tab, vue)
        tab.shot(f"opened_small_{label(case)}")
    assert not tab.errors


@pytest.mark.parametrize("case", RUN, indirect=True, ids=label)
def test_it_runs_and_stays_readable(tab, case):
    """Pictures come, and nothing that came lies over a title or another node.

    The page shows the example's own values, and Run sends small ones: so nodes keep the size that
    they have in the example. A custom training has more widgets.
    """
    name, vue = case
    graph = example_pictures.small(name, judged.SPRITES, quick=True)
    for node in graph.values():
        if node["class_type"] == "UnlearnConcepts":  # not the same words, so that nothing is cached
            node["inputs"]["keep"] = "fish" if vue else "cat"
    with tab.sending(graph):
        ran, cached = tab.run()
    saves = [i for i, n in graph.items() if n["class_type"] == "SaveImage"]
    assert len(saves) >= 2 and set(saves) <= {*ran, *cached}
    assert [tab.picture(i, vue, go=False)[1] for i in saves] == [64] * len(saves)
    legible(tab, vue)
    tab.shot(f"run_{label(case)}")
    if name == "quick_erase":
        shows_its_result(tab, vue)
    assert not tab.errors


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_a_box_can_be_looked_into_and_keeps_what_was_written(wide, vue):
    """No two nodes in a box lie over each other, and its own values are the same afterwards."""
    workflow = in_world("quick_erase")
    boxes = {one["id"] for one in workflow["definitions"]["subgraphs"]}
    wide.opened(workflow, vue)
    values = "id => app.rootGraph.getNodeById(id).widgets.map(w => w.value)"
    enter = "id => { const n = app.graph.getNodeById(id); app.canvas.openSubgraph(n.subgraph, n) }"
    write = "id => { app.graph.getNodeById(id).widgets[0].value = 'fox -> animal' }"
    for node in [n for n in workflow["nodes"] if n["type"] in boxes]:
        wide.js(write, node["id"])
        before = wide.js(values, node["id"])
        wide.js(enter, node["id"])
        wide.until("id => app.canvas.graph !== app.rootGraph", node["id"])
        assert not crowded(wide.boxes(vue)), node["title"]
        wide.shot(f"inside_{node['title'].split()[0]}-{'vue' if vue else 'classic'}")
        wide.js("() => app.canvas.setGraph(app.rootGraph)")
        wide.boxes(vue)
        assert wide.js(values, node["id"]) == before and before[0] == "fox -> animal"
    assert not wide.errors


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_a_wire_over_a_title_and_a_node_over_another_are_seen(wide, vue):
    """Planted, so that the tests above can fail."""
    workflow = in_world("erase_sdxl")
    nodes = {n["title"]: n for n in workflow["nodes"]}
    nodes["Report in Words"]["pos"] = [860, 750]  # where the wire to the last decoder runs
    nodes["Picture Before"]["pos"] = [x - 40 for x in nodes["Picture After"]["pos"]]
    wide.opened(workflow, vue)
    assert wide.js(WIRES, vue) == [["Report in Words", "Load Checkpoint -> Decode After"]]
    assert crowded(wide.boxes(vue)) == [("Picture Before", "Picture After")]


def shows_its_result(tab, vue):
    """The report on the face of Erase Concepts, and a divider between the two pictures.

    The face says in words what came out. In classic no box of text lies over its sockets.
    """
    nodes = {n["title"]: n["id"] for n in graphs.load("quick_erase")["nodes"]}
    host, compare = nodes[graphs.BLUEPRINT], nodes["Compare Images"]
    said = tab.js("id => app.graph.getNodeById(id).unlearnText", host).splitlines()
    if vue:
        face = tab.page.locator(f"[data-node-id='{host}']")
        face.locator("img").first.wait_for()
        assert said and said[0] in face.locator(".unlearn-said").inner_text()
        tab.page.get_by_test_id("image-compare-viewport").locator("img").nth(1).wait_for()
        return
    assert said and tab.page.locator(".dom-widget").filter(has_text=said[0]).count() == 0
    pictures = "[...app.graph.getNodeById(id).unlearnPictures?.values() ?? []]"
    loaded = f"{pictures}.filter(i => i.naturalWidth).length"
    tab.until(f"id => {loaded} === 1", host)
    tab.until(f"id => {loaded} === 2", compare)
    at = tab.js(
        "id => { const n = app.graph.getNodeById(id), d = app.canvas.ds; return [0.25, 0.5]"
        ".map((k, i) => (n.pos[i] + k * n.size[i] + d.offset[i]) * d.scale) }",
        compare,
    )
    tab.page.mouse.move(*at)
    tab.page.mouse.move(at[0] + 1, at[1])
    tab.until("id => app.graph.getNodeById(id).unlearnShare < 0.35", compare)
    tab.shot("divider_classic")
