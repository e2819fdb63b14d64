"""A muted or bypassed node leaves the first of several sockets empty; the page then sends no entry.

What is connected is used, and where nothing is, the artist reads a sentence. A model without any
patch passes through.
"""

import pytest

from testbed.server import BASE, Failed, Server
from testbed.worlds import checkpoint

pytestmark = pytest.mark.server
MODEL, CLIP = ["1", 0], ["1", 1]
MEASURE = {"score": "wanda", "prompts": 1, "steps": 2, "window": 1, "cfg": 1.0, "seed": 1}
MEASURE |= {"size": 64, "ceiling": 0.06, "r1": 0.05, "scale": "layer_max", "first": 0}
FUSE = {"r2": 0.01, "alpha": 1.01, "granularity": "connection", "parts": "all"}
FUSE |= {"from_depth": 0.0, "to_depth": 1.0}


@pytest.fixture(scope="module")
def server(checkpoint):
    with Server(log=BASE / "test-server-sockets.log") as running:
        yield running


def graph(kind, inputs, slot):
    """A checkpoint, a list, a solve, a measurement, and one node whose text is shown."""
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint.NAME}),
        "2": ("UnlearnConcepts", {"forget": "fox -> animal", "keep": "cat", "kind": "object"}),
        "3": (
            "ScaPreSolve",
            {
                "model": MODEL,
                "clip": CLIP,
                "concepts": ["2", 0],
                "variant": "uce",
                "variant.erase": 1.0,
                "variant.preserve": 1.0,
                "variant.anchor": 0.5,
                "tokens": "all",
                "prior": False,
            },
        ),
        "4": (
            "ConceptSaliency",
            {"model": MODEL, "clip": CLIP, "concepts": ["2", 0], "halves": "conditional"} | MEASURE,
        ),
        "5": (kind, inputs),
        "6": ("PreviewAny", {"source": ["5", slot]}),
    }
    return {i: {"class_type": c, "inputs": v} for i, (c, v) in nodes.items()}


APPLY = {"model": MODEL, "strength": 1.0, "mismatch": "warn"}
NODES = {  # its inputs without the sockets, the sockets' prefix, their source, the output shown
    "ApplyUnlearnPatch": (APPLY, "patches.patch", ["3", 0], 1, "forgets fox"),
    "NeuronMaskFuse": (FUSE, "saliency.saliency", ["4", 0], 2, "Prunes"),
    "MergeConceptSaliency": ({}, "saliency.saliency", ["4", 0], 0, "fox"),
}


@pytest.mark.parametrize("kind", NODES)
def test_the_second_socket_alone_works(server, kind):
    inputs, prefix, source, slot, says = NODES[kind]
    for sockets in ({f"{prefix}1": source}, {f"{prefix}0": None, f"{prefix}1": source}):
        outputs = server.run(graph(kind, {**inputs, **sockets}, slot))
        assert says in outputs["6"]["text"][0]


def test_without_a_patch_the_model_passes_through(server):
    inputs, prefix, _, slot, _ = NODES["ApplyUnlearnPatch"]
    for sockets in ({}, {f"{prefix}0": None}):
        outputs = server.run(graph("ApplyUnlearnPatch", {**inputs, **sockets}, slot))
        assert "No patch is connected" in outputs["6"]["text"][0]


@pytest.mark.parametrize("kind", [kind for kind in NODES if kind != "ApplyUnlearnPatch"])
def test_nothing_connected_is_said_in_a_sentence(server, kind):
    inputs, prefix, _, slot, _ = NODES[kind]
    for sockets in ({}, {f"{prefix}0": None}):
        with pytest.raises(Failed, match="nothing connected; connect") as error:
            server.run(graph(kind, {**inputs, **sockets}, slot))
        assert len(str(error.value).strip().splitlines()) == 1
