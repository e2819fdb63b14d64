"""Every example workflow runs on a headless ComfyUI and has a picture; the blueprint is served."""

import json

import numpy as np
import pytest
from PIL import Image

from testbed import example_pictures, graphs, judged
from testbed.server import BASE, Server

pytestmark = pytest.mark.server
TASK = judged.SPRITES
FOX = ["an image of a fox"]


@pytest.fixture(scope="module")
def server(checkpoint):
    with Server(log=BASE / "test-server-examples.log", leaves=example_pictures.SAVED) as running:
        yield running


@pytest.mark.parametrize("name", graphs.SOURCES)
def test_it_runs_and_gives_pictures(server, name):
    """The file with its own graph, but other checkpoint, words, sizes and steps.

    The muted part runs after the first run.
    """
    (shots,) = example_pictures.runs(server, name, FOX, TASK, quick=True)
    saves = [n for n in graphs.source(name).values() if n["class_type"] == "SaveImage"]
    assert len(shots) == len(saves) >= 2
    for label, picture in shots:
        assert picture.size == (64, 64) and np.asarray(picture).std() > 0, label


def test_what_was_saved_draws_as_the_live_patch(server):
    (shots,) = example_pictures.runs(server, "export_and_reload", FOX, TASK, quick=True)
    found = {label: np.asarray(picture, np.int16) for label, picture in shots}
    assert np.abs(found["before"] - found["live"]).max() > 5
    for again in ("from patch", "from LoRA"):
        assert np.abs(found[again] - found["live"]).max() <= 2, again


@pytest.mark.parametrize("name", graphs.SOURCES)
def test_the_file_is_whole(name):
    """A picture beside it, where to download its checkpoint, and which pack its nodes come from."""
    nodes = graphs.load(name)["nodes"]
    with Image.open(graphs.path(name).with_suffix(".jpg")) as picture:
        assert picture.width >= 600 and picture.height >= 600
    (loader,) = [n for n in nodes if n["type"] == "CheckpointLoaderSimple"]
    (model,) = loader["properties"]["models"]
    assert (
        model["directory"] == "checkpoints"
        and model["url"].endswith(model["name"])
        and [model["name"]] == loader["widgets_values"]
    )
    assert {n["properties"]["cnr_id"] for n in nodes if n["type"] != "MarkdownNote"} == {
        "unlearn-diffusion",
        "comfy-core",
    }
    assert not set(overlaps(nodes))


def test_pictures_wait_neither_for_the_solve_nor_for_the_report(server):
    """ComfyUI runs what is near an output first; see `graphs.erase_concepts`."""
    graph = example_pictures.small("quick_erase", TASK, quick=True)
    graphs.put(graph, "Prompt", text="this is a lamp that nobody has drawn yet")
    graphs.put(graph, "Concepts to Forget", forget="lamp")  # or the solve may be cached
    with server.messages() as seen:
        server.run(graph)
    order = [m["data"]["node"] for m in seen if m["type"] == "executing"]
    titles = "Picture Before", "ScaPre Solve", "Picture After", "Erasure Report"
    places = [order.index(graphs.titled(graph, title)) for title in titles]
    assert places == sorted(places)


@pytest.mark.parametrize("name", graphs.FAMILIES)
def test_a_familys_file_is_whole(name):
    """As the others; a loader for each of its files, which says where to download them."""
    nodes = graphs.load(name)["nodes"]
    with Image.open(graphs.path(name).with_suffix(".jpg")) as picture:
        assert picture.width >= 600 and picture.height >= 600
    loaders = [n for n in nodes if n["type"] in LOADERS]
    assert {n["type"] for n in loaders} >= {"UNETLoader", "VAELoader"} and len(loaders) == 3
    for loader in loaders:
        files = [value for value in loader["widgets_values"] if value.endswith(".safetensors")]
        models = loader["properties"]["models"]
        assert files and [model["name"] for model in models] == files
        assert {model["directory"] for model in models} == {LOADERS[loader["type"]]}
        assert all(model["url"].endswith(model["name"]) for model in models)
    assert not any(n["type"] == "CheckpointLoaderSimple" for n in nodes)
    packs = {n["properties"]["cnr_id"] for n in nodes if n["type"] != "MarkdownNote"}
    assert packs == {"unlearn-diffusion", "comfy-core"} and not set(overlaps(nodes))


LOADERS = {
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "VAELoader": "vae",
}


@pytest.mark.parametrize("name", graphs.FAMILIES)
def test_a_familys_graph_goes_with_the_nodes_of_the_host(server, name):
    """Its links are of the types that the nodes take, nothing is missing, and choices exist."""
    info, graph = server.get("/object_info"), graphs.to_api(graphs.load(name))
    for node in graph.values():
        known = info[node["class_type"]]["input"]
        inputs = {**known.get("required", {}), **known.get("optional", {})}
        assert {k for k in known.get("required", {}) if "." not in k} - {"patches"} <= {
            k.partition(".")[0] for k in node["inputs"]
        }
        for key, value in node["inputs"].items():
            if "." in key:  # of a choice or a list of sockets that the page opens
                assert key.partition(".")[0] in inputs, key
                continue
            kind, *rest = inputs[key]
            if isinstance(value, list):
                given = info[graph[value[0]]["class_type"]]["output"][value[1]]
                assert kind in (given, "*") or given in kind.split(","), (key, kind, given)
            elif key not in FILES:
                options = kind if isinstance(kind, list) else rest[0].get("options")
                keys = [o["key"] if isinstance(o, dict) else o for o in options or [value]]
                assert value in keys, (key, value)


@pytest.mark.parametrize("name", graphs.FAMILIES)
def test_a_familys_file_is_drawn_from_its_source(name):
    """Input by input. The page adds those that a source leaves at their defaults."""
    got, want = graphs.to_api(graphs.load(name)), graphs.source(name)
    assert set(got) == set(want)
    for i, node in want.items():
        given = {key: got[i]["inputs"].get(key) for key in node["inputs"]}
        assert got[i]["class_type"] == node["class_type"] and given == node["inputs"]


FILES = ("unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name")


def test_every_family_has_a_headline():
    assert set(example_pictures.FAMILY_TITLES) == set(graphs.FAMILIES)


def overlaps(nodes):
    """Pairs of titles whose nodes, with their title bars, lie over each other."""
    boxes = [
        (n["title"], *n["pos"], *((160, 0) if n["flags"].get("collapsed") else n["size"]))
        for n in nodes
    ]
    for k, (a, ax, ay, aw, ah) in enumerate(boxes):
        for b, bx, by, bw, bh in boxes[k + 1 :]:
            if ax < bx + bw and bx < ax + aw and ay - 30 < by + bh and by - 30 < ay + ah:
                yield a, b


def test_the_templates_and_the_blueprint_are_served(server):
    served = set(server.get("/workflow_templates")["ComfyUI-Unlearn"])
    assert set(graphs.TITLES.values()) == served
    for name, box in graphs.BOXES.items():
        serves_blueprint(server, name, box())


def serves_blueprint(server, name, box):
    listed = {k: v for k, v in server.get("/global_subgraphs").items() if v["name"] == name}
    ((key, entry),) = listed.items()
    assert entry["info"]["node_pack"] == "custom_nodes.ComfyUI-Unlearn"
    (inner,) = json.loads(server.get(f"/global_subgraphs/{key}")["data"])["definitions"][
        "subgraphs"
    ]
    assert {n["type"] for n in inner["nodes"]} <= set(server.get("/object_info"))
    assert [i["name"] for i in inner["inputs"]] == [name for name, *_ in box.inputs]
    assert [o["name"] for o in inner["outputs"]] == [name for name, *_ in box.outputs]


def test_titles_are_unique_and_in_order():
    assert set(graphs.TITLES) == {*graphs.SOURCES, *graphs.FAMILIES}
    titles = [*graphs.TITLES.values()]
    assert len(set(titles)) == len(titles)
    numbers = [int(title.split()[0]) for title in titles]
    assert numbers == sorted(numbers) and numbers[: len(graphs.SOURCES)] == [
        *range(1, len(graphs.SOURCES) + 1)
    ]
    assert {path.stem for path in graphs.FOLDER.glob("*.json")} == set(titles)


@pytest.mark.parametrize("name", ["quick_erase", "compare_variants", "export_and_reload"])
def test_a_workflow_saved_by_an_older_version_still_runs(server, name):
    """Templates of 0.3, as artists have them on disk."""
    old = json.loads((OLD / f"{name}.json").read_text(encoding="utf-8"))
    graph = graphs.to_api(old)
    side = 8 * TASK.world.size
    few = {"seed": 5, "steps": 2}
    for node in graph.values():
        inputs = node["inputs"]
        inputs |= {"ckpt_name": TASK.world.checkpoint} if "ckpt_name" in inputs else {}
        inputs |= {"width": side, "height": side} if "width" in inputs else {}
        inputs |= few if node["class_type"] == "KSampler" else {}
        inputs |= {"prior": False} if "prior" in inputs else {}
    outputs = server.run(graph)
    saves = [i for i, n in graph.items() if n["class_type"] == "SaveImage"]
    assert len(saves) >= 2 and all(outputs[i]["images"] for i in saves)


OLD = graphs.FOLDER.parent / "tests" / "data" / "templates"


WORLDS = pytest.mark.parametrize("task", (judged.SPRITES, judged.EMOJI), ids=("sprites", "emoji"))


@WORLDS
def test_the_world_knows_the_words(task):
    """Whatever stands in for a workflow's concepts is something the small model can draw."""
    plans = example_pictures.plans(task)
    assert set(plans) == set(graphs.SOURCES)
    for name, plan in plans.items():
        world = example_pictures.task_of(name, task).world
        names = {n for names in plan.concepts.values() for n in names}
        assert names and names <= {*world.bitmaps, *world.styles, world.explicit_word}
        assert all(any(n in text for n in names) for text in plan.gone)
        assert not any(n in text for n in names for text in plan.kept)


@WORLDS
@pytest.mark.parametrize("name", graphs.SOURCES)
def test_a_workflow_is_saved_with_the_world_in_it(name, task):
    """Choices with widgets of their own too: the trainer's custom preset."""
    graph = example_pictures.small(name, task, muted=True)
    saved = graphs.filled(graphs.load(name), graph)
    assert graphs.to_api(saved, muted=True) == graph
    assert not any("models" in node["properties"] for node in saved["nodes"])


def test_a_value_without_a_place_is_refused():
    graph = example_pictures.small("quick_erase", TASK)
    graphs.put(graph, "Before", **{"denoize": 1.0})
    with pytest.raises(KeyError, match="'KSampler' has no widget denoize"):
        graphs.filled(graphs.load("quick_erase"), graph)
