"""The real frontend in a headless Chromium: search, help, links, the Run button, `dev.py serve`.

What does not depend on the renderer is tested in classic; test_templates.py has both. Pictures of
the screen at the end of each test are in output/browser/.
"""

import json
import re

import pytest
from frontend import BOXES, Tab

from testbed import example_pictures, graphs, judged, pack, serve, tiny
from testbed.worlds import checkpoint as world

pytestmark = pytest.mark.browser
ROOT = graphs.FOLDER.parent


def small(name, seed):
    """An example workflow with the sprite world's checkpoint, words, sizes and few steps."""
    graph = example_pictures.small(name, judged.SPRITES, muted=True, quick=True)
    for node in graph.values():
        more = {"KSampler": {"seed": seed}, "UnlearnConcepts": {"keep": "cat"}}
        node["inputs"].update(more.get(node["class_type"], {}))
    return graph


def load(tab, name, seed=7):
    """Opens `small`."""
    return tab.shows(graphs.filled(graphs.load(name), small(name, seed)), False)


def ids(name, *titles):
    graph = graphs.source(name)
    return [int(graphs.titled(graph, title)) for title in titles]


FACES = {"ScaPreSolve": ["variant", "strength"]}
FACES["DynamicMaskTrainer"] = ["variant", "preset", "strength"]
VISIBLE = "n.widgets.filter(w => n.isWidgetVisible(w)).map(w => w.name)"


@pytest.mark.parametrize("kind", FACES)
def test_advanced_inputs_are_hidden_in_classic_too(tab, kind):
    """A button shows them. Values and their places in a saved workflow stay as they are."""
    tab.page.keyboard.press("Escape")
    tab.js("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    tab.js("kind => { app.graph.clear(); app.graph.add(LiteGraph.createNode(kind)) }", kind)
    node = "const n = app.graph._nodes[0];"
    face, saved, height = tab.js(
        f"() => {{ {node} return [{VISIBLE}, n.serialize().widgets_values, n.size[1]] }}"
    )
    assert face == [*FACES[kind], "advanced_inputs"] and len(face) <= 6
    press = "n.widgets.find(w => w.name === 'advanced_inputs').callback();"
    everything, again, taller = tab.js(
        f"() => {{ {node} {press} return [{VISIBLE}, n.serialize().widgets_values, n.size[1]] }}"
    )
    assert len(everything) > 15 and again == saved and taller > height
    folded, lower = tab.js(f"() => {{ {node} {press} return [{VISIBLE}, n.size[1]] }}")
    assert folded == face and lower == height


def test_an_advanced_input_that_is_connected_is_shown_in_classic(tab):
    face = tab.js(
        """() => {
            app.graph.clear()
            const [n, p] = ['ScaPreSolve', 'PrimitiveFloat'].map(t => LiteGraph.createNode(t))
            for (const one of [n, p]) app.graph.add(one)
            p.connect(0, n, n.inputs.findIndex(i => i.name === 'hard_keep'))
            return n.widgets.filter(w => n.isWidgetVisible(w)).map(w => w.name)
        }"""
    )
    assert face == ["variant", "hard_keep", "strength", "advanced_inputs"]


def test_the_templates_have_pictures_and_open_with_a_click(tab):
    page = tab.page
    tab.js("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("ComfyUI-Unlearn").first.click()
    for title in (graphs.TITLES[name] for name in graphs.SOURCES):
        card = page.get_by_test_id(f"template-workflow-{title}")
        card.scroll_into_view_if_needed()  # its picture is made when it comes into view
        card.locator("img").first.wait_for()
        own = (
            "([name, side]) => document.querySelector("
            "`[data-testid='template-workflow-${name}'] img`).naturalWidth === side"
        )
        page.wait_for_function(own, arg=[title, example_pictures.SIDE], timeout=10000)
    tab.shot("templates")
    # `dev.py serve` has one list, and in it nothing that the small model cannot run.
    cards = page.locator("[data-testid^='template-workflow-']")
    names = {c.get_attribute("data-testid") for c in cards.all()}
    assert names == {f"template-workflow-{graphs.TITLES[n]}" for n in graphs.SOURCES}
    title = graphs.TITLES["quick_erase"]
    quick = page.get_by_test_id(f"template-workflow-{title}")
    quick.scroll_into_view_if_needed()
    quick.locator("img").first.click()
    count = len(graphs.load("quick_erase")["nodes"])
    page.wait_for_function("n => app.graph._nodes.length === n", arg=count)
    tab.shot("template_opened")


def test_a_model_that_is_missing_is_named_with_its_address(tab):
    page = tab.page
    tab.opened(graphs.load("quick_erase"))  # nobody has the checkpoint yet
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_test_id("missing-model-download").first.wait_for()
    assert graphs.CHECKPOINT in page.get_by_test_id("properties-panel").inner_text()


def test_serve_opens_a_graph_that_runs_with_one_click(context, server):
    """`dev.py serve` for a first visitor: nothing is missing, and Run gives both pictures.

    With few steps, one kept word, and without the general prior.
    """
    tab = Tab(context, serve.address(server.url))
    count = len(graphs.load("quick_erase")["nodes"])
    tab.until("n => app.graph._nodes.length === n", count, seconds=60)
    tab.settled(BOXES, False)
    assert tab.page.get_by_test_id("error-overlay").count() == 0
    quick, few = example_pictures.small("quick_erase", quick=True), ("steps", "kept", "prior")
    fewer = {
        i: {"inputs": {k: v for k, v in n["inputs"].items() if k in few}} for i, n in quick.items()
    }
    concepts = graphs.titled(quick, "Concepts to Forget")
    first = quick[concepts]["inputs"]["keep"].splitlines()[0]
    fewer[concepts] = {"inputs": {"keep": first}}
    with tab.sending(fewer):
        ran, _ = tab.run()
    saves = [str(i) for i in ids("quick_erase", "Picture Before", "Picture After")]
    side = 8 * judged.SHOWN.world.size
    assert set(saves) <= set(ran) and [tab.picture(i)[1] for i in saves] == [side, side]
    tab.shot("serve")
    tab.page.close()


def test_serve_opens_the_trainer_with_numbers_for_a_small_model(tab):
    """The widgets of its custom preset are in no file in example_workflows/."""
    name = graphs.path("one_after_another").name
    tab.opened(json.loads((serve.PACK / "example_workflows" / name).read_text("utf-8")))
    graph = example_pictures.small("one_after_another")
    trainer = graphs.titled(graph, "Dynamic Mask Trainer")
    shown = tab.js("async () => (await app.graphToPrompt()).output")[trainer]["inputs"]
    assert shown == graph[trainer]["inputs"]


def test_a_workflow_from_before_an_input_was_added_still_loads_and_runs(tab):
    """An older file holds the same values without the last ones, which get their defaults."""
    older = json.loads(json.dumps(graphs.load("erase_sdxl")).replace(graphs.SDXL, world.NAME))
    want = graphs.to_api(older)
    for node in older["nodes"]:
        if node["properties"].get("cnr_id") == "unlearn-diffusion":
            assert node["inputs"][-1]["widget"], "the last input is a widget in each of these nodes"
            node["inputs"].pop()
            node["widgets_values"].pop()
    tab.shows(older, False)
    sent = tab.js("app.graphToPrompt().then(p => p.output)")
    # Inputs that are younger than the file itself get their defaults too.
    schemas = {s.node_id: s for s in (n.define_schema() for n in pack.module("nodes").NODES)}
    for node in want.values():
        if node["class_type"] in schemas:
            defaults = tiny.defaults(schemas[node["class_type"]].inputs[-2:])
            simple = {k: v for k, v in defaults.items() if not isinstance(v, dict)}
            node["inputs"] = {**simple, **node["inputs"]}
    assert {i: n["inputs"] for i, n in sent.items()} == {i: n["inputs"] for i, n in want.items()}
    tab.js(
        """all => { for (const n of app.graph._nodes) for (const w of n.widgets ?? []) {
            w.value = all[n.id]?.inputs[w.name] ?? w.value
        } }""",
        small("erase_sdxl", seed=61),
    )
    ran, _ = tab.run()
    assert str(*ids("erase_sdxl", "Picture After")) in ran and not tab.errors


def test_a_changed_widget_runs_what_depends_on_it_and_nothing_else(tab):
    load(tab, "erase_sdxl", seed=21).run()
    tab.js(
        "() => { for (const n of app.graph._nodes) for (const w of n.widgets ?? []) if (n.type === "
        "'ApplyUnlearnPatch' && w.name === 'strength') w.value = 0.5 }"
    )
    ran, cached = tab.run()
    names = ("Apply Unlearn Patch", "After", "Decode After", "Picture After")
    assert set(ran) - set(cached) == {str(i) for i in ids("erase_sdxl", *names)}
    assert str(*ids("erase_sdxl", "ScaPre Solve")) in cached


def test_links_of_this_pack_have_colours(tab):
    """The frontend colours the types that it knows, after the packs are set up."""
    load(tab, "erase_sdxl")
    own = ("UNLEARN_CONCEPTS", "UNLEARN_SALIENCY", "UNLEARN_PATCH")
    colours = tab.js("names => names.map(n => LGraphCanvas.link_type_colors[n])", own)
    assert len(set(colours)) == 3 and all(colour.startswith("#") for colour in colours)


@pytest.mark.parametrize("word", ["erase", "forget", "unlearn"])
def test_search_finds_the_nodes(tab, word):
    tab.js("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = tab.page.get_by_role("search")
    box.get_by_role("combobox").fill(word)
    box.get_by_test_id("result-item").filter(has_text="Apply Unlearn Patch").first.wait_for()
    found = [text.splitlines()[0] for text in box.get_by_test_id("result-item").all_inner_texts()]
    tab.shot(f"search_{word}")
    tab.page.keyboard.press("Escape")
    wanted = {
        "Concepts to Forget",
        "ScaPre Solve",
        "Apply Unlearn Patch",
        "Dynamic Mask Trainer",
        "Erasure Report",
    }
    assert wanted <= set(found), found
    # The frontend finds a blueprint by its name; it reads the other words when it is opened.
    if word == "erase":
        assert found[0] == graphs.BLUEPRINT


def test_the_help_panel_shows_our_page(tab):
    load(tab, "erase_sdxl")
    (solve,) = ids("erase_sdxl", "ScaPre Solve")
    tab.js(
        "id => { const n = app.graph.getNodeById(id); app.canvas.centerOnNode(n); "
        "app.canvas.selectNode(n) }",
        solve,
    )
    tab.page.get_by_test_id("info-button").click()
    text = tab.page.locator(".node-help-content")
    text.get_by_text("What to try first").wait_for()
    page = (ROOT / "web" / "docs" / "ScaPreSolve.md").read_text(encoding="utf-8")

    def plain(t):
        return re.sub(r"[\s*`#-]+", " ", t)

    assert plain(page.split("\n\n")[1]).strip() in plain(text.inner_text()) and not tab.errors
    tab.page.wait_for_function(
        "() => document.querySelector('.node-help-content img')?.naturalWidth > 400", timeout=10000
    )
    tab.shot("help")


def test_sockets_come_and_go_with_links(tab):
    load(tab, "erase_sdxl")
    apply, solve = ids("erase_sdxl", "Apply Unlearn Patch", "ScaPre Solve")

    def change(how="", name=""):
        """Links or cuts a socket; returns which sockets there are and which of them are linked."""
        tab.js(
            """([how, from, to, name]) => {
                const node = app.graph.getNodeById(to)
                const slot = node.inputs.findIndex((i) => i.name === `patches.${name}`)
                if (how === 'link') app.graph.getNodeById(from).connect(0, node, slot)
                if (how === 'cut') node.disconnectInput(slot)
            }""",
            [how, solve, apply, name],
        )
        sockets = tab.settled(
            "id => app.graph.getNodeById(id).inputs.map(i => [i.name, i.link != null])", apply
        )
        return {
            k.removeprefix("patches."): linked for k, linked in sockets if k.startswith("patches.")
        }

    assert change() == {"patch0": True, "patch1": False}
    assert change("link", "patch1") == {"patch0": True, "patch1": True, "patch2": False}
    assert change("link", "patch2") == {
        "patch0": True,
        "patch1": True,
        "patch2": True,
        "patch3": False,
    }
    sent = tab.js("app.graphToPrompt().then(p => p.output)")[str(apply)]["inputs"]
    assert [k for k in sent if k.startswith("patches.")] == [
        "patches.patch0",
        "patches.patch1",
        "patches.patch2",
    ]
    assert change("cut", "patch1") == {"patch0": True, "patch1": True, "patch2": False}
    assert change("cut", "patch0") == {"patch0": True, "patch1": False}
    assert not tab.errors


def test_the_blueprint_is_one_box_that_runs(tab):
    """Found by search, placed, linked between loader and sampler; it forgets."""
    load(tab, "erase_sdxl", seed=31)
    page = tab.page
    tab.js("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("search").get_by_role("combobox").fill(graphs.BLUEPRINT)
    page.get_by_test_id("result-item").filter(has_text=graphs.BLUEPRINT).first.click()
    page.get_by_role("search").wait_for(state="hidden")
    page.mouse.move(300, 900)
    page.mouse.click(300, 900)
    placed = "name => app.graph._nodes.some(n => n.title === name && !n.flags.ghost)"
    tab.until(placed, graphs.BLUEPRINT)
    loader, after, apply, words = ids(
        "erase_sdxl", "Load Checkpoint", "After", "Apply Unlearn Patch", "Report in Words"
    )
    box = tab.js(
        """([name, loader, after, apply, words]) => {
            const at = (id) => app.graph.getNodeById(id)
            const box = app.graph._nodes.find((n) => n.title === name)
            const put = (from, slot, to, input) => {
                const k = at(to).inputs.findIndex((i) => i.name === input)
                at(from).connect(slot, at(to), k)
            }
            put(loader, 0, box.id, 'model'); put(loader, 1, box.id, 'clip')
            put(loader, 2, box.id, 'vae')
            put(box.id, 0, after, 'model'); put(box.id, 2, words, 'source')
            app.graph.remove(at(apply))
            box.pos = [490, 830]; app.canvas.centerOnNode(box)
            const texts = {forget: 'fox -> animal', keep: 'cat'}
            // The report inside draws few and small pictures here.
            const small = {steps: 1, size: 64, kept: 1}
            for (const n of box.subgraph.nodes) for (const w of n.widgets ?? []) {
                if (n.type === 'ErasureReport') w.value = small[w.name] ?? w.value
            }
            for (const w of box.widgets) w.value = texts[w.name] ?? w.value
            const names = (all) => all.map((x) => x.name)
            return [String(box.id), names(box.inputs), names(box.widgets), names(box.outputs)]
        }""",
        [graphs.BLUEPRINT, loader, after, apply, words],
    )
    assert box[1:] == [
        ["model", "clip", "forget", "keep", "kind", "strength", "vae"],
        ["forget", "keep", "kind", "strength"],
        ["model", "report_image", "report", "grid", "verdict"],
    ]
    ran, _ = tab.run()
    assert [i for i in ran if i.startswith(f"{box[0]}:")] and not tab.errors
    tab.shot("blueprint")


def test_export_and_reload_by_its_own_note(tab):
    """Run, R, a box with Ctrl around group 2, Ctrl+M, Run: as the note in it says."""
    for path in example_pictures.SAVED:
        path.unlink(missing_ok=True)
    load(tab, "export_and_reload", seed=41).run()
    assert all(path.exists() for path in example_pictures.SAVED)
    page = tab.page
    area = tab.js(
        """() => {
            const g = app.graph._groups[1]
            app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [120 - g.pos[0], 300 - g.pos[1]]
            app.canvas.setDirty(true, true)
            return g.size
        }"""
    )

    def at(x, y):
        """Where a place in the group is on the screen."""
        return round((x + 120) * 0.6), round((y + 300) * 0.6)

    page.keyboard.press("r")
    listed = "name => app.graph._nodes.some(n => n.widgets?.[0]?.options.values?.includes?.(name))"
    for path in example_pictures.SAVED:
        tab.until(listed, path.name)
    page.keyboard.down("Control")
    page.mouse.move(*at(-10, -5))
    page.mouse.down()
    page.mouse.move(*at(area[0] / 2, area[1] / 2), steps=4)
    page.mouse.move(*at(area[0] + 10, area[1] + 10), steps=4)
    page.mouse.up()
    page.keyboard.press("m")
    page.keyboard.up("Control")
    off = "app.graph._nodes.filter(n => n.mode === LiteGraph.NEVER).map(n => n.title)"
    tab.until(f"() => {off}.length === 1")
    tab.shot("export_switched_on")
    assert tab.js(off) == ["Save Unlearned Checkpoint"]
    ran, _ = tab.run()
    titles = ("Picture: from patch", "Picture: from LoRA")
    assert {str(i) for i in ids("export_and_reload", *titles)} <= set(ran) and not tab.errors
    tab.shot("export_reloaded")


def test_a_second_tab_leaves_the_first_alone(context, server, tab):
    before, after = ids("erase_sdxl", "Picture Before", "Picture After")
    load(tab, "erase_sdxl", seed=51).run()
    mine, graph = (
        [tab.picture(i) for i in (before, after)],
        tab.js("JSON.stringify(app.graph.serialize())"),
    )
    tab.js("() => { seen.length = 0 }")
    other = Tab(context, server.url)
    load(other, "erase_sdxl", seed=52)
    other.run()
    assert [tab.picture(i) for i in (before, after)] == mine and tab.js(
        "JSON.stringify(app.graph.serialize())"
    ) == graph
    assert (
        tab.js("seen.filter(([n]) => n === 'executing')") == []
        and not tab.errors
        and not other.errors
    )
    assert other.picture(after)[0] != mine[1][0]
    other.page.close()
    ran, cached = tab.run()
    assert not tab.errors and str(*ids("erase_sdxl", "ScaPre Solve")) in cached
