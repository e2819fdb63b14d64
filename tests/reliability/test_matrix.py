"""Every storage of weights, with every edit, in every way that a patch meets the patcher.

All of it runs in ComfyUI's own modules. The model is a UNet of one level that ComfyUI's loader
detects as SD1.5; the layers of its later blocks are quantised as in the files that people share.
What a layer does is read from its answers to unit vectors.
"""

import functools
import hashlib

import pytest
import torch

from testbed import pack, storages
from testbed.storages import KEYS, PLAIN, QUANTISED

adapters = pack.module("unlearn.host.adapters")
bypass = pack.module("unlearn.host.bypass")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")

STORAGES = (*PLAIN, *QUANTISED)
# Largest relative error of an edited weight: what one rounding into the format leaves. Measured, in
# the order of STORAGES: 0.5e-6, 2e-4, 1.7e-3, 0.04, 0.04, 0.04, 0.02, 0.19.
ROUNDING = dict(zip(STORAGES, (2e-6, 5e-4, 4e-3, 0.06, 0.06, 0.06, 0.03, 0.25), strict=True))
EDITS = ("prune", "lowrank", "delta")


@functools.cache
def model_of(storage):
    """(MODEL of that storage, digest of its weights)."""
    model = storages.model(storage)
    return model, digest(model)


def digest(model):
    h = hashlib.blake2b()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def layer(model, key):
    return model.model.get_submodule(key.removesuffix(".weight"))


def load(model):
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    return model


def answers(model, key):
    """A loaded layer's weight float32 [d_out, d_in] as its forward pass applies it; no bias."""
    linear = layer(model, key)
    unit = torch.eye(linear.in_features, dtype=compute(model), device=model.load_device)
    return linear(unit).float().T.cpu()


def compute(model):
    return model.model.manual_cast_dtype or model.model.get_dtype()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask(w, seed=0):
    """A fifth of the connections, but not the largest of a row.

    Formats with scales would round all others by the next largest.
    """
    return (rand(*w.shape, seed=seed + 7) > 0.8).scatter_(1, w.abs().argmax(1, keepdim=True), False)


def directions(w, seed=0):
    """Two concepts [2, d_in] as orthonormal rows."""
    return torch.linalg.qr(rand(w.shape[1], 2, seed=seed + 3))[0].T.contiguous()


def edit_of(kind, w, seed=0):
    """An edit of a weight float32 [d_out, d_in]."""
    if kind == "prune":
        return adapters.Prune.of(mask(w, seed), *w.shape)
    if kind == "lowrank":  # takes two directions out altogether
        return adapters.LowRank.of(-(w @ directions(w, seed).T), directions(w, seed))
    return adapters.Delta.of(
        torch.where(mask(w, seed), rand(*w.shape, seed=seed + 5) * w.std() / 2, 0)
    )


def patch_of(kind, model, seed=0):
    edits = tuple((key, edit_of(kind, weights.read(model, key), seed)) for key in KEYS)
    return types.UnlearnPatch(
        edits, weights.fingerprint(model, KEYS), ({"method": kind, "concepts": ["c"]},)
    )


def lora(model, seed=0):
    """The MODEL with a LoRA of rank 4, as ComfyUI's own loaders put it on."""
    import comfy.weight_adapter

    with_lora = model.clone()
    for key in KEYS:
        d_out, d_in = weights.shape(model, key)
        up, down = rand(d_out, 4, seed=seed + 1), rand(4, d_in, seed=seed + 2) / d_in / 40
        assert with_lora.add_patches(
            {key: comfy.weight_adapter.LoRAAdapter(set(), (up, down, 4.0, None, None, None))}, 1.0
        )
    return with_lora


def added_by_lora(model, key):
    return weights.read(lora(model), key) - weights.read(model, key)


def merged(storage, one, two):
    """ModelMergeSimple at ratio 0.75 of two patched or plain MODELs."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    return ModelMergeSimple().merge(one, two, 0.75)[0]


def near(got, want, storage, times=1.0):
    error = float((got - want).norm() / want.norm())
    assert error <= ROUNDING[storage] * times, error


def check(model, storage, want):
    """A loaded MODEL's layers act as the weights want(key), within one rounding.

    In int8 the inputs are rounded too.
    """
    for key in KEYS:
        w, linear = want(key), layer(model, key)
        x = rand(256, w.shape[1], seed=11)
        near(linear(x.to(compute(model))).float(), x @ w.T, storage)


def plain_is_as_it_was(storage):
    """The unpatched MODEL, loaded again, has its own bits and answers, and no hooks."""
    model, before = model_of(storage)
    load(model)
    assert digest(model) == before
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
        for m in model.model.modules()
    )
    assert not any(getattr(m, "weight_function", None) for m in model.model.modules())
    assert not model.is_injected


@pytest.fixture(params=STORAGES, scope="module")
def storage(request):
    return request.param


@pytest.fixture(params=EDITS)
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def counted(request, tally):
    yield
    if "kind" in request.fixturenames:
        tally("cells")


def edited(w, kind, strength=1.0, seed=0):
    """The edit's formula on a weight float32."""
    return w + edit_of(kind, w, seed).change(w, strength)


def pruned_exactly(model, storage, streamed=False):
    """What is pruned is exactly zero in the layer's answers; the rest is unchanged, bit for bit.

    Two formats differ once they are rounded again, which streamed weights are not: nvfp4 in its
    blocks of 16, and int8 in next to no weight.
    """
    plain, _ = model_of(storage)
    for key in KEYS:
        w = weights.read(plain, key)
        cut, got = mask(w), answers(model, key)
        assert torch.equal(got[cut], torch.zeros_like(got[cut]))
        if streamed:
            assert torch.equal(got[~cut], w.to(compute(model)).float()[~cut])
        elif storage != "nvfp4":
            off = (held(model, key) - torch.where(cut, 0.0, w)).abs()
            if storage == "int8":
                # The host rounds at random, and n * scale / scale may differ in the last bit.
                # Measured: 2 of 409600 weights differ, by one step.
                assert (off > 0).float().mean() < 1e-4 and off.max() < 1.01 * w.abs().max() / 127
            else:
                assert not off.any()


def held(model, key):
    """The weight float32 that the layer of a loaded MODEL holds, patched or not."""
    weight = layer(model, key).weight
    return (weight.dequantize() if isinstance(weight, bypass.QuantizedTensor) else weight).float()


def vanished(model, storage, key, seed=0):
    """|W' c| / |W c| of a loaded MODEL for the two directions the low-rank edit takes out."""
    plain = weights.read(model_of(storage)[0], key)
    c = directions(plain, seed)
    return float(layer(model, key)(c.to(compute(model))).float().norm() / (c @ plain.T).norm())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0])
def test_full_load_at_every_strength(storage, kind, strength):
    plain, _ = model_of(storage)
    patched = load(patching.apply(plain, patch_of(kind, plain), strength)[0])
    check(patched, storage, lambda key: edited(weights.read(plain, key), kind, strength))
    if strength == 0.0:
        assert digest(patched) == model_of(storage)[1]  # not even rounded again
    if kind == "prune" and strength == 1.0:
        pruned_exactly(patched, storage)
    if kind == "lowrank" and strength == 1.0:
        assert all(
            vanished(patched, storage, key) <= (1e-3 if storage != "bf16" else 4e-3) for key in KEYS
        )
    plain_is_as_it_was(storage)


def test_low_vram(storage, kind):
    import comfy.model_patcher

    plain, _ = model_of(storage)
    load(plain)
    patched = patching.apply(plain, patch_of(kind, plain))[0]
    plain.detach()
    patched.patch_model(
        patched.load_device, lowvram_model_memory=1
    )  # no room: every weight is patched in the forward pass
    try:
        want = {key: edited(weights.read(plain, key), kind) for key in KEYS}
        check(patched, storage, want.get)
        if kind == "prune":
            pruned_exactly(patched, storage, streamed=True)
        functions = [f for key in KEYS for f in getattr(layer(patched, key), "weight_function", [])]
        assert functions
        for f in (
            functions
        ):  # as streamed weights come: rebuilt from copies of the tensors in one buffer
            assert isinstance(f, comfy.model_patcher.LowVramPatch)
            f.prepare(torch.empty(f.memory_required(), dtype=torch.uint8), None)
        check(patched, storage, want.get)
        if kind == "prune":
            pruned_exactly(patched, storage, streamed=True)
    finally:
        patched.unpatch_model(patched.offload_device)
    plain_is_as_it_was(storage)


def test_after_a_lora(storage, kind):
    plain, _ = model_of(storage)
    base = lora(plain)
    patched = load(patching.apply(base, patch_of(kind, base))[0])
    check(patched, storage, lambda key: edited(weights.read(base, key), kind))
    for key in KEYS if kind == "prune" else ():
        cut = mask(weights.read(base, key))
        assert torch.equal(answers(patched, key)[cut], torch.zeros_like(answers(patched, key)[cut]))
    if kind == "lowrank" and bypass.corrected_edits(patched):
        assert all(vanished(patched, storage, key) <= 1e-3 for key in KEYS)
    plain_is_as_it_was(storage)


def test_before_a_lora(storage, kind):
    plain, _ = model_of(storage)
    patched = load(lora(patching.apply(plain, patch_of(kind, plain))[0]))
    want = {key: edited(weights.read(plain, key), kind) + added_by_lora(plain, key) for key in KEYS}
    check(patched, storage, want.get)
    plain_is_as_it_was(storage)


@pytest.mark.parametrize("first", ["patched", "plain"])
def test_merged_with_the_plain_model(storage, kind, first, tally):
    plain, _ = model_of(storage)
    if storage in QUANTISED:
        with pytest.raises(
            AttributeError
        ):  # the host alone: two plain models, no patch of ours anywhere
            merged(storage, plain.clone(), plain.clone())
        tally("host cannot", what="ModelMerge of quantised models, ComfyUI #14382")
        return
    patched = patching.apply(plain, patch_of(kind, plain))[0]
    one, two = (patched, plain) if first == "patched" else (plain, patched)
    share = 0.75 if first == "patched" else 0.25
    both = load(merged(storage, one, two))
    want = {
        key: share * edited(w, kind) + (1 - share) * w
        for key in KEYS
        for w in [weights.read(plain, key)]
    }
    check(both, storage, want.get)
    plain_is_as_it_was(storage)


@pytest.mark.parametrize("first", EDITS)
def test_two_patches_on_the_same_weights(storage, kind, first):
    plain, _ = model_of(storage)
    one = patch_of(first, plain)
    between = patching.apply(plain, one)[0]
    two = patch_of(kind, between, seed=1)
    patched = load(patching.apply(plain, one + two)[0])
    base = {key: weights.read(between, key) for key in KEYS}
    assert all(
        torch.allclose(base[key], edited(weights.read(plain, key), first), atol=1e-6)
        for key in KEYS
    )
    check(patched, storage, lambda key: edited(base[key], kind, seed=1))
    for key in KEYS if kind == "prune" else ():
        cut = mask(base[key], 1)
        assert torch.equal(answers(patched, key)[cut], torch.zeros_like(base[key][cut]))
    apart = load(patching.apply(between, two)[0])  # the same by two nodes, one after the other
    check(apart, storage, lambda key: edited(base[key], kind, seed=1))
    for key in KEYS if kind == "prune" else ():
        cut = mask(base[key], 1)
        assert torch.equal(answers(apart, key)[cut], torch.zeros_like(base[key][cut]))
    plain_is_as_it_was(storage)


def test_plain_and_patched_by_turns(storage, kind):
    plain, _ = model_of(storage)
    base = {key: weights.read(plain, key) for key in KEYS}
    full, half = (patching.apply(plain, patch_of(kind, plain), s)[0] for s in (1.0, 0.5))
    for strength, model in ((1.0, full), (0.5, half), (1.0, full), (1.0, full.clone())):
        load(model)
        check(model, storage, lambda key, s=strength: edited(base[key], kind, s))
        assert all(
            torch.equal(weights.read(plain, key), base[key]) for key in KEYS
        )  # whoever is loaded
    plain_is_as_it_was(storage)


def test_the_largest_weight_pruned_too(storage, tally):
    """Formats with one scale per tensor round what is kept again, by half a step.

    Zeros stay exact, and the unpatched model comes back.
    """
    plain, _ = model_of(storage)
    edits = tuple(
        (key, adapters.Prune.of(w.abs() >= w.abs().flatten().kthvalue(w.numel() - 50)[0], *w.shape))
        for key in KEYS
        for w in [weights.read(plain, key)]
    )
    patched = load(
        patching.apply(
            plain,
            types.UnlearnPatch(
                edits, weights.fingerprint(plain, KEYS), ({"method": "m", "concepts": []},)
            ),
        )[0]
    )
    for key, edit in edits:
        cut, w = edit.mask(), weights.read(plain, key)
        got = answers(patched, key)
        assert (
            torch.equal(got[cut], torch.zeros_like(got[cut]))
            and float(got[~cut].count_nonzero()) > 0.5 * w.numel()
        )
        near(held(patched, key), torch.where(cut, 0.0, w), storage)
    plain_is_as_it_was(storage)
    tally("cells")


@pytest.mark.parametrize("native", [False, True], ids=["emulated", "native"])
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_beside_the_layer_what_is_taken_out_is_gone(storage, strength, native, tally, monkeypatch):
    """In bypass |W' c| / |W c| is |1 - strength| within 1e-3.

    native: layers round their inputs too, as on GPUs made for it.
    """
    plain, _ = model_of(storage)
    patch = patch_of("lowrank", plain)
    for key in KEYS if storage in QUANTISED and native else ():
        monkeypatch.setattr(layer(plain, key), "_full_precision_mm", False)
    patched = load(patching.apply(plain, patch, strength, quantised="bypass")[0])
    assert set(weights.bypass_edits(patched)) == set(KEYS) and not patched.patches
    for key in KEYS:
        if strength == 1.0:
            assert vanished(patched, storage, key) <= 1e-3 or storage in (
                "bf16",
                "fp16",
            )  # whose own rounding of c is larger
        assert abs(vanished(patched, storage, key) - abs(1 - strength)) <= (
            4e-3 if storage == "bf16" else 1e-3
        )
    assert digest(patched) == model_of(storage)[1]  # no weight was touched
    monkeypatch.undo()
    plain_is_as_it_was(storage)
    tally("cells")


def test_weights_round_and_bypass_does_not(tally):
    """Why: what is left of the concepts by weights, at full load, is the rounding of the format."""
    left = {}
    for storage in ("fp8 storage", *QUANTISED):
        plain, _ = model_of(storage)
        patched = load(patching.apply(plain, patch_of("lowrank", plain), quantised="weights")[0])
        assert not weights.bypass_edits(patched)
        left[storage] = max(vanished(patched, storage, key) for key in KEYS)
        plain_is_as_it_was(storage)
        tally("cells")
    assert all(share > 0.01 for share in left.values()), left


def test_only_what_is_rounded_is_corrected():
    for storage in STORAGES:
        plain, _ = model_of(storage)
        for kind in EDITS:
            patched = patching.apply(plain, patch_of(kind, plain))[0]
            expected = kind == "lowrank" and storage in ("fp8 storage", *QUANTISED)
            assert bool(bypass.corrected_edits(patched)) == expected, (storage, kind)
            assert not weights.bypass_edits(patched) and set(patched.patches) == set(KEYS)


@pytest.mark.parametrize("quantised", ["auto", "bypass"])
def test_a_prune_behind_takes_the_low_rank_edit_into_the_weight(quantised):
    plain, _ = model_of("fp8")
    between = patching.apply(plain, patch_of("lowrank", plain), quantised=quantised)[0]
    patched = patching.apply(between, patch_of("prune", plain), quantised=quantised)[0]

    def beside(model):
        return weights.bypass_edits(model) or bypass.corrected_edits(model)

    assert (
        beside(between)
        and not beside(patched)
        and not patched.get_injections(weights.BYPASS_ATTACHMENT)
    )
    assert [len(patched.patches[key]) for key in KEYS] == [2, 2]
    assert beside(between)  # a value: not changed through the clone


def test_the_report_says_where_edits_are():
    plain, _ = model_of("int8")
    patch = patch_of("lowrank", plain)
    said = {
        quantised: patching.describe(
            patch, 1.0, patching.apply(plain, patch, quantised=quantised)[0]
        )
        for quantised in ("auto", "bypass", "weights")
    }
    assert "2 weights would be rounded into 8 or 4 bits" in said["auto"]
    assert "2 low-rank edits of 2 weights run beside" in said["bypass"]
    assert "Save Checkpoint and the second input of a merge do not see them" in said["bypass"]
    assert "beside" not in said["weights"] and "rounded" not in said["weights"]


def test_baked_for_a_file():
    """Save Unlearned Checkpoint puts bypass edits into the weights, rounded.

    The model that was given keeps running as it was.
    """
    plain, _ = model_of("fp8")
    patched = patching.apply(plain, patch_of("lowrank", plain), quantised="bypass")[0]
    baked = patching.baked(patched)
    assert patching.baked(baked) is baked and patching.baked(plain) is plain
    for key in KEYS:
        assert torch.allclose(weights.read(baked, key), weights.read(patched, key), atol=1e-6)
    load(baked)
    assert 1e-2 < max(vanished(baked, "fp8", key) for key in KEYS) < 0.06
    load(patched)
    assert max(vanished(patched, "fp8", key) for key in KEYS) <= 1e-3
    plain_is_as_it_was("fp8")


@pytest.mark.parametrize("storage", ["fp8 storage", *QUANTISED])
def test_other_words_are_not_rounded_again(storage):
    """What has nothing of the edited directions meets the layer as it was, within 1 %.

    Rounding alone moves it by 2 to 16 %. int8 rounds its inputs too, which leaves 0.8 %.
    """
    plain, _ = model_of(storage)
    patched = load(patching.apply(plain, patch_of("lowrank", plain))[0])
    key = KEYS[0]
    w = weights.read(plain, key)
    c = directions(w)
    x = rand(256, w.shape[1], seed=11)
    x = x - x @ c.T @ c
    moved = layer(patched, key)(x.to(compute(patched))).float() - x @ w.T
    assert float(moved.norm() / (x @ w.T).norm()) < 0.01
    assert float((held(patched, key) @ x.T - w @ x.T).norm() / (w @ x.T).norm()) > 0.01
    patched.detach()
    assert not patched.injections[weights.BYPASS_ATTACHMENT][0].inject.__self__._factors
    plain_is_as_it_was(storage)


def test_clones_that_go_unloaded_leave_nothing_behind():
    """A new run replaces the patched model while it is the one loaded; nobody unloads it then."""
    plain, _ = model_of("fp8")
    patched = load(patching.apply(plain, patch_of("lowrank", plain))[0])
    assert any(m._forward_hooks for m in plain.model.modules())
    del patched
    plain_is_as_it_was("fp8")


def test_a_clone_made_while_another_is_loaded_never_runs_on_top_of_it():
    """ComfyUI copies 'is injected' with a clone.

    When a LoRA is added to the clone, it ejects and injects what the clone has.
    """
    plain, _ = model_of("fp8")
    full = load(patching.apply(plain, patch_of("lowrank", plain))[0])
    half = lora(
        patching.apply(full, patch_of("lowrank", plain, seed=4), 0.5)[0]
    )  # made, not loaded
    load(full)
    assert sum(len(m._forward_hooks) for m in plain.model.modules()) == len(KEYS)
    assert max(vanished(full, "fp8", key) for key in KEYS) <= 1e-3
    check(load(half), "fp8", lambda key: weights.read(half, key))
    plain_is_as_it_was("fp8")


def test_beside_a_lora_in_bypass_mode():
    """ComfyUI's bypass loader swaps `forward` of the same layers; each is removed in any order."""
    import comfy.weight_adapter

    plain, _ = model_of("fp8")
    manager = comfy.weight_adapter.BypassInjectionManager()
    added = {}
    for n, key in enumerate(KEYS):
        d_out, d_in = weights.shape(plain, key)
        up, down = rand(d_out, 4, seed=n), rand(4, d_in, seed=n + 5) / d_in / 40
        added[key] = up @ down
        manager.add_adapter(
            key, comfy.weight_adapter.LoRAAdapter(set(), (up, down, 4.0, None, None, None)), 1.0
        )
    for lora_first in (True, False):
        model = plain.clone()
        if lora_first:
            model.set_injections("bypass_lora", manager.create_injections(model.model))
        model = patching.apply(model, patch_of("lowrank", plain))[0]
        if not lora_first:
            model.set_injections("bypass_lora", manager.create_injections(model.model))
        load(model)
        for key in KEYS:
            x = rand(64, weights.shape(plain, key)[1], seed=11)
            # A LoRA that swaps `forward` is inside the hooks. So what it adds in the removed
            # directions is removed as well.
            c = directions(weights.read(plain, key))
            want = (
                x @ edited(weights.read(plain, key), "lowrank").T + (x - x @ c.T @ c) @ added[key].T
            )
            near(layer(model, key)(x), want, "fp8")
            assert vanished(model, "fp8", key) <= 1e-3
        load(plain)
        for m in plain.model.modules():
            assert not m._forward_hooks and not m._forward_pre_hooks
            vars(m).pop("forward", None)  # the stock loader leaves the layer's own method there
    plain_is_as_it_was("fp8")


def test_a_deep_copy_gets_its_own():
    """The host makes another model of its own for some jobs and copies the injections to it."""
    from comfy.model_patcher import ModelPatcher

    plain, _ = model_of("fp8")
    patched = load(patching.apply(plain, patch_of("lowrank", plain))[0])
    import comfy.sd

    other = comfy.sd.load_diffusion_model_state_dict(storages.stored("fp8"))
    copy = patched.clone(model_override=(other.model, ({}, {}, {}, set())))
    assert isinstance(copy, ModelPatcher) and copy.model is not patched.model
    load(copy)
    assert vanished(copy, "fp8", KEYS[0]) <= 1e-3 and vanished(patched, "fp8", KEYS[0]) <= 1e-3
    copy.detach()
    assert (
        not any(m._forward_hooks for m in other.model.modules())
        and vanished(patched, "fp8", KEYS[0]) <= 1e-3
    )
    plain_is_as_it_was("fp8")


def test_a_whole_picture_step_runs_with_edits_beside():
    plain, _ = model_of("int8")
    x, c = rand(1, 4, 8, 8), rand(1, 77, 768, seed=1)

    def step(model):
        return load(model).model.apply_model(
            x, torch.ones(1), c_crossattn=c, transformer_options={}
        )

    before = step(plain)
    after = step(patching.apply(plain, patch_of("lowrank", plain))[0])
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    assert torch.equal(step(plain), before)
    plain_is_as_it_was("int8")
