"""The artist's path over HTTP: erase, sample, save a checkpoint, load it, refuse bad input."""

import json
import os
import urllib.request

import numpy as np
import pytest

from testbed import demo, graphs, pack
from testbed.server import BASE, Failed, Server
from testbed.worlds import captions, checkpoint
from testbed.worlds.evaluate import judge_picture
from testbed.worlds.sprites import OBJECTS, STYLES, SUPERCLASS

pytestmark = pytest.mark.server
FORGET = ("fox", "house")


@pytest.fixture(scope="module")
def server(checkpoint):
    with Server(log=BASE / "test-server.log") as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint_name(checkpoint):
    return checkpoint.name


def graph(text="an image of a fox", **concepts):
    """The quick-erase example with the sprite world in it, one prompt, few steps."""
    g = graphs.to_api(graphs.load("erase_sdxl"))
    graphs.put(g, "Load Checkpoint", ckpt_name=checkpoint.NAME)
    keep = "\n".join([*(n for n in OBJECTS if n not in FORGET), *STYLES])
    objects = {
        "forget": "\n".join(f"{n} -> {SUPERCLASS[n]}" for n in FORGET),
        "keep": keep,
    } | concepts
    graphs.put(g, "Objects to Forget", **objects)
    g[graphs.titled(g, "ScaPre Solve")]["inputs"]["concepts"] = [
        graphs.titled(g, "Objects to Forget"),
        0,
    ]
    del g[graphs.titled(g, "Styles to Forget")]
    graphs.put(g, "Prompt", text=text)
    graphs.put(g, "Picture Size", width=64, height=64, batch_size=4)
    for name in ("Before", "After"):
        graphs.put(g, name, steps=12, cfg=3.0, seed=5)
    return g


def pictures(server, outputs, g, title):
    return [
        np.asarray(server.image(i), np.int16) for i in outputs[graphs.titled(g, title)]["images"]
    ]


def seen(server, outputs, g, title, name):
    judge = checkpoint.load_judge()
    look = [
        judge_picture(judge, demo.pixels(server.image(i)), captions.Caption("", name))
        for i in outputs[graphs.titled(g, title)]["images"]
    ]
    return np.mean([x.correct for x in look])


def defaults(kind, names):
    """The defaults of some inputs of a node of this pack."""
    schemas = {s.node_id: s for s in (n.define_schema() for n in pack.module("nodes").NODES)}
    inputs = schemas[kind].inputs if kind in schemas else []
    return {i.id: i.default for i in inputs if i.id in names}


@pytest.mark.parametrize("name", graphs.SOURCES)
def test_an_example_graph_is_the_one_it_was_drawn_from(name):
    """The UI-format file converts to the graph in benchmarks/workflow.py, input by input."""
    got, want = graphs.to_api(graphs.load(name), muted=True), graphs.source(name)
    drawn = graphs.load(name)
    boxes = drawn.get("definitions", {}).get("subgraphs", [])
    controls = [
        v
        for n in [*drawn["nodes"], *(inner for box in boxes for inner in box["nodes"])]
        for v in n.get("widgets_values") or []
        if v in ("fixed", "randomize")
    ]
    assert set(controls) == {"fixed"}  # before and after must share a seed, run after run

    def by_title(g):
        return {n["_meta"]["title"]: n["class_type"] for n in g.values()}

    assert by_title(got) == by_title(want)
    for title in by_title(want):
        a, b = (g[graphs.titled(g, title)]["inputs"] for g in (got, want))

        def values(d):
            return {k: v for k, v in d.items() if not isinstance(v, list)}

        # What the source leaves out has its default in the file.
        assert values(a) == {**defaults(by_title(want)[title], set(a) - set(b)), **values(b)}, title

        def wired(g, d):
            return {
                k: (g[str(v[0])]["_meta"]["title"], v[1])
                for k, v in d.items()
                if isinstance(v, list)
            }

        assert wired(got, a) == wired(want, b), title


def test_the_plain_graph_forgets(server):
    g = graph()
    outputs = server.run(g)
    assert seen(server, outputs, g, "Picture Before", "fox") >= 0.75
    assert seen(server, outputs, g, "Picture After", "fox") <= 0.25
    assert "Forgets 2 concepts" in outputs[graphs.titled(g, "Report in Words")]["text"][0]


def test_a_saved_checkpoint_gives_the_same_pictures(server):
    g = graph()
    apply, loader = graphs.titled(g, "Apply Unlearn Patch"), graphs.titled(g, "Load Checkpoint")
    g["save"] = {
        "class_type": "CheckpointSave",
        "inputs": {
            "model": [apply, 0],
            "clip": [loader, 1],
            "vae": [loader, 2],
            "filename_prefix": "test/forgot",
        },
        "_meta": {"title": "Save"},
    }
    live = pictures(server, server.run(g), g, "Picture After")
    saved = max((BASE / "output" / "test").glob("forgot_*.safetensors"), key=os.path.getmtime)
    target = BASE / "models" / "checkpoints" / "test_forgot.safetensors"
    os.replace(saved, target)
    try:
        again = graph()
        graphs.put(again, "Load Checkpoint", ckpt_name=target.name)
        for title in (
            "After",
            "Decode After",
            "Picture After",
            "Apply Unlearn Patch",
            "ScaPre Solve",
            "Report",
            "Report in Words",
            "Objects to Forget",
        ):
            del again[graphs.titled(again, title)]
        outputs = server.run(again)
        reloaded = pictures(server, outputs, again, "Picture Before")
        assert len(live) == len(reloaded) == 4
        assert max(np.abs(a - b).max() for a, b in zip(live, reloaded, strict=True)) <= 2
        assert seen(server, outputs, again, "Picture Before", "fox") <= 0.25
    finally:
        target.unlink()


def test_a_settings_change_runs_again_and_the_plain_model_stays(server):
    g = graph()
    before = pictures(server, server.run(g), g, "Picture Before")
    graphs.put(g, "Apply Unlearn Patch", strength=0.0)
    outputs = server.run(g)
    after = pictures(server, outputs, g, "Picture After")
    assert len(before) == len(after) == 4
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"forget": ""}, "forget list is empty"),
        ({"forget": "cat", "keep": "cat"}, "keep list"),
        ({"forget": "very " * 76 + "old cat"}, "reads 75"),
        ({"forget": "very " * 80 + "old cat"}, "at most 400"),
        ({"forget": "\u200b"}, "forget list is empty"),
        ({"forget": "embedding:not_there"}, "no embedding 'not_there' in models/embeddings"),
    ],
)
def test_bad_lists_are_refused_in_one_sentence(server, change, says):
    with pytest.raises(Failed, match=says) as error:
        server.run(graph(**change))
    assert len(str(error.value).strip().splitlines()) == 1


def test_cancel_and_run_again(server):
    g = graph("a drawing of a house", keep="\n".join(OBJECTS[4:8]))
    g[graphs.titled(g, "ScaPre Solve")]["inputs"]["variant.preserve"] = 1.25
    with pytest.raises(Failed, match="(?i)interrupt|Processing"):
        server.cancel(server.queue(g))
    assert server.run(g)


def test_help_pages_and_template_are_served(server):
    for node in (
        "UnlearnConcepts",
        "ScaPreSolve",
        "ApplyUnlearnPatch",
        "ConceptSaliency",
        "NeuronMaskFuse",
    ):
        info = server.get(f"/object_info/{node}")[node]
        assert info["category"] == "unlearn" and info["description"]
        with urllib.request.urlopen(
            f"{server.url}/extensions/ComfyUI-Unlearn/docs/{node}.md", timeout=20
        ) as page:
            assert len(page.read()) > 300
    assert graphs.TITLES["quick_erase"] in json.dumps(server.get("/workflow_templates"))
