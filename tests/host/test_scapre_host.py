"""ScaPreSolve and ApplyUnlearnPatch on a real loaded model: what they change, what they refuse, and that nothing is mutated."""

import copy
import math

import pytest
import torch

import pack

scapre = pack.module("nodes.host.scapre")
patching = pack.module("nodes.host.patching")
weights = pack.module("nodes.host.weights")
text = pack.module("nodes.concept_text")
types = pack.module("nodes.types")
nodes = pack.module("nodes")
UnlearnError = pack.module("nodes.errors").UnlearnError

CONCEPTS = text.parse("fox -> animal\nhouse -> building", "cat\nchurch")
SENTENCES = ("{concept}", "a {concept}")


def bits(model):
    """Content of every weight of a MODEL as it lies in memory once it is the loaded one."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return {k: v.clone() for k, v in model.model.state_dict().items()}


def assert_same(model, before):
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.fixture(scope="module")
def patch(loaded):
    with torch.inference_mode():
        return scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False)[0]


def lora(model, scale=0.02):
    """A clone of MODEL with a stock LoRA patch on one key matrix, and that matrix' key."""
    import comfy.weight_adapter

    key = next(k for k in model.model.state_dict() if k.endswith("attn2.to_k.weight"))
    g = torch.Generator().manual_seed(0)
    up, down = torch.randn(320, 4, generator=g) * scale, torch.randn(4, 768, generator=g)
    clone = model.clone()
    clone.add_patches({key: comfy.weight_adapter.LoRAAdapter(set(), (up, down, None, None, None, None))})
    return clone, key, up @ down


def loaded_weight(model, key):
    """The weight as the loaded module has it."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return model.model.state_dict()[key].clone()


def test_solving_and_applying_mutates_nothing(loaded, patch):
    model, clip, _ = loaded
    loaded_weight(model, patch.edits[0][0])
    before = bits(model)
    assert_same(model, before)
    patched, warning = patching.apply(model, patch)
    changed = loaded_weight(patched, patch.edits[0][0])
    assert warning == "" and not torch.equal(changed, before[patch.edits[0][0]])
    loaded_weight(model, patch.edits[0][0])
    assert_same(model, before)


def test_down_is_shared_and_the_edit_is_what_the_kernel_says(loaded, patch):
    model = loaded[0]
    downs = {id(edit.weights[1]) for _, edit in patch.edits}
    assert len(downs) == 1 and len(patch.edits) == 8
    key, edit = patch.edits[3]
    want = weights.read(model, key) + edit.weights[0] @ edit.weights[1]
    got = loaded_weight(patching.apply(model, patch)[0], key)
    assert torch.allclose(got.float(), want, atol=1e-6)


def test_strength_scales_the_edit(loaded, patch):
    model, key = loaded[0], patch.edits[0][0]
    w0 = weights.read(model, key)
    full, half, none, back = (loaded_weight(patching.apply(model, patch, s)[0], key).float() - w0 for s in (1, 0.5, 0, -1))
    assert (
        torch.allclose(half, full / 2, atol=1e-6) and torch.equal(none, torch.zeros_like(none)) and torch.allclose(back, -full, atol=1e-6)
    )


def test_reading_is_pristine_while_a_sibling_is_loaded(loaded, patch):
    model, key = loaded[0], patch.edits[0][0]
    before = weights.read(model, key)
    loaded_weight(patching.apply(model, patch)[0], key)
    assert torch.equal(weights.read(model, key), before)


def test_reading_sees_loras_and_fingerprints_do_not(loaded):
    model = loaded[0]
    with_lora, key, change = lora(model)
    assert torch.allclose(weights.read(with_lora, key) - weights.read(model, key), change, atol=1e-5)
    assert weights.fingerprint(with_lora, [key]).difference(weights.fingerprint(model, [key])) == 0


@pytest.mark.parametrize("order", ["lora first", "patch first"])
def test_loras_before_and_after_add_up(loaded, patch, order):
    model = loaded[0]
    before = bits(model)
    with_lora, key, change = lora(model)
    edit = dict(patch.edits)[key]
    if order == "lora first":
        both = patching.apply(with_lora, patch)[0]
    else:
        both = lora(patching.apply(model, patch)[0])[0]
    want = weights.read(model, key) + change + edit.weights[0] @ edit.weights[1]
    assert torch.allclose(loaded_weight(both, key).float(), want, atol=1e-4)
    loaded_weight(model, key)
    assert_same(model, before)


def test_another_base_model_is_noticed(loaded, patch):
    samples = {k: torch.randn_like(v) for k, v in patch.fingerprint.samples.items()}
    other = types.UnlearnPatch(patch.edits, types.Fingerprint(samples), patch.provenance)
    patched, warning = patching.apply(loaded[0], other)
    assert "another base model" in warning and len(patched.patches) == len(patch.edits)
    with pytest.raises(UnlearnError, match="another base model"):
        patching.apply(loaded[0], other, strict=True)


def test_missing_keys_are_named(loaded, patch):
    other = types.UnlearnPatch((("diffusion_model.nowhere.weight", patch.edits[0][1]), *patch.edits), patch.fingerprint, patch.provenance)
    with pytest.raises(UnlearnError, match=r"lacks 1 .*diffusion_model.nowhere.weight"):
        patching.apply(loaded[0], other)
    wrong = types.UnlearnPatch(((patch.edits[0][0].replace("attn2.to_k", "attn2.to_q"), patch.edits[0][1]),), patch.fingerprint, ())
    with pytest.raises(UnlearnError, match="shape"):
        patching.apply(loaded[0], wrong)


def test_a_text_encoder_of_another_width_is_refused(loaded):
    class Wide:
        def __getattr__(self, name):
            return getattr(loaded[1], name)

        def encode_from_tokens(self, tokens):
            out = loaded[1].encode_from_tokens(tokens)
            return torch.cat([out, out], -1)

    with pytest.raises(UnlearnError, match="width 1536 .* width 768"):
        scapre.solve(loaded[0], Wide(), CONCEPTS, SENTENCES, prior=False)


def test_damaged_weights_are_named(loaded):
    model = loaded[0].clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
    bad = torch.zeros(320, 768)
    bad[3, 5] = math.nan
    model.add_patches({key: ("diff", (bad,))})
    with pytest.raises(UnlearnError, match="NaN.*input_blocks.1.1.*to_v"):
        scapre.solve(model, loaded[1], CONCEPTS, SENTENCES, prior=False)


@pytest.mark.parametrize("name", ["erase", "preserve", "anchor", "spectral"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_settings_must_be_finite(loaded, name, value):
    variant = {"variant": "anchored", **scapre.DEFAULTS, name: value}
    with pytest.raises(UnlearnError, match=f"'{name}' is (nan|inf)"):
        nodes.ScaPreSolve.execute(loaded[0], loaded[1], CONCEPTS, variant, "all", False)


def test_strength_must_be_finite(loaded, patch):
    with pytest.raises(UnlearnError, match="'strength' is nan"):
        nodes.ApplyUnlearnPatch.execute(loaded[0], {"patch0": patch}, math.nan, "warn")


def test_interrupt_leaves_the_model_as_it_was(loaded):
    import comfy.model_management as mm

    before = bits(loaded[0])
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False)
    mm.interrupt_current_processing(False)
    assert_same(loaded[0], before)
    assert scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False)[0].edits


def test_solving_twice_gives_the_same_patch(loaded, patch):
    again = scapre.solve(loaded[0], loaded[1], copy.deepcopy(CONCEPTS), SENTENCES, prior=False)[0]
    assert again == patch


def test_informax_and_spectral_change_the_solution(loaded, patch):
    for settings in ({"informax": True}, {"spectral": 5.0}):
        assert scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False, **settings)[0] != patch


def test_report_says_what_happened(loaded):
    _, picture, words = scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False)
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and 0 <= picture.min() and picture.max() <= 1
    assert "2 concepts" in words and "Next:" in words
    _, _, words = scapre.solve(loaded[0], loaded[1], CONCEPTS, SENTENCES, prior=False, erase=1e-6)
    assert "hardly touched" in words
