"""GGUF models: what is on the model does not count as its own weights, and none is saved."""

import pytest
import torch

from testbed import pack, tiny
from testbed.packed import packed

adapters = pack.module("unlearn.host.adapters")
checkpoint_files = pack.module("unlearn.host.checkpoint")
layers = pack.module("unlearn.host.architectures")
lora_files = pack.module("unlearn.files.lora_file")
patch_match = pack.module("unlearn.host.patch_match")
patching = pack.module("unlearn.host.patching")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
UnlearnError = pack.module("unlearn.errors").UnlearnError


@pytest.fixture
def model():
    made = tiny.model()
    return packed(made, [layer.key for layer in layers.cross_attention(made)])


def keys_of(model):
    return [layer.key for layer in layers.cross_attention(model)]


def patch_of(model, seed, name="fox"):
    """A low-rank change of every key and value matrix."""
    g = torch.Generator().manual_seed(seed)
    edits = []
    for key in keys_of(model):
        d_out, d_in = weights.shape(model, key)
        up = 0.1 * torch.randn(d_out, 2, generator=g)
        edits.append((key, adapters.LowRank.of(up, torch.randn(2, d_in, generator=g))))
    said = {"method": "ScaPre anchored", "concepts": [name], "settings": {}}
    return types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys_of(model)), (said,))


def with_lora(model, seed=3):
    import comfy.weight_adapter

    g, patched, lora = torch.Generator().manual_seed(seed), model.clone(), {}
    for key in keys_of(model):
        d_out, d_in = weights.shape(model, key)
        factors = torch.randn(d_out, 4, generator=g), torch.randn(4, d_in, generator=g)
        lora[key] = comfy.weight_adapter.LoRAAdapter(set(), (*factors, 4.0, None, None, None))
    patched.add_patches(lora, 1.0)
    return patched


def test_a_second_patch_and_a_lora_in_front_are_the_same_base_model(model):
    fox, house = patch_of(model, 1), patch_of(model, 2, "house")
    first, warning = patching.apply(model, fox)
    assert warning == ""
    for on in (first, with_lora(model)):
        match = patch_match.match(on, house)
        assert (match.grade, match.baked) == ("same", 0) and match.difference < 1e-5
        assert patching.apply(on, house)[1] == ""


def test_reading_takes_what_it_is_asked_for(model):
    key, fox = keys_of(model)[0], patch_of(model, 1)
    original = weights.read(model, key)
    change = dict(fox.edits)[key].change(original, 1.0)
    lora = weights.read(with_lora(model), key) - original
    both = patching.apply(with_lora(model), fox)[0]
    assert lora.norm() > 0.1 * original.norm()
    assert torch.allclose(weights.read(both, key), original + lora + change, atol=1e-4)
    assert torch.allclose(weights.read(both, key, edited=False), original + lora, atol=1e-4)
    assert torch.allclose(weights.read(both, key, patched=False), original, atol=1e-4)
    assert torch.allclose(weights.read(model, key), original, atol=1e-5)


def test_the_layer_computes_what_reading_says(model):
    import comfy.model_management

    key, fox = keys_of(model)[0], patch_of(model, 1)
    patched = patching.apply(model, fox)[0]
    weights.fingerprint(patched, keys_of(model))  # loads the model without its patches
    comfy.model_management.load_models_gpu([patched])
    layer = patched.model.get_submodule(key.removesuffix(".weight"))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(5))
    want = x @ weights.read(patched, key).T
    comfy.model_management.load_models_gpu([patched])
    assert torch.allclose(layer(x), want, atol=1e-3)


def test_saving_is_refused_in_one_sentence_and_a_lora_is_not(model):
    fox = patch_of(model, 1)
    patched = patching.apply(model, fox)[0]
    with pytest.raises(UnlearnError, match="stores its weights packed, as GGUF models do"):
        checkpoint_files.save(patched, None, None, "gguf")
    tensors, _, report = lora_files.export(model, fox)
    assert len(tensors) == 3 * len(fox.edits) and "another base model" not in report
    assert weights.saving_fault(tiny.model()) == ""
