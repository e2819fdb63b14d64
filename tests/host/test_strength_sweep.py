"""Unlearn Strength Sweep: the same picture as a KSampler draws at every strength, and a strip."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack

sweeps = pack.module("unlearn.analysis.strength_sweep")
charts = pack.module("unlearn.analysis.charts")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")
adapters = pack.module("unlearn.host.adapters")
types = pack.module("unlearn.types")
wording = pack.module("unlearn.wording")
nodes = pack.module("nodes")
UnlearnError = pack.module("unlearn.errors").UnlearnError
QUICK = dict(pictures=3, seed=5, steps=3, cfg=3.0, size=64, sampler="euler", scheduler="normal")


@pytest.fixture(scope="module")
def patch(loaded):
    """The words lose half of what they say to each key matrix."""
    edits = []
    for layer in layers.cross_attention(loaded[0]):
        edits.append((layer.key, adapters.Delta.of(-weights.read(loaded[0], layer.key))))
    said = ({"method": "m", "concepts": ["fox"], "settings": {}},)
    keys = [key for key, _ in edits]
    return types.UnlearnPatch(tuple(edits), weights.fingerprint(loaded[0], keys), said)


def prompt(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def run(loaded, patch, positive="a drawing of a fox", **more):
    model, clip, vae = loaded
    hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
    node = type("Running", (nodes.UnlearnStrengthSweep,), {"hidden": hidden})
    settings = {**QUICK, **more}
    return node.execute(model, patch, vae, prompt(clip, positive), prompt(clip, ""), **settings)


def sampled(model, loaded):
    """What KSampler and VAE Decode draw of the same settings."""
    import comfy.sample

    _, clip, vae = loaded
    empty = torch.zeros(1, 4, 8, 8)
    latents = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, QUICK["seed"]),
        QUICK["steps"],
        QUICK["cfg"],
        QUICK["sampler"],
        QUICK["scheduler"],
        prompt(clip, "a drawing of a fox"),
        prompt(clip, ""),
        empty,
        seed=QUICK["seed"],
    )
    return vae.decode(latents)[0]


def test_every_picture_is_what_a_ksampler_draws_at_its_strength(loaded, patch):
    strip, pictures, report = run(loaded, patch).result
    assert pictures.shape[0] == 3 and strip.shape[2] > 3 * charts.CELL
    for picture, strength in zip(pictures, (0.0, 0.5, 1.0), strict=True):
        model = patching.apply(loaded[0], patch, strength)[0] if strength else loaded[0]
        assert torch.allclose(picture, sampled(model, loaded), atol=1e-4), strength
    assert "Most changes between strength" in report
    assert torch.equal(run(loaded, patch).result[1], pictures)


def test_the_strip_shows_each_picture_above_its_strength(loaded, patch):
    strip, pictures, _ = run(loaded, patch).result
    for number, picture in enumerate(pictures):
        left = 20 + number * (charts.CELL + 8)
        shown = strip[0, charts.TITLE_HEIGHT :, left:][: charts.CELL, : charts.CELL]
        small = charts.to_image(charts.thumbnail(picture))[0]
        assert torch.allclose(shown, small, atol=1e-6)
        below = strip[0, charts.TITLE_HEIGHT + charts.CELL + 4 :, left : left + charts.CELL]
        assert below.min() < 0.5  # a label in ink


def test_the_words_say_where_it_changes_or_that_it_does_not(loaded, patch):
    pictures = torch.zeros(5, 8, 8, 3)
    pictures[3:] = 0.5
    said = sweeps.describe([0, 0.25, 0.5, 0.75, 1], pictures, wording.Findings())
    assert said.startswith("Most changes between strength 0.50 and 0.75.\nTry: set 'strength' of")
    assert "Unlearn Patch to 0.75." in said and not wording.forbidden(said)
    idle = types.UnlearnPatch(
        ((patch.edits[0][0], adapters.Delta.of(torch.zeros(patch.edits[0][1].shape))),),
        patch.fingerprint,
        patch.provenance,
    )
    assert run(loaded, idle).result[2].startswith("Nothing changes at any strength.")


def test_what_does_not_go_together_is_said_in_a_sentence(loaded, patch):
    model, clip, vae = loaded
    good, other = prompt(clip, "a fox"), [[torch.zeros(1, 77, 48), {}]]
    prompts = sweeps.Prompts(other, good)
    settings = sweeps.SweepSettings(**QUICK)
    with pytest.raises(UnlearnError, match="'positive' or 'negative' does not go with the model"):
        sweeps.sweep(model, patch, vae, prompts, settings)
    far = types.UnlearnPatch((("diffusion_model.no.weight", patch.edits[0][1]),), patch.fingerprint)
    with pytest.raises(UnlearnError, match="lacks 1 of the weights"):
        sweeps.sweep(model, far, vae, sweeps.Prompts(good, good), settings)
    node = type("Running", (nodes.UnlearnStrengthSweep,), {"hidden": SimpleNamespace(unique_id=0)})
    for wrong in (None, [], "a fox", {"samples": good}):
        with pytest.raises(UnlearnError, match="'negative' brings .* connect CLIP Text Encode"):
            node.execute(model, patch, vae, good, wrong, **QUICK)


def test_cancelling_stops_within_a_step_and_leaves_the_model_alone(loaded, patch, monkeypatch):
    import comfy.model_management

    steps, real = [], sweeps.raise_if_cancelled

    def cancel():
        steps.append(1)
        comfy.model_management.interrupt_current_processing(len(steps) == 4)
        real()

    monkeypatch.setattr(sweeps, "raise_if_cancelled", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(loaded, patch)
    assert len(steps) == 4 and not loaded[0].patches
