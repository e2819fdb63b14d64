"""Measure, fuse, prune and sample over HTTP, with progress, cancel, and a saliency file."""

import time

import pytest

from testbed import graphs
from testbed.server import BASE, Failed, Server
from testbed.worlds import checkpoint

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(checkpoint):
    with Server(log=BASE / "test-server-fia.log") as running:
        yield running


def graph(**measure):
    """The neuron-pruning example on the sprite world: two concepts, few prompts and steps."""
    g = graphs.to_api(graphs.load("neuron_pruning"))
    graphs.put(g, "Load Checkpoint", ckpt_name=checkpoint.NAME)
    graphs.put(g, "Objects to Forget", forget="fox\nhouse", keep="")
    graphs.put(
        g,
        "Concept Saliency",
        **{"prompts": 2, "steps": 6, "window": 3, "cfg": 3.0, "size": 64} | measure,
    )
    graphs.put(g, "Prompt", text="an image of a fox")
    graphs.put(g, "Picture Size", width=64, height=64)
    for name in ("Before", "After"):
        graphs.put(g, name, steps=4, cfg=3.0)
    return g


def test_two_concepts_with_progress(server):
    g = graph()
    with server.messages() as seen:
        outputs = server.run(g)
    words = outputs[graphs.titled(g, "Report in Words")]["text"][0]
    assert "for 2 concepts" in words and "Prunes" in words
    assert (
        outputs[graphs.titled(g, "Picture After")]["images"]
        and outputs[graphs.titled(g, "Report")]["images"]
    )
    node = graphs.titled(g, "Concept Saliency")
    steps = [m["data"] for m in seen if m["type"] == "progress" and m["data"].get("node") == node]
    assert steps and steps[-1]["value"] == steps[-1]["max"] == 3 * 2 * 3  # groups, prompts, window


def test_another_r2_does_not_measure_again(server):
    g = graph(seed=77)
    server.run(g)
    graphs.put(g, "Fuse Neuron Masks", r2=0.05)
    with server.messages() as seen:
        server.run(g)
    ran = {m["data"]["node"] for m in seen if m["type"] == "executing" and m["data"].get("node")}
    assert (
        graphs.titled(g, "Fuse Neuron Masks") in ran
        and graphs.titled(g, "Concept Saliency") not in ran
    )


def test_cancel_while_measuring_and_run_again(server):
    g = graph(prompts=20, steps=50, window=50, seed=5)
    node, asked = graphs.titled(g, "Concept Saliency"), []
    with server.messages() as seen:

        def measuring():
            if any(m["type"] == "progress" and m["data"].get("node") == node for m in seen):
                asked.append(time.time())
            return bool(asked)

        with pytest.raises(Failed, match="(?i)interrupt|Processing"):
            server.cancel(server.queue(g), when=measuring)
        assert time.time() - asked[0] < 10
    assert server.run(graph(seed=6))


def test_saliency_through_a_file(server):
    g = graph(score="wanda")
    g["save"] = {
        "class_type": "SaveConceptSaliency",
        "inputs": {"saliency": [graphs.titled(g, "Concept Saliency"), 0], "name": "test_fox"},
        "_meta": {"title": "Save"},
    }
    live = server.run(g)
    try:
        again = graph(score="wanda")
        load, measure = (
            {"class_type": "LoadConceptSaliency", "inputs": {"name": "test_fox.safetensors"}},
            "Concept Saliency",
        )
        again[graphs.titled(again, measure)] = {**load, "_meta": {"title": measure}}
        reloaded = server.run(again)
        same = [
            server.image(o[graphs.titled(x, "Picture After")]["images"][0]).tobytes()
            for o, x in ((live, g), (reloaded, again))
        ]
        assert same[0] == same[1]
    finally:
        (BASE / "models" / "unlearn_saliency" / "test_fox.safetensors").unlink()


def test_no_name_leads_out_of_the_folder(server):
    g = graph()
    g["save"] = {
        "class_type": "SaveConceptSaliency",
        "inputs": {"saliency": [graphs.titled(g, "Concept Saliency"), 0], "name": "../../out"},
        "_meta": {"title": "Save"},
    }
    with pytest.raises(Failed, match="is not a name on every system"):
        server.run(g)
