"""The Erasure Report: verdicts, pictures, figures, NaN, full memory and cancelling."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch

from testbed import pack

erasure = pack.module("unlearn.analysis.comparison")
charts = pack.module("unlearn.analysis.charts")
drawing = pack.module("unlearn.analysis.drawing")
measures = pack.module("unlearn.analysis.measures")
picture_pairs = pack.module("unlearn.analysis.picture_pairs")
sampling = pack.module("unlearn.host.sampling")
drawn_prompts = pack.module("unlearn.host.drawn_prompts")
batched_sampling = pack.module("unlearn.host.batched_sampling")
patching = pack.module("unlearn.host.patching")
adapters = pack.module("unlearn.host.adapters")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
UnlearnError = pack.module("unlearn.errors").UnlearnError
pytestmark = pytest.mark.usefixtures("states_on_disk")
CONCEPTS = text.parse("cat\nhouse", "key\ntree")
QUICK = dict(seed=3, seeds=1, kept=2, steps=4, cfg=3.0, size=64)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(loaded, after, before=None, concepts=CONCEPTS, **more):
    """(grid, chart, text, metrics) of the report on `loaded` and `after`."""
    model, clip, vae = loaded
    extra = {k: more.pop(k) for k in ("clip_vision", "score_clip") if k in more}
    inputs = erasure.ReportInputs(before or model, after, clip, vae, **extra)
    settings = erasure.ReportSettings(**{**QUICK, **more})
    found = erasure.compare(inputs, concepts, settings)
    return found.grid, found.chart, found.text, found.metrics


def noise_patch(model, size=1.0):
    """Noise as strong as each cross-attention and feed-forward weight itself."""
    edits = []
    for i, layer in enumerate((*layers.cross_attention(model), *layers.feed_forward(model))):
        w = weights.read(model, layer.key)
        edits.append((layer.key, adapters.Delta.of(size * w.std() * rand(*w.shape, seed=i))))
    return types.UnlearnPatch(
        tuple(edits),
        weights.fingerprint(model, [k for k, _ in edits]),
        ({"method": "noise", "concepts": []},),
    )


def digest(model):
    """Hash of the plain model's weights, whatever clone of it was loaded last."""
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    h = hashlib.sha256()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def test_the_same_model_twice_did_nothing(loaded):
    model = loaded[0]
    grid, chart, words, metrics = compare(loaded, model.clone())
    assert metrics["verdict"]["code"] == "did_nothing" and words.startswith(
        "Nothing changed.\nWARNING: Both models are the same.\n"
    )
    assert metrics["forgotten"] == metrics["kept"] == {"latent": 0, "pixels": 0, "absolute": 0}
    assert metrics["weights"]["touched"] == 0 and metrics["weights"]["layers"] == []
    assert (
        grid.shape[0] == chart.shape[0] == 1
        and grid.shape[-1] == 3
        and 0 <= grid.min()
        and grid.max() <= 1
    )


def test_strength_0_and_a_whisper_did_nothing(loaded):
    model = loaded[0]
    patch = noise_patch(model)
    for strength in (0.0, 1e-3):
        _, _, words, metrics = compare(loaded, patching.apply(model, patch, strength)[0])
        first = words.splitlines()[0]
        assert metrics["verdict"]["code"] == "did_nothing"
        assert first in ("Nothing changed.", "Hardly anything changed.")
    assert metrics["weights"]["touched"] > 0 and "weights differ" in words


def test_noise_at_strength_2_damaged_everything(loaded):
    model = loaded[0]
    before = digest(model)
    patched, _ = patching.apply(model, noise_patch(model), 2.0)
    _, _, words, metrics = compare(loaded, patched)
    print(words)
    assert metrics["verdict"]["code"] == "damaged" and words.startswith("Everything changed")
    assert "WARNING: Kept pictures changed" in words and "Try: lower 'strength'" in words
    assert len(metrics["weights"]["layers"]) == len({k for k, _ in noise_patch(model).edits})
    assert all(1.5 < layer["relative_change"] < 2.5 for layer in metrics["weights"]["layers"])
    assert digest(model) == before


def test_the_forecast_stands_beside_the_pictures(loaded, monkeypatch):
    """It is the forecast of the patch itself, and no report fails because of it.

    There is none where keys and values are alike.
    """
    model, clip, _ = loaded
    patch = noise_patch(model, 0.5)
    patched = patching.apply(model, patch)[0]
    _, chart, words, metrics = compare(loaded, patched)
    names, keep = [n for c in CONCEPTS.concepts for n in c.names], CONCEPTS.keep
    hits = erasure.forecast.of_patch(model, clip, patch, names, keep)
    assert [f["name"] for f in metrics["forecast"]] == [h.name for h in hits] and {
        "key",
        "tree",
    } <= {h.name for h in hits}
    assert [f["survival"] for f in metrics["forecast"]] == pytest.approx(
        [h.retention for h in hits], abs=1e-4
    )
    drawn = {shot["name"] for shot in metrics["shots"] if not shot["forgotten"]}
    told = erasure.forecast.findings([hit for hit in hits if hit.name not in drawn])
    assert told.details and all(line in words for line in told.details)
    monkeypatch.setattr(
        erasure.forecast.prior_words, "read_words", lambda *_: (["cat"], torch.ones(1, 1024))
    )
    _, plain, words, metrics = compare(loaded, patched)
    assert (
        metrics["forecast"] == []
        and "No forecast: The input 'clip' gives states of width 1024" in words
    )
    assert plain.shape[1] < chart.shape[1]
    assert compare(loaded, model.clone())[3]["forecast"] == []


def test_pictures_without_numbers_are_damage(loaded):
    patched = loaded[0].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    _, _, words, metrics = compare(loaded, patched)
    assert (
        metrics["verdict"]["code"] == "damaged"
        and "NaN" in words
        and metrics["broken_pictures"] == 4
    )
    json.loads(erasure.as_json(metrics))


def drawing_of(levels):
    """What a model drew: pictures of one grey level each, with latents of twice that."""
    pictures = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    return picture_pairs.Drawing(2 * pictures.permute(0, 3, 1, 2), pictures)


PAIRS = [
    picture_pairs.PicturePair("cat", "a cat", 1, True),
    picture_pairs.PicturePair("key", "a key", 1, False),
    picture_pairs.PicturePair("dog", "a dog", 1, True),
]


def test_changes_are_in_units_of_the_model_itself():
    """Its own pictures are 0.2 and 0.4 apart, so that a difference of 0.3 is a change of 1."""
    metrics, changes = measures.measure(
        PAIRS, drawing_of([0.0, 0.2, 0.6]), drawing_of([0.3, 0.2, 0.6])
    )
    assert metrics["unit"] == pytest.approx({"latent_rms": 0.6, "pixel_mean": 0.3}, abs=1e-6)
    assert changes[0] == pytest.approx({"latent": 1, "pixels": 1, "absolute": 0.3}, abs=1e-6)
    assert changes[1] == changes[2] == {"latent": 0, "pixels": 0, "absolute": 0}
    assert metrics["forgotten"] == pytest.approx(
        {"latent": 0.5, "pixels": 0.5, "absolute": 0.15}, abs=1e-6
    )
    assert metrics["kept"] == {"latent": 0, "pixels": 0, "absolute": 0}
    assert [c["name"] for c in metrics["concepts"]] == ["cat", "dog"]


def test_a_nan_picture_counts_neither_in_the_unit_nor_in_a_mean():
    nan = float("nan")
    metrics, changes = measures.measure(
        PAIRS, drawing_of([0.0, nan, 0.6]), drawing_of([0.3, 0.2, nan])
    )
    assert metrics["unit"] == pytest.approx({"latent_rms": 1.2, "pixel_mean": 0.6}, abs=1e-6)
    assert metrics["broken_pictures_before"] == metrics["broken_latents_before"] == 1
    assert metrics["broken_pictures"] == 1 and metrics["pictures"] == 3
    assert metrics["forgotten"]["pixels"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["kept"] == {"latent": None, "pixels": None, "absolute": None}
    assert [change["pixels"] == change["pixels"] for change in changes] == [True, False, False]


def test_numbers_too_large_to_subtract_are_broken():
    metrics, _ = measures.measure(PAIRS, drawing_of([0.0, 0.2, 0.6]), drawing_of([1e30, 0.2, 0.6]))
    assert metrics["broken_pictures"] == 1 and metrics["broken_pictures_before"] == 0


class BrokenVae:
    """A VAE that gives NaN for some pictures, which are numbered in the order of decoding."""

    def __init__(self, vae, broken):
        self.vae, self.broken, self.count = vae, broken, 0

    def decode(self, latents):
        pictures = self.vae.decode(latents).clone()
        for picture in pictures:
            if self.count in self.broken:
                picture[0, 0] = float("nan")
            self.count += 1
        return pictures


def nan_model(model):
    """A clone of a MODEL that draws NaN."""
    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    return broken


def parsed(metrics):
    """The metrics as a strict reader of JSON sees them."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(erasure.as_json(metrics), parse_constant=refuse)


@pytest.mark.parametrize(
    "broken_after", [False, True], ids=["before alone", "before and after alike"]
)
def test_nan_from_the_model_before_the_edit_is_no_damage_of_the_edit(loaded, broken_after):
    before = nan_model(loaded[0])
    after = before.clone() if broken_after else loaded[0]
    grid, chart, words, metrics = compare(loaded, after, before=before)
    first, warning = words.split("\n")[:2]
    assert torch.isfinite(grid).all() and torch.isfinite(chart).all()
    assert metrics["verdict"]["code"] == "before_is_broken"
    assert "without the patch" in first and "in the model without the patch" in warning
    assert "(input 'before')" in words and "NaN in 4 of 4 pictures" in words
    assert "checkpoint" in words and "breaks" not in words
    found = parsed(metrics)
    assert found["unit"] == {"latent_rms": None, "pixel_mean": None}
    assert found["forgotten"] == found["kept"] == dict.fromkeys(("latent", "pixels", "absolute"))
    assert found["broken_pictures_before"] == 4 and found["broken_pictures"] == 4 * broken_after


@pytest.mark.parametrize(
    "broken, code, counts",
    [
        (range(8), "before_is_broken", (4, 4)),
        ({1}, "before_is_broken", (1, 0)),
        ({1, 6}, "before_is_broken", (1, 1)),
        ({6}, "damaged", (0, 1)),
    ],
    ids=["all", "one before", "one each", "one after"],
)
def test_nan_from_the_vae(loaded, broken, code, counts):
    """The pictures are shown, the verdict names whose they are, and figures that exist are kept."""
    model, clip, vae = loaded
    grid, chart, words, metrics = compare((model, clip, BrokenVae(vae, broken)), model.clone())
    first, warning = words.split("\n")[:2]
    assert torch.isfinite(grid).all() and torch.isfinite(chart).all()
    assert metrics["verdict"]["code"] == code and "NaN" in words
    assert ("without the patch" in first) == (code == "before_is_broken")
    assert ("VAE" in warning and "fp32" in words) == (code == "before_is_broken")
    found = parsed(metrics)
    assert (found["broken_pictures_before"], found["broken_pictures"]) == counts
    numbers = [shot["pixels"] for shot in found["shots"]]
    assert [x is None for x in numbers] == [bool({k, k + 4} & set(broken)) for k in range(4)]
    assert [shot["latent"] for shot in found["shots"]] == [0.0] * 4
    if counts != (4, 4):
        assert found["unit"]["pixel_mean"] > 0


def test_nan_weights_of_the_model_before_cost_no_picture(loaded):
    model = loaded[0]
    key = layers.cross_attention(model)[0].key
    before, after = model.clone(), model.clone()
    before.add_patches({key: ("set", (torch.full(weights.shape(model, key), float("nan")),))})
    after.add_patches({key: ("set", (torch.zeros(weights.shape(model, key)),))})
    grid, _, words, metrics = compare(loaded, after, before=before)
    assert torch.isfinite(grid).all() and metrics["verdict"]["code"] == "before_is_broken"
    assert f"not compared: {key} holds NaN" in words.replace("\n", " ")
    assert parsed(metrics)["weights"]["layers"] == []


def test_decoding_goes_on_in_smaller_batches_when_memory_runs_out(loaded):
    model, clip, vae = loaded
    whole = compare(loaded, model.clone())[3]
    sizes = []

    def decode(latents):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(latents))
        return vae.decode(latents)

    halved = compare((model, clip, SimpleNamespace(decode=decode)), model.clone())[3]
    assert sizes == [2, 2, 2, 2]
    assert halved["unit"] == pytest.approx(whole["unit"], abs=1e-4)


def said(*args, **more):
    return erasure.verdict(figures(*args, **more))


def figures(forgotten, kept, concepts=(), touched=10, broken=0, before=0):
    def numbers(x):
        return x if x is None else {"latent": x[0], "pixels": x[1], "absolute": 0.1}

    concepts = [{"name": n, "latent": x, "pixels": x} for n, x in concepts]
    weights = {"touched": touched, "total": 100, "share": touched / 100}
    return {
        "broken_pictures": broken,
        "broken_pictures_before": before,
        "broken_latents_before": 0,
        "pictures": 8,
        "forgotten": numbers(forgotten),
        "kept": numbers(kept),
        "concepts": concepts,
        "weights": weights,
    }


@pytest.mark.parametrize(
    "forgotten, kept, more, code",
    [
        ((0, 0), (0, 0), {"touched": 0}, "did_nothing"),
        ((0.05, 0.02), (0.01, 0.01), {}, "did_nothing"),
        (
            (0.05, 0.2),
            (0.01, 0.01),
            {},
            "worked",
        ),  # the larger is believed before it is called nothing
        ((0.9, 0.8), (0.1, 0.05), {}, "worked"),
        (
            (0.9, 0.8),
            (0.9, 0.1),
            {},
            "worked",
        ),  # the smaller is believed before it is called damage
        ((0.9, 0.8), (0.4, 0.35), {}, "side_effects"),
        ((0.9, 0.8), (0.9, 0.8), {}, "damaged"),
        ((0.05, 0.05), (0.9, 0.8), {}, "damaged"),
        ((0.9, 0.8), None, {}, "changed"),
        ((0.5, 0.5), (0.1, 0.1), {"concepts": [("cat", 0.9), ("fox", 0.02)]}, "partly"),
        ((0, 0), (0, 0), {"broken": 3}, "damaged"),
        ((None, None), (None, None), {"broken": 8, "before": 8}, "before_is_broken"),
        ((None, None), None, {"before": 1}, "before_is_broken"),
    ],
)
def test_verdicts(forgotten, kept, more, code):
    found, words, told = said(forgotten, kept, **more)
    assert found == code and 1 < len(words.split()) <= 8 and len(told.advice) == 1
    nothing = ("Nothing changed.", "Hardly anything changed.")
    assert (words in nothing) == (code == "did_nothing")
    assert bool(told.warnings) == (code not in ("worked", "changed"))
    assert "gone" not in words and "forgot" not in words  # nobody looked what is in a picture
    assert ("Fox hardly changed" in words) == (code == "partly")


def test_the_verdict_names_kept_things_that_changed():
    kept = {"dog": 0.1, "everyday": 0.02, "wolf": 0.5}
    _, words, told = erasure.verdict(figures((0.9, 0.8), (0.2, 0.2), [("fox", 0.9)]), kept)
    assert words == "Fox changed. Wolf changed too. Dog, everyday pictures unchanged."
    assert [warning.text for warning in told.warnings] == ["'wolf' should have stayed as before."]


def test_pairs_are_what_a_ksampler_with_that_seed_draws(loaded):
    import comfy.sample

    model, clip, _ = loaded
    metrics = compare(loaded, model.clone(), seeds=2)[3]
    pairs = erasure.build_comparisons(clip, CONCEPTS, (), 2, [3, 4])
    drawn = [(shot["prompt"], shot["seed"]) for shot in metrics["shots"]]
    assert drawn == [(pair.prompt, pair.seed) for pair in pairs]
    assert {pair.prompt for pair in pairs} == {
        "a photo of a cat",
        "a photo of a house",
        "a photo of a key",
        "a photo of a tree",
    }
    live = drawing.LiveSheet(pairs, model, 4)
    positive, negative = batched_sampling.conditioning(clip, [p.prompt for p in pairs], 64)
    settings = sampling.SamplerSettings(4, 3.0, "ddim", "ddim_uniform", 3)
    prompts = drawn_prompts.Together(positive, negative)
    job = drawing.DrawingJob(pairs, [4, 8, 8], prompts, settings)
    latents = drawing.draw(model, drawing.BEFORE, job, live)

    def encode(t):
        return clip.encode_from_tokens_scheduled(clip.tokenize(t))

    pair, empty = pairs[1], torch.zeros(1, 4, 8, 8)
    how = (4, 3.0, "ddim", "ddim_uniform", encode(pair.prompt), encode(""))
    alone = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, pair.seed),
        *how,
        empty,
        disable_pbar=True,
        seed=pair.seed,
    )
    torch.testing.assert_close(latents[1], alone[0].float().cpu(), atol=2e-3, rtol=2e-3)


def test_a_plan_draws_what_was_asked_for(loaded):
    clip = loaded[1]
    concepts = text.parse("cat\nstyle: monet", "fox\na long sentence of its own")
    pairs = erasure.build_comparisons(clip, concepts, (), 3, [7, 8])
    assert [(p.name, p.prompt) for p in pairs[::2]][:4] == [
        ("cat", "a photo of a cat"),
        ("monet", "a painting of a house in the style of monet"),
        ("fox", "a photo of a fox"),
        ("a long sentence of its own", "a long sentence of its own"),
    ]
    assert (
        [p.seed for p in pairs] == [7, 8] * 5
        and pairs[-1].name == "everyday"
        and not pairs[-1].forgotten
    )
    own = erasure.build_comparisons(
        clip, text.parse("owl"), ("a {concept} at night", "{concept}"), 0, [1]
    )
    assert [p.prompt for p in own] == ["an owl at night", "owl"]
    with pytest.raises(UnlearnError, match="no {concept} in it"):
        erasure.build_comparisons(clip, concepts, ("a dog",), 0, [1])
    with pytest.raises(UnlearnError, match="75"):
        erasure.build_comparisons(clip, text.parse("very " * 76 + "old cat"), (), 0, [1])


def test_one_prompt_alone_has_a_unit_too(loaded):
    _, _, words, metrics = compare(
        loaded, loaded[0].clone(), concepts=text.parse("cat"), kept=0, steps=2
    )
    assert metrics["kept"] is None and metrics["unit"]["latent_rms"] > 0.1
    assert metrics["verdict"]["code"] == "did_nothing"


def test_weight_changes_of_clones_and_of_two_files(loaded):
    model = loaded[0]
    key = layers.feed_forward(model)[0].key
    edit = adapters.Prune.of(torch.arange(1280) < 64, 320, 1280, "column")
    patch = types.UnlearnPatch(
        ((key, edit),), weights.fingerprint(model, [key]), ({"method": "m", "concepts": ["cat"]},)
    )
    after, _ = patching.apply(model, patch)
    found = measures.weight_changes(model, after)
    w = weights.read(model, key)
    assert [(k, n) for k, n, *_ in found.layers] == [(key, int((w[:, :64] != 0).sum()))]
    assert found.layers[0].relative == pytest.approx(float(w[:, :64].norm() / w.norm()), rel=1e-5)
    assert measures.weight_changes(after, after.clone()).layers == ()


def test_models_that_do_not_go_together(loaded):
    other = loaded[0].clone()
    other.add_object_patch(
        "latent_format", __import__("comfy.latent_formats", fromlist=["x"]).SD3()
    )
    with pytest.raises(UnlearnError, match="different kinds"):
        compare(loaded, other)


def test_models_without_a_weight_in_common_are_refused():
    one, other = (
        SimpleNamespace(model=torch.nn.ModuleDict({name: torch.nn.Linear(2, 2)}))
        for name in ("diffusion_model", "video_model")
    )
    with pytest.raises(UnlearnError, match="'before' and 'after' have no weight in common"):
        measures.weight_changes(one, other)


def test_batches_do_not_matter_and_memory_may_run_out(loaded, monkeypatch):
    import comfy.sample

    patched, _ = patching.apply(loaded[0], noise_patch(loaded[0], 0.3))
    whole = compare(loaded, patched)[3]
    real, most = comfy.sample.sample, []

    def small(model, noise, *a, **k):
        if len(noise) > 2:
            raise torch.OutOfMemoryError("out of memory")
        most.append(len(noise))
        return real(model, noise, *a, **k)

    monkeypatch.setattr(comfy.sample, "sample", small)
    halved = compare(loaded, patched)[3]
    assert most == [2, 2, 2, 2]
    for a, b in zip(whole["shots"], halved["shots"], strict=True):
        assert a["pixels"] == pytest.approx(b["pixels"], abs=5e-3)


class Seen:
    """A progress hook that keeps what it is told."""

    def __init__(self, monkeypatch, stop_at=None):
        import comfy.model_management as mm
        import comfy.utils

        self.values, self.previews = [], []

        def hook(value, total, preview, node_id=None):
            self.values.append((value, total))
            if preview is not None:
                self.previews.append(preview[1])
            if stop_at is not None and value >= stop_at:
                mm.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)


def test_progress_and_a_preview_that_fills_up(loaded, monkeypatch):
    monkeypatch.setattr(drawing, "REDRAW_SECONDS", 0.0)
    seen = Seen(monkeypatch)
    grid, *_ = compare(loaded, loaded[0].clone())
    assert seen.values[-1] == (2 * 4 * 4, 2 * 4 * 4) and [v for v, _ in seen.values] == sorted(
        v for v, _ in seen.values
    )
    assert len(seen.previews) >= 8 and seen.previews[0].size[0] == grid.shape[2]


@pytest.mark.parametrize("at", [1, 17])
def test_cancel_stops_within_a_step_and_leaves_the_model_as_it_was(loaded, monkeypatch, at):
    import comfy.model_management as mm

    model, before = loaded[0], digest(loaded[0])
    monkeypatch.setattr(drawing, "REDRAW_SECONDS", 0.0)
    seen = Seen(monkeypatch, stop_at=at)
    with pytest.raises(mm.InterruptProcessingException):
        compare(loaded, patching.apply(model, noise_patch(model))[0])
    mm.interrupt_current_processing(False)
    assert seen.values[-1][0] <= at + 4
    monkeypatch.undo()
    assert digest(model) == before
    assert compare(loaded, model.clone())[3]["verdict"]["code"] == "did_nothing"


def vision(width):
    """A small CLIP vision tower of random weights."""
    import comfy.clip_vision

    config = dict(
        hidden_size=32,
        image_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        patch_size=16,
    )
    made = comfy.clip_vision.ClipVisionModel(
        {
            **config,
            "num_channels": 3,
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "projection_dim": width,
        }
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in made.model.named_parameters():
            p.copy_(
                torch.ones(p.shape)
                if "norm" in name and "weight" in name
                else torch.randn(p.shape, generator=g) * 0.3
            )
    return made


def test_clip_scores(loaded, monkeypatch):
    model, clip, _ = loaded
    patched, _ = patching.apply(model, noise_patch(model), 2.0)
    scores = compare(loaded, model.clone(), clip_vision=vision(768))[3]["clip"]
    assert (
        scores["forgotten"]["clip_image"] == pytest.approx(100, abs=0.01)
        and "clip_after" not in scores["forgotten"]
    )
    assert "no projection" in scores["no_text_score_because"]
    inner = clip.cond_stage_model.clip_l
    monkeypatch.setattr(inner, "return_projected_pooled", True)  # as SD2.x and SDXL have it
    monkeypatch.setattr(inner, "options_default", (*inner.options_default[:2], True))
    projection = (
        inner.transformer.text_projection.weight
    )  # SD1.x loads none, so there is anything in it
    monkeypatch.setattr(projection, "data", torch.eye(*projection.shape, dtype=projection.dtype))
    _, _, words, metrics = compare(loaded, patched, clip_vision=vision(768))
    assert (
        metrics["clip"]["forgotten"]["clip_image"] < 100
        and "CLIP score of forgotten prompts" in words
    )
    assert (
        all({"clip_before", "clip_after"} <= set(s) for s in metrics["shots"])
        and metrics["clip"]["no_text_score_because"] == ""
    )
    wrong = compare(loaded, patched, clip_vision=vision(64))[3]["clip"]
    assert "64" in wrong["no_text_score_because"] and "768" in wrong["no_text_score_because"]


def pixels_of(image, colour):
    """How many pixels of an IMAGE have a colour."""
    wanted = torch.tensor(colour) / 255
    return int(((image - wanted).abs().amax(-1) < 1e-3).sum())


@pytest.mark.parametrize("value, length", [(float("nan"), 1), (0.0, 1), (0.5, 230), (7.0, 460)])
def test_a_bar_is_as_long_as_its_value_and_nan_has_none(value, length):
    chart = charts.bar_charts("Title", [("Scores", [("cat", value, "text", charts.NEUTRAL)])])
    assert pixels_of(chart, charts.NEUTRAL) == (length + 1) * 13


def test_the_sheet_holds_long_names_and_missing_pictures():
    small = charts.thumbnail(rand(64, 64, 3))
    assert small.size == (192, 192) and charts.thumbnail(rand(512, 1024, 3)).size == (192, 96)
    pair = charts.PairCard(
        "a very long name of something that must be forgotten " * 3,
        "small print " * 30,
        small,
        None,
        "changed 100%",
    )
    wide = charts.PairCard(
        "wide",
        "",
        charts.thumbnail(rand(32, 512, 3)),
        charts.thumbnail(rand(512, 32, 3)),
        "broken",
        charts.BAD,
    )
    sheet = charts.pairs_sheet(
        "Title",
        "A verdict. " * 40,
        charts.BAD,
        [("One", [pair]), ("None", []), ("Two", [wide] * 30)],
    )
    image = charts.to_image(sheet)
    assert image.shape == (1, sheet.height, sheet.width, 3) and sheet.width < 1700
    assert pixels_of(image, charts.BAD) > 30 * 4 * 190  # the band and the frames of 30 pairs
    first = slice(sheet.height - 8 * 266 - 38 - 266, sheet.height - 8 * 266 - 38)
    beside = image[:, first, 20 + 2 * 192 + 12 :]  # the first section has one pair in its row
    assert pixels_of(beside, charts.PAPER) == beside.shape[1] * beside.shape[2]


def rows_of(*counts, columns=3):
    """How many cards stand in each row, of concepts with so many cards."""
    cards = [charts.PairCard(f"concept {k}", "") for k, n in enumerate(counts) for _ in range(n)]
    rows = charts._rows(cards, columns)
    assert [card for row in rows for card in row] == cards
    return [len(row) for row in rows]


def test_each_concept_with_several_pictures_has_rows_of_its_own():
    assert rows_of(2, 2, 2) == [2, 2, 2]
    assert rows_of(4, 1) == [3, 1, 1]
    assert rows_of(1, 1, 1, 1) == [3, 1]  # one picture of each: no room is wasted
    assert rows_of() == []


def test_the_report_names_the_file_of_the_model(loaded, monkeypatch):
    titles, real = [], charts.pairs_sheet
    monkeypatch.setattr(charts, "pairs_sheet", lambda *a: titles.append(a[0]) or real(*a))
    metrics = compare(loaded, loaded[0].clone(), kept=0)[3]
    name = metrics["model"]
    assert name.endswith(".safetensors") and set(titles) == {f"Erasure Report of {name}"}
    unknown = loaded[0].clone()
    unknown.cached_patcher_init = None
    assert compare(loaded, unknown.clone(), unknown, kept=0)[3]["model"] == ""
    assert titles[-1] == "Erasure Report"
