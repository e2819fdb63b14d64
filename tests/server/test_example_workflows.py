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
    with Image.open(graphs.FOLDER / f"{name}.jpg") as picture:
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


def overlaps(nodes):
    """Pairs of titles whose nodes, with their title bars, lie over each other."""
    boxes = [(n["title"], *n["pos"], *n["size"]) for n in nodes]
    for k, (a, ax, ay, aw, ah) in enumerate(boxes):
        for b, bx, by, bw, bh in boxes[k + 1 :]:
            if ax < bx + bw and bx < ax + aw and ay - 30 < by + bh and by - 30 < ay + ah:
                yield a, b


def test_the_templates_and_the_blueprint_are_served(server):
    assert set(graphs.SOURCES) <= set(server.get("/workflow_templates")["ComfyUI-Unlearn"])
    listed = {
        k: v for k, v in server.get("/global_subgraphs").items() if v["name"] == graphs.BLUEPRINT
    }
    ((key, entry),) = listed.items()
    assert entry["info"]["node_pack"] == "custom_nodes.ComfyUI-Unlearn"
    (inner,) = json.loads(server.get(f"/global_subgraphs/{key}")["data"])["definitions"][
        "subgraphs"
    ]
    assert {n["type"] for n in inner["nodes"]} <= set(server.get("/object_info"))
    assert [i["name"] for i in inner["inputs"]] == [
        "model",
        "clip",
        "forget",
        "keep",
        "kind",
        "strength",
    ]


WORLDS = pytest.mark.parametrize("task", (judged.SPRITES, judged.EMOJI), ids=("sprites", "emoji"))


@WORLDS
def test_the_world_knows_the_words(task):
    """Whatever stands in for a workflow's concepts is something the small model can draw."""
    plans = example_pictures.plans(task)
    assert set(plans) == set(graphs.SOURCES)
    for name, plan in plans.items():
        world = example_pictures.task_of(name, task).world
        names = {n for names in plan.concepts.values() for n in names}
        assert names and names <= {*world.bitmaps, *world.styles}
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
