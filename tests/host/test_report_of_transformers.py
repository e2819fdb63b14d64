"""The Erasure Report on diffusion transformers: one prompt at a time, and one frame of a video."""

import pytest
import torch

from testbed import pack
from testbed.families import transformers, vaes

adapters = pack.module("unlearn.host.adapters")
architectures = pack.module("unlearn.host.architectures")
comparison = pack.module("unlearn.analysis.comparison")
drawn_prompts = pack.module("unlearn.host.drawn_prompts")
notation = pack.module("unlearn.concepts.notation")
patching = pack.module("unlearn.host.patching")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
UnlearnError = pack.module("unlearn.errors").UnlearnError
CONCEPTS = notation.parse("fox -> animal", "cat")
QUICK = dict(seed=3, seeds=2, kept=1, steps=2, cfg=2.0, size=64)
# Latents of videos and of pictures; one that is told of padding, and three that are not.
NAMES = ("Wan 2.1", "Flux.1", "Z-Image", "Qwen-Image")
VIDEO = ("Wan 2.1", "Qwen-Image")


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    """(name, MODEL, CLIP, VAE)."""
    with torch.inference_mode():
        model = transformers.model(request.param)
        return request.param, model, transformers.clip(request.param), vaes.vae(model)


def changed(model):
    """The model with half of what each text-entry layer does taken away."""
    edits = []
    for layer in architectures.cross_attention(model):
        edits.append((layer.key, adapters.Delta.of(-0.5 * weights.read(model, layer.key))))
    keys = [key for key, _ in edits]
    record = ({"method": "halved", "concepts": []},)
    patch = types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys), record)
    return patching.apply(model, patch)[0]


def report(model, after, clip, vae, **more):
    inputs = comparison.ReportInputs(model, after, clip, vae)
    return comparison.compare(inputs, CONCEPTS, comparison.ReportSettings(**{**QUICK, **more}))


def test_it_draws_and_measures(loaded):
    name, model, clip, vae = loaded
    found = report(model, changed(model), clip, vae)
    assert found.grid.shape[0] == 1 and torch.isfinite(found.grid).all()
    prompts = {shot["prompt"] for shot in found.metrics["shots"]}
    assert prompts == {"a photo of a fox", "a photo of a cat"} and len(found.metrics["shots"]) == 4
    assert found.metrics["broken_pictures"] == found.metrics["broken_pictures_before"] == 0
    assert all(shot["latent"] > 0.01 for shot in found.metrics["shots"])
    assert found.metrics["weights"]["touched"] > 0
    assert "cat" in {impact["name"] for impact in found.metrics["forecast"]}


def test_the_same_model_twice_did_nothing(loaded):
    name, model, clip, vae = loaded
    found = report(model, model.clone(), clip, vae, seeds=1)
    assert found.metrics["verdict"]["code"] == "did_nothing"


def test_a_picture_is_what_a_ksampler_draws_of_its_prompt_and_seed(loaded):
    import comfy.sample

    name, model, clip, vae = loaded
    assert drawn_prompts.latent_shape(model, 64) == [16, *[1][: name in VIDEO], 8, 8]
    pairs = comparison.build_comparisons(clip, CONCEPTS, (), 1, [3, 4], comparison._reads(model))
    live = comparison.drawing.LiveSheet(pairs, model, QUICK["steps"])
    settings = comparison.ReportSettings(**QUICK)
    drawing, _ = comparison._draw_both(
        comparison.ReportInputs(model, model, clip, vae), pairs, settings, live
    )
    assert list(drawing.pictures.shape) == [4, 64, 64, 3]
    positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (pairs[1].prompt, "")
    )
    empty = torch.zeros(drawing.latents[:1].shape)
    noise = comfy.sample.prepare_noise(empty, pairs[1].seed)
    how = (2, 2.0, "ddim", "ddim_uniform", positive, negative, empty)
    alone = comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=pairs[1].seed)
    torch.testing.assert_close(drawing.latents[1], alone[0].float().cpu(), atol=1e-4, rtol=1e-3)


def test_the_size_left_open_is_the_familys_own(loaded):
    name, model, _, _ = loaded
    assert architectures.native_size(model) == architectures.of(model).size


def test_a_model_that_needs_more_than_text_is_refused_in_one_sentence(loaded, monkeypatch):
    name, model, clip, vae = loaded
    if name != "Wan 2.1":
        return

    def needs_a_picture(*args, **more):
        raise KeyError("concat_latent_image")

    monkeypatch.setattr(model.model, "extra_conds", needs_a_picture)
    with pytest.raises(UnlearnError, match="draws nothing from text alone") as error:
        report(model, model.clone(), clip, vae)
    assert "\n" not in str(error.value)
