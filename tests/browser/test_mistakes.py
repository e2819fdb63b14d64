"""Typical mistakes in the real frontend: the sentence is readable on the node and in the toast.

Each is an API-format graph of a few nodes, opened and queued in one page, first in the classic
renderer and then in Nodes 2.0. Pictures of the screen are in output/browser/.
"""

import re

import frontend
import pytest
from safetensors.torch import load_file, save_file

from testbed import judged, pack, tiny
from testbed.server import BASE
from testbed.worlds import checkpoint as world

pytestmark = pytest.mark.browser
MODELS = BASE / "models"
BARE = MODELS / "checkpoints" / "without_text_encoder.safetensors"
FOREIGN = MODELS / "unlearn_patches" / "a_foreign_file.safetensors"
TOAST, OVERLAY = ".p-toast-message", "[data-testid='error-overlay']"


def node(kind, **inputs):
    """A node of the pack with its default values and these inputs."""
    nodes = {one.define_schema().node_id: one for one in pack.module("nodes").NODES}
    given = {}
    for key, value in tiny.defaults(nodes[kind].define_schema().inputs).items():
        settings = value if isinstance(value, dict) else {}
        given |= {f"{key}.{k}": v for k, v in settings.items() if k != key}
        given[key] = settings.get(key, value)
    title = nodes[kind].define_schema().display_name
    return {"class_type": kind, "inputs": {**given, **inputs}, "_meta": {"title": title}}


def host(name, **inputs):
    return {"class_type": name, "inputs": inputs, "_meta": {"title": name}}


def loader(name=world.NAME):
    return host("CheckpointLoaderSimple", ckpt_name=name)


def shown(source):
    """An output node, so that the host runs what leads to it."""
    return host("PreviewAny", source=source)


FOX = node("UnlearnConcepts", forget="fox -> animal", keep="")
NO_PRIOR = {"prior": False}
SOLVED = {
    "1": loader(),
    "2": FOX,
    "3": node("ScaPreSolve", model=["1", 0], clip=["1", 1], concepts=["2", 0], **NO_PRIOR),
}


def solve(concepts=FOX, start=None, **inputs):
    given = {"model": ["1", 0], "clip": ["1", 1], "concepts": ["2", 0], **NO_PRIOR, **inputs}
    return {
        "1": start or loader(),
        "2": concepts,
        "3": node("ScaPreSolve", **given),
        "4": shown(["3", 2]),
    }


def applied(**inputs):
    given = {"model": ["1", 0], "patches.patch0": ["3", 0], **inputs}
    return {**SOLVED, "5": node("ApplyUnlearnPatch", **given), "6": shown(["5", 1])}


def other_model():
    graph = applied(model=["7", 0], mismatch="error")
    return {**graph, "7": loader(judged.SHOWN.world.checkpoint)}


def linked_number():
    return {**applied(strength=["8", 0]), "8": host("PrimitiveFloat", value=5.0)}


def own_pictures():
    trainer = node("DynamicMaskTrainer", model=["1", 0], clip=["1", 1], concepts=["2", 0])
    trainer["inputs"]["images"] = ["7", 0]
    picture = host("EmptyImage", width=64, height=64, batch_size=1, color=0)
    return {"1": loader(), "2": FOX, "7": picture, "3": trainer, "4": shown(["3", 3])}


def unpatched():
    save = node("SaveUnlearnedCheckpoint", model=["1", 0], filename_prefix="unlearned")
    return {"1": loader(), "3": save}


def nameless():
    return {**SOLVED, "5": node("SaveUnlearnPatch", patch=["3", 0], name="")}


# What went wrong: the graph, the node that stops, and how its sentence begins.
MISTAKES = {
    "nothing to forget": (
        solve(node("UnlearnConcepts", forget="", keep="")),
        "2",
        "The forget list is empty",
    ),
    "a line without a name": (
        solve(node("UnlearnConcepts", forget="-> animal", keep="")),
        "2",
        "The forget line '-> animal' names no concept",
    ),
    "a template without {concept}": (solve(templates="a photo of it"), "3", "The"),
    "a patch of another model": (other_model(), "5", "The"),
    "a file that is no patch": (
        {"3": node("LoadUnlearnPatch", name=FOREIGN.name), "4": shown(["3", 1])},
        "3",
        "The",
    ),
    "pictures without a vae": (own_pictures(), "3", "The input 'images' needs the input 'vae'"),
    "a linked number out of range": (linked_number(), "5", "The input 'strength' is 5.0"),
    "a save without a name": (nameless(), "5", "The"),
    "a file without a text encoder": (
        solve(start=loader(BARE.name)),
        "3",
        "The input 'clip' brings nothing",
    ),
    "a checkpoint without a patch": (unpatched(), "3", "The"),
}


@pytest.fixture(scope="module")
def page(tab):
    """The page, with a checkpoint that has no text encoder and a patch file of someone else."""
    tensors = load_file(MODELS / "checkpoints" / world.NAME)
    unet = {k: v for k, v in tensors.items() if not k.startswith("cond_stage_model.")}
    save_file(unet, BARE)
    FOREIGN.parent.mkdir(exist_ok=True)
    save_file({"a": next(iter(unet.values()))}, FOREIGN)
    tab.page.set_viewport_size({"width": 1366, "height": 768})
    yield tab.page
    tab.page.set_viewport_size({"width": 1600, "height": 1000})
    for path in (BARE, FOREIGN):
        path.unlink()


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def renderer(page, request):
    page.evaluate(
        "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param
    )
    return "vue" if request.param else "classic"


def opened(page, graph, name="mistake"):
    page.evaluate("() => app.extensionManager.toast.removeAll()")
    page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, name])
    page.wait_for_function("n => app.graph._nodes.length === n", arg=len(graph))
    page.evaluate("() => { seen.length = 0 }")


def run(page, graph):
    """The error that stops a graph."""
    opened(page, graph)
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(frontend.OVER, timeout=120000)
    return page.evaluate("() => seen.find(([n]) => n === 'execution_error')?.[1]")


def text_on(page, number, text, renderer):
    """The element that shows a text on a node, brought into view."""
    page.evaluate(
        "id => { const n = app.graph.getNodeById(id); app.canvas.ds.scale = 1; "
        "app.canvas.centerOnNode(n); app.canvas.setDirty(true, true) }",
        int(number),
    )
    around = page.locator(f"[data-node-id='{number}']" if renderer == "vue" else ".dom-widget")
    assert page.evaluate("n => app.graph.getNodeById(n).flags?.collapsed !== true", int(number))
    return around.get_by_text(text).last


def in_sight(element):
    """Whether an element is shown in full: no box around it cuts it off."""
    element.wait_for(timeout=10000)
    for _ in range(20):
        if element.evaluate(WHOLE):
            return True
        element.page.wait_for_timeout(100)
    return False


WHOLE = """e => {
    const own = e.getBoundingClientRect()
    for (let box = e.parentElement; box; box = box.parentElement) {
        const around = box.getBoundingClientRect()
        const cuts = getComputedStyle(box).overflowY !== 'visible'
        if (cuts && around.height && own.bottom > around.bottom + 1) return false
    }
    return own.height > 0
}"""


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_sentence_is_on_the_node_and_in_the_toast(page, renderer, mistake):
    graph, number, begins = MISTAKES[mistake]
    failed = run(page, graph)
    assert failed["node_id"] == number and failed["exception_type"] == "Unlearn"
    sentence = flat(failed["exception_message"])
    assert begins in sentence
    toast = page.locator(TOAST).filter(has_text=sentence)
    toast.first.wait_for(timeout=10000)
    assert graph[number]["_meta"]["title"] in toast.first.inner_text() and toast.count() == 1
    text = text_on(page, number, sentence, renderer)
    name = re.sub("[^a-z]+", "_", f"mistake {mistake}_{renderer}")
    page.screenshot(path=frontend.SHOTS / f"{name}.png")
    assert in_sight(text), "the end of the text is cut off"


def without(graph, number, name):
    inputs = {k: v for k, v in graph[number]["inputs"].items() if k != name}
    return {**graph, number: {**graph[number], "inputs": inputs}}


# Mistakes that ComfyUI itself sees before anything runs: the graph, the node, and what is said.
# A number out of range is none: the frontend brings it into the range.
SEEN_BY_THE_HOST = {
    "a preset that is gone": (
        solve(node("UnlearnConcepts", forget="fox", preset="gone")),
        "2",
        "The value gone for Concepts to Forget's preset is not available.",
    ),
    "nothing connected": (
        without(solve(), "3", "clip"),
        "3",
        "ScaPre Solve is missing a required input: clip",
    ),
}


@pytest.mark.parametrize("mistake", SEEN_BY_THE_HOST)
def test_what_the_host_refuses_is_in_its_own_toast_and_marked_on_the_node(page, renderer, mistake):
    graph, number, sentence = SEEN_BY_THE_HOST[mistake]
    opened(page, graph)
    page.evaluate("() => { app.queuePrompt(0) }")
    page.locator(OVERLAY).filter(has_text=sentence).wait_for(timeout=10000)
    assert page.evaluate("id => app.graph.getNodeById(id).has_errors", int(number))
    name = re.sub("[^a-z]+", "_", f"refused {mistake}_{renderer}")
    page.screenshot(path=frontend.SHOTS / f"{name}.png")


def test_the_classic_renderer_names_the_boxes_of_what_to_forget_and_keep(page):
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    opened(page, solve())
    page.evaluate("() => { app.canvas.ds.scale = 1; app.canvas.centerOnNode(app.graph._nodes[1]) }")
    drawn = page.evaluate(
        """() => {
            app.canvas.draw(true, true) // the widgets get their places
            const plain = CanvasRenderingContext2D.prototype.fillText, drawn = []
            CanvasRenderingContext2D.prototype.fillText = function (text, ...more) {
                drawn.push(text); return plain.call(this, text, ...more)
            }
            app.canvas.draw(true, true)
            CanvasRenderingContext2D.prototype.fillText = plain
            return drawn
        }"""
    )
    page.screenshot(path=frontend.SHOTS / "names_classic.png")
    assert "FORGET" in drawn and "KEEP" in drawn
