"""What stands under each long node while it runs, on a tiny model."""

import sys
from types import SimpleNamespace

import pytest

from testbed import families, pack, tiny

nodes = pack.module("nodes")
text = pack.module("unlearn.concepts.notation")
FOX = text.parse("fox -> animal", "cat")
LENGTH = {"steps": 2, "batch": 1, "held": 1, "pictures": 2, "captions": 1, "sampling_steps": 2}
CUSTOM = {"preset": "custom", "stop_at": 0.0, "learning_rate": 1e-5, **LENGTH}


@pytest.fixture
def shown(monkeypatch):
    """The texts that a server's page shows under a node, in order."""
    texts = []
    server = SimpleNamespace(send_progress_text=lambda text, node_id: texts.append(text))
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    return texts


def run(name, **given):
    (node,) = (one for one in nodes.NODES if one.__name__ == name)
    defaults = tiny.defaults(node.define_schema().inputs)
    hidden = SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=None)
    return type("Running", (node,), {"hidden": hidden}).execute(**{**defaults, **given})


def inputs():
    return {"model": families.model("SD1.5"), "clip": families.clip("SD1.5"), "concepts": FOX}


def begins_in_order(shown, *beginnings):
    """Whether these texts were shown in this order, and nothing after the last."""
    at = 0
    for beginning in beginnings:
        places = [i for i, said in enumerate(shown) if i >= at and said.startswith(beginning)]
        assert places, (beginning, shown)
        at = places[0] + 1
    assert at == len(shown), shown


def test_scapre_solve(shown):
    run("ScaPreSolve", **inputs(), prior=False)
    begins_in_order(
        shown,
        "Starting ...",
        "Writing the sentences",
        "Reading ",
        "Reading layer 1 of ",
        "Solving for all layers",
        "Solving layer 1 of ",
        "Looking at what is left",
        shown[-1],
    )
    assert any("sentences, once per text encoder" in text for text in shown)


def test_concept_saliency(shown):
    run("ConceptSaliency", **inputs(), prompts=1, steps=2, window=1, size=64, score="wanda")
    begins_in_order(
        shown,
        "Starting ...",
        "Reading the prompts",
        "Starting 2 pictures, with each concept and without, step 1 of 1",
        "Choosing the strongest connections",
        shown[-1],
    )


def test_the_trainer_tells_how_long_it_takes_before_it_draws(shown):
    run("DynamicMaskTrainer", **inputs(), preset=CUSTOM, warmup=1, size=64)
    begins_in_order(
        shown, "Starting ...", "Reading sentence 1 of ", "Drawing training picture 1 of ", shown[-1]
    )
    (drawing,) = [said for said in shown if said.startswith("Drawing training picture 1 of ")][:1]
    assert "then training for at most " in drawing
    assert any(said.startswith("Training step 1 of 3") for said in shown)


def test_the_report_ends_on_its_finished_grid(shown, monkeypatch):
    drawing, finished = pack.module("unlearn.analysis.drawing"), []
    real = drawing.LiveSheet.finish
    monkeypatch.setattr(
        drawing.LiveSheet, "finish", lambda self, grid: finished.append(grid) or real(self, grid)
    )
    previews = []
    monkeypatch.setattr(
        drawing.PictureProgress, "show", lambda self, done, picture=None: previews.append(picture)
    )
    given = inputs()
    model = given.pop("model")
    run(
        "ErasureReport",
        **given,
        before=model,
        after=model.clone(),
        vae=Vae(),
        size=64,
        steps=1,
        seeds=1,
        kept=1,
    )
    begins_in_order(
        shown,
        "Starting ...",
        "Reading the prompts",
        "Drawing picture 1 of 4, without the patch and with it",
        "Measuring what changed",
        shown[-1],
    )
    assert previews[-1] is finished[0]


class Vae(tiny.Vae):
    """Pictures as latents, as the model has them."""

    latent_channels, latent_dim, ratio = 4, 2, 8
