"""What nodes refuse before any work is done, and what they give to files and to the page."""

import sys
from types import SimpleNamespace

import pytest
import torch

from testbed import pack

nodes = pack.module("nodes")
adapters = pack.module("unlearn.host.adapters")
checkpoint_files = pack.module("unlearn.host.checkpoint")
files = pack.module("unlearn.files.safetensors_io")
layers = pack.module("unlearn.host.architectures")
patching = pack.module("unlearn.host.patching")
progress = pack.module("unlearn.host.progress")
states = pack.module("unlearn.files.text_cache")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
text = pack.module("unlearn.concepts.notation")
collateral = pack.module("nodes.collateral_forecast")
UnlearnError = pack.module("unlearn.errors").UnlearnError


# Stand-ins that pass for a MODEL and a CLIP where nothing is asked of them.
MODEL = SimpleNamespace(
    model=SimpleNamespace(diffusion_model=None),
    clone=None,
    add_patches=None,
    get_model_object=None,
)
CLIP = SimpleNamespace(tokenize=None, encode_from_tokens_scheduled=None)
FOX = text.parse("fox")


def running(node, **hidden):
    """A node as the host makes one, with what it hides from the artist."""
    return type(
        "Running",
        (node,),
        {
            "hidden": SimpleNamespace(
                **{"unique_id": "7", "extra_pnginfo": None, "prompt": None, **hidden}
            )
        },
    )


def patch_of(model):
    """The first key matrix shrunk along one direction, for a fox and a vixen."""
    key = layers.cross_attention(model)[0].key
    down = torch.nn.functional.normalize(torch.ones(1, weights.shape(model, key)[1]), dim=1)
    edit = adapters.LowRank.of(-(weights.read(model, key) @ down.T), down)
    said = {"method": "m", "concepts": ["fox", "vixen"], "settings": {}}
    return types.UnlearnPatch(((key, edit),), weights.fingerprint(model, [key]), (said,))


@pytest.mark.parametrize(
    "refuse, says",
    [
        (
            lambda: nodes.MergeConceptSaliency.execute({"saliency0": None}),
            "'saliency' has nothing connected",
        ),
        (
            lambda: nodes.NeuronMaskFuse.execute(
                {}, r2=0.01, alpha=0.6, from_depth=0.0, to_depth=1.0
            ),
            "'saliency' has nothing connected",
        ),
        (
            lambda: nodes.ConceptSaliency.execute(
                MODEL, CLIP, FOX, raw_statistics="x", score="wanda", cfg=3.0, ceiling=0.1, r1=0.1
            ),
            "'raw_statistics' is for score 'paper'",
        ),
        (
            lambda: nodes.DynamicMaskTrainer.execute(
                MODEL, CLIP, FOX, {"preset": "quick"}, variant="hasty"
            ),
            "'variant' is 'hasty'; choose one of .*replay",
        ),
    ],
    ids=["merge", "fuse", "raw", "variant"],
)
def test_what_cannot_be_used_is_said_before_any_work(refuse, says):
    with pytest.raises(UnlearnError, match=says):
        refuse()


@pytest.mark.parametrize("patches", [{}, {"patch0": None}])
def test_apply_without_a_patch_gives_out_the_model_itself(patches):
    applied = running(nodes.ApplyUnlearnPatch).execute(MODEL, patches, 1.0, "error")
    model, said, clip = applied.result
    assert (
        model is MODEL
        and clip is None
        and "No patch is connected; the model passes through" in said
    )


def test_apply_leaves_for_files_what_it_did(loaded):
    """Apply writes its patches under its node id, and save nodes put that into the metadata.

    A page that sends no metadata gets none.
    """
    extra, patch = {"workflow": {}}, patch_of(loaded[0])
    patched, said = (
        running(nodes.ApplyUnlearnPatch, extra_pnginfo=extra)
        .execute(loaded[0], {"patch0": patch}, 0.5, "error")
        .result[:2]
    )
    assert extra == {"workflow": {}, "unlearn": {"7": [{**patch.provenance[0], "strength": 0.5}]}}
    assert patching.manifest(patched)[0]["strength"] == 0.5
    assert said.startswith("Patch applied at strength 0.5. Fox and vixen may still show.\n")
    assert "m: forgets fox, vixen\n1 edits on 1 weights" in said
    assert (
        running(nodes.ApplyUnlearnPatch)
        .execute(loaded[0], {"patch0": patch}, 0.5, "error")
        .result[1]
        == said
    )


@pytest.mark.parametrize(
    "given, forgotten, keep",
    [
        (None, ["fox", "vixen"], ()),
        (text.parse("cat | kitten", "dog"), ["cat", "kitten"], ("dog",)),
    ],
)
def test_a_forecast_leaves_out_what_was_to_be_forgotten(monkeypatch, given, forgotten, keep):
    """Of the list where one is connected, else of what the patch says of itself."""
    asked = []

    def of_patch(model, clip, patch, forgotten, keep, settings):
        asked.append((forgotten, keep))
        return [collateral.forecast.WordImpact("wolf", 0.4, False)]

    monkeypatch.setattr(collateral.forecast, "of_patch", of_patch)
    patch = types.UnlearnPatch(
        (), types.Fingerprint({}), ({"method": "m", "concepts": ["fox", "vixen"]},)
    )
    monkeypatch.setattr(collateral, "check_clip", lambda model, clip: None)
    picture, said = running(nodes.CollateralForecast).execute(MODEL, CLIP, patch, 1.0, given).result
    assert asked == [(forgotten, keep)] and "wolf 40% left" in said and picture.shape[0] == 1


def test_a_second_forecast_examines_only_what_is_new(monkeypatch):
    """The words that lose most of what sets them apart are examined, and each of them once."""
    forecast = collateral.forecast
    examined = []

    def text_contrasts(clip, fetch, names):
        examined.append(list(names))
        row, weight = torch.tensor([[1.0, 1.0]]).double(), torch.ones(1).double()
        return {name: forecast.TextContrast(row, weight) for name in names}

    monkeypatch.setattr(forecast, "text_contrasts", text_contrasts)
    words = tuple(f"word {i}" for i in range(20))
    states = torch.zeros(20, 2, dtype=torch.float64)
    states[:10, 0], states[10:, 1] = 1.0, 1.0
    weights_only = forecast.WeightForecast(None, None, ["key"], words, states)
    grams = forecast.WeightGrams()
    grams.add_edited(torch.eye(2), torch.diag(torch.tensor([-1.0, 0.0])))
    first = weights_only.impacts(grams)
    assert [(i.name, i.retention) for i in first if i.on_keep_list] == [("key", 0.5)]
    assert len(first) == 17 and len(examined) == 1
    assert weights_only.impacts(grams) == first and len(examined) == 1


def test_a_forecast_says_what_of_the_keep_list_is_harmed():
    hit = collateral.forecast.WordImpact
    hits = [hit("wolf", 0.2, False), hit("dog", 0.5, True), hit("key", 0.95, True)]
    forecast = collateral.forecast
    assert forecast.findings(hits).report(forecast.verdict(hits)).splitlines() == [
        "Dog and wolf may change.",
        "WARNING: 'dog' on your keep list may change.",
        "Try: add what matters to 'keep' of Concepts to Forget.",
        "",
        "Details:",
        "The edit weakens these entries of the keep list: dog 50% left of their effect.",
        "These words are not on the forget list, but the forecast expects them to be harmed most: "
        "wolf 20% left of their effect.",
    ]
    assert forecast.verdict(hits[2:]) == "Nothing else should change."


def test_a_forecast_names_only_words_that_a_picture_can_show(monkeypatch):
    """Where it is asked for them: a word that is protected may be any."""
    forecast = collateral.forecast
    monkeypatch.setattr(
        forecast,
        "text_contrasts",
        lambda clip, fetch, names: {
            name: forecast.TextContrast(torch.ones(1, 2).double(), torch.ones(1).double())
            for name in names
        },
    )
    words = ("the", "very", "wolf", "red", "when", "church")
    states = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grams = forecast.WeightGrams()
    grams.add_edited(torch.eye(2), torch.diag(torch.tensor([-1.0, 0.0])))
    weights_only = forecast.WeightForecast(None, None, ["the sea"], words, states)
    named = {impact.name for impact in weights_only.impacts(grams, pictured=True)}
    assert named == {"the sea", "wolf", "red", "church"}
    assert {impact.name for impact in weights_only.impacts(grams)} == {"the sea", *words}


def test_a_forecast_goes_on_in_smaller_batches_when_memory_runs_out(loaded, monkeypatch):
    import comfy.samplers

    sentences = pack.module("unlearn.concepts.sentences")
    monkeypatch.setattr(sentences, "prior_words", lambda: ("wolf", "dog", "car"))
    model, clip, _ = loaded
    patch, concepts = patch_of(model), text.parse("fox", "cat")
    node = running(nodes.CollateralForecast)

    def forecast():
        return node.execute(model, clip, patch, 1.0, concepts, glance=True, size=64).result[1]

    whole, sizes = forecast(), []
    real = comfy.samplers.calc_cond_batch

    def small(inner, conds, noisy, sigma, options):
        if len(noisy) > 3:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(noisy))
        return real(inner, conds, noisy, sigma, options)

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", small)
    assert forecast() == whole
    assert set(sizes) == {2}


def test_text_is_shown_under_the_node_where_a_page_is_there(monkeypatch):
    shown = []
    server = SimpleNamespace(send_progress_text=lambda *args: shown.append(args))
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    )
    progress.say("done", "7")
    progress.say("nobody asked", None)
    assert shown == [("done", "7")]


def test_states_are_kept_in_the_users_folder_where_a_server_runs(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=None))
    )
    assert states.default_folder() is None
    monkeypatch.setitem(
        sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=object()))
    )
    assert states.default_folder() == tmp_path / "__unlearn" / "states"


def test_a_weight_that_takes_no_patch_is_named():
    deaf = SimpleNamespace(add_patches=lambda patches, strength: [])
    with pytest.raises(UnlearnError, match="did not accept a patch for its weight 'w'"):
        patching.into_weights(deaf, {"w": ((None, 1.0),)})


def test_a_file_says_no_more_of_itself_than_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_HEADER", 10**6)
    with pytest.raises(UnlearnError, match="'x.safetensors' would need more than 1 MB of metadata"):
        files.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"prompts": "x" * 10**6})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_needs_a_patch_and_a_place(loaded, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    with pytest.raises(UnlearnError, match="'model' has no unlearn patch on it"):
        checkpoint_files.save(loaded[0], None, None, "x")
    patched = patching.apply(loaded[0], patch_of(loaded[0]))[0]
    with pytest.raises(UnlearnError, match="leads out of the output folder"):
        checkpoint_files.save(patched, None, None, "../../x")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
