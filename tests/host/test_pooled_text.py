"""SDXL's pooled text vector: a concept leaves it as it leaves keys and values."""

import pytest
import torch

from testbed import pack, tiny, trial

architectures = pack.module("unlearn.host.architectures")
encoding = pack.module("unlearn.host.text_encoding")
pooled_text = pack.module("unlearn.host.pooled_text")
caches = pack.module("unlearn.files.text_cache")
patch_file = pack.module("unlearn.files.patch_file")
lora_file = pack.module("unlearn.files.lora_file")
forecast = pack.module("unlearn.analysis.forecast")
patching = pack.module("unlearn.host.patching")
KEY = "diffusion_model.label_emb.0.0.weight"
WIDTH = tiny.SDXL_WIDTHS[1]
TEXTS = ("a photo of a fox", "", "two dogs by the sea, oil painting")
LEFT = 0.2  # of both paths; all of it in keys and values, which kept text shares
FORGET = "fox -> animal\nhouse -> building"


@pytest.fixture(scope="module")
def sdxl():
    """(model, clip) of random weights, in inference mode as in ComfyUI."""
    with torch.inference_mode():
        yield tiny.sdxl(), tiny.sdxl_clip()


@pytest.fixture(scope="module")
def solved(sdxl):
    """(patch, report) of the default variant."""
    with torch.inference_mode():
        return trial.solve(FORGET, "dog\ncat", model=sdxl[0], clip=sdxl[1], prior=False)


def stock(clip, text):
    """(token states, pooled vector) as ComfyUI's own nodes read them."""
    return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)


def weight(model):
    return model.model.state_dict()[KEY]


def test_pooled_vectors_of_a_batch_are_the_hosts(sdxl):
    clip = sdxl[1]
    found = {}
    states = encoding.encode(clip, TEXTS, None, found)
    fast = caches.TextStateCache(clip, pooled=True)
    assert fast.fast_encoder is not None and encoding.pooled_source(clip, "a") == "clip_g"
    quick = fast.get_pooled([encoding.whole(clip, text) for text in TEXTS])
    for text in TEXTS:
        state, pooled = stock(clip, text)
        assert torch.allclose(found[text], pooled[0], atol=1e-4)
        assert torch.allclose(quick[text], pooled, atol=1e-4)
        assert torch.allclose(states[text], state[0], atol=1e-4)


def test_a_clip_of_another_build_is_read_one_by_one(sdxl):
    class Other:
        def __init__(self, clip):
            self.tokenize = clip.tokenize
            self.encode_from_tokens = clip.encode_from_tokens

    found = {}
    encoding.encode(Other(sdxl[1]), TEXTS, None, found)
    assert torch.allclose(found[TEXTS[2]], stock(sdxl[1], TEXTS[2])[1][0], atol=1e-4)


def test_pooled_vectors_are_found_on_disk(sdxl, tmp_path):
    clip = sdxl[1]
    wanted = [encoding.whole(clip, text) for text in TEXTS]
    first = caches.TextStateCache(clip, tmp_path, pooled=True)
    first.get(wanted)
    again = caches.TextStateCache(clip, tmp_path, pooled=True)
    assert all(
        torch.equal(again.get_pooled(wanted)[text], first.get_pooled(wanted)[text])
        for text in TEXTS
    )
    assert again.encoded == 0
    plain = caches.TextStateCache(clip, tmp_path)  # has a folder of its own
    plain.get(wanted)
    assert plain.encoded == len(TEXTS) and plain.folder != again.folder
    projection = clip.cond_stage_model.clip_g.transformer.text_projection.weight
    projection.mul_(2)
    try:
        assert caches.TextStateCache(clip, tmp_path, pooled=True).folder != again.folder
        assert caches.TextStateCache(clip, tmp_path).folder == plain.folder
    finally:
        projection.div_(2)


@pytest.mark.parametrize(
    "kind, numbers, width",
    [("SDXL", 6, WIDTH), ("SSD1B", 6, WIDTH), ("Segmind_Vega", 6, WIDTH), ("KOALA_700M", 6, WIDTH)]
    + [("SDXL_instructpix2pix", 6, WIDTH), ("SDXLRefiner", 5, WIDTH)]
    + [("SD15", 0, None), ("SD21UnclipL", 6, None), ("SD21UnclipH", 6, None)],
)
def test_which_models_read_pooled_text(kind, numbers, width):
    """Of unCLIP the vector is that of a picture, so there is nothing to edit."""
    import comfy.lora

    with torch.inference_mode():
        model = tiny.sdxl(kind, numbers) if numbers else tiny.model(kind)
    found = architectures.pooled_text(model)
    if width is None:
        assert found == []
        return
    (layer,) = found
    assert (layer.key, layer.columns, layer.label) == (KEY, (0, width), "pooled text")
    assert architectures.label(KEY) == "pooled text" and layer.group != "text"
    name = architectures.of(model).lora_names()[KEY]
    assert comfy.lora.model_lora_keys_unet(model.model, {})[name] == KEY
    assert kind == "SDXLRefiner" or name == "lora_unet_label_emb_0_0"


def test_only_the_pooled_columns_change(sdxl, solved):
    model, before = sdxl[0], weight(sdxl[0]).clone()
    patched, warning = patching.apply(model, solved[0])
    edited = pack.module("unlearn.host.weights").read(patched, KEY)
    assert not warning and torch.equal(edited[:, WIDTH:], before[:, WIDTH:])
    assert not torch.equal(edited[:, :WIDTH], before[:, :WIDTH])
    assert torch.equal(weight(model), before)


def outputs(model, states, pooled):
    """What a model predicts from one noise under each of two prompts' states."""
    unet = model.model.diffusion_model
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    y = model.model.encode_adm(pooled_output=pooled, device="cpu").expand(2, -1)
    return unet(x, torch.full((2,), 500.0), context=states.expand(2, -1, -1), y=y)


def edited_copy(patch):
    copy = tiny.sdxl()
    state = copy.model.state_dict()
    for key, edit in patch.edits:
        state[key].copy_(state[key] + edit.change(state[key], 1.0))
    return copy


def test_a_concept_leaves_both_paths_and_kept_text_stays(sdxl, solved):
    plain, clip = sdxl
    edited = edited_copy(solved[0])
    for name, neutral in (("fox", "animal"), ("house", "building")):
        said = stock(clip, f"a photo of a {name}")
        other = stock(clip, f"a photo of a {neutral}")
        added = [outputs(m, *said) - outputs(m, *other) for m in (plain, edited)]
        by_pooled = [
            outputs(m, said[0], said[1]) - outputs(m, said[0], other[1]) for m in (plain, edited)
        ]
        assert float(by_pooled[1].norm() / by_pooled[0].norm()) < 0.01
        assert float(added[1].norm() / added[0].norm()) < LEFT
    for text in ("a photo of a dog", "a cat on a table"):
        before, after = (outputs(m, *stock(clip, text)) for m in (plain, edited))
        assert float((after - before).norm() / before.norm()) < 0.035


@pytest.mark.parametrize("variant", ["anchored", "paper", "released-A", "released-B", "uce"])
def test_every_variant_edits_the_layer(sdxl, variant):
    options = {"hard_keep": 0.5, "rounds": 1} if variant == "anchored" else {}
    patch, report = trial.solve(
        "fox -> animal", "dog", model=sdxl[0], clip=sdxl[1], prior=False, variant=variant, **options
    )
    assert KEY in dict(patch.edits) and "pooled text is cut to" in report
    change = dict(patch.edits)[KEY].change(weight(sdxl[0]), 1.0)
    assert not change[:, WIDTH:].any() and change[:, :WIDTH].any()


def test_words_are_protected_in_both_groups(sdxl, monkeypatch):
    solve = pack.module("unlearn.closed_form.solve")
    asked = []

    def seen(before, after, clip, impacts, size):
        asked.append(after)
        return [impact._replace(retention=0.1) for impact in impacts]

    monkeypatch.setattr(solve.forecast, "impacts_on_predictions", seen)
    patch, report = trial.solve(
        "fox -> animal", "dog", model=sdxl[0], clip=sdxl[1], prior=False, protect=0.5
    )
    assert "Auto-protect holds 1 more: dog" in report and KEY in dict(patch.edits) and asked


def test_files_and_forecast_know_the_layer(sdxl, solved, tmp_path):
    model, clip = sdxl
    file = tmp_path / "sdxl.safetensors"
    patch_file.save(file, solved[0])
    again, _ = patch_file.load(file)
    assert again == solved[0]
    tensors, _, _ = lora_file.export(model, solved[0])
    name = "lora_unet_label_emb_0_0"
    change = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    assert torch.allclose(change, dict(solved[0].edits)[KEY].change(weight(model), 1.0), atol=1e-5)
    only = pack.module("unlearn.types").UnlearnPatch(
        tuple(edit for edit in solved[0].edits if edit[0] == KEY), solved[0].fingerprint
    )
    impacts = forecast.of_patch(model, clip, only, ("house",), ("fox",))
    assert {i.name: i.retention for i in impacts}["fox"] < 0.6  # keys and values are untouched


def test_the_clip_layer_is_in_the_provenance(sdxl):
    clip = sdxl[1].clone()
    patch, report = trial.solve("fox -> animal", model=sdxl[0], clip=sdxl[1], prior=False)
    assert "clip_layer" not in patch.provenance[0] and "CLIP Set Last Layer" not in report
    clip.clip_layer(-3)
    patch, report = trial.solve("fox -> animal", model=sdxl[0], clip=clip, prior=False)
    assert patch.provenance[0]["clip_layer"] == -3 and "layer -3 that CLIP Set Last" in report
