"""The three edits under ComfyUI's own patch arithmetic, in every way the patcher calls them."""

import pytest
import torch

from testbed import pack

adapters = pack.module("unlearn.host.adapters")
KEY = "diffusion_model.x.weight"


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def applied(weight, edit, strength=1.0, offset=None, strength_model=1.0):
    import comfy.lora

    return comfy.lora.calculate_weight(
        [(strength, edit, strength_model, offset, None)], weight.clone(), KEY
    )


def edits(d_out=6, d_in=10):
    mask = rand(d_out, d_in, seed=1) > 0
    delta = rand(d_out, d_in, seed=2)
    sparse = torch.where(rand(d_out, d_in, seed=3) > 1.3, delta, 0)
    return {
        "prune": (adapters.Prune.of(mask, d_out, d_in), lambda w, s: w * (1 - s * mask.float())),
        "rows": (
            adapters.Prune.of(mask[:, 0], d_out, d_in, "row"),
            lambda w, s: w * (1 - s * mask[:, :1].float()),
        ),
        "columns": (
            adapters.Prune.of(mask[0], d_out, d_in, "column"),
            lambda w, s: w * (1 - s * mask[:1].float()),
        ),
        "lowrank": (
            adapters.LowRank.of(rand(d_out, 2), rand(2, d_in)),
            lambda w, s: w + s * rand(d_out, 2) @ rand(2, d_in),
        ),
        "delta": (adapters.Delta.of(delta), lambda w, s: w + s * delta),
        "sparse": (adapters.Delta.of(sparse), lambda w, s: w + s * sparse),
    }


@pytest.mark.parametrize("name", edits())
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0])
def test_edit_equals_its_formula(name, strength):
    edit, formula = edits()[name]
    w = rand(6, 10, seed=9)
    assert torch.allclose(applied(w, edit, strength), formula(w, strength), atol=1e-6)
    assert edit.shape == (6, 10)


@pytest.mark.parametrize("name", edits())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(name, dtype):
    edit, formula = edits()[name]
    w = rand(6, 10, seed=9).to(dtype)
    got = applied(w, edit)
    assert got.dtype == dtype
    assert torch.allclose(got.float(), formula(w.float(), 1.0).to(dtype).float(), atol=1e-6)


@pytest.mark.parametrize("name", edits())
def test_rebuilding_from_weights_loses_nothing(name):
    # ComfyUI's prefetch makes type(v)(v.loaded_keys, v.weights) with copies of the tensors
    edit, _ = edits()[name]
    copies = tuple(w.clone() if isinstance(w, torch.Tensor) else w for w in edit.weights)
    again = type(edit)(edit.loaded_keys, copies)
    w = rand(6, 10, seed=9)
    assert torch.equal(applied(w, edit), applied(w, again))
    assert all(isinstance(w, (torch.Tensor, int, str, type(None))) for w in edit.weights)


@pytest.mark.parametrize("name", edits(4, 10))
def test_offset_views_are_changed_in_place(name):
    edit, formula = edits(4, 10)[name]
    w = rand(12, 10, seed=9)
    got = applied(w, edit, offset=(0, 4, 4))
    assert torch.allclose(got[4:8], formula(w[4:8], 1.0), atol=1e-6)
    assert torch.equal(got[:4], w[:4]) and torch.equal(got[8:], w[8:])


@pytest.mark.parametrize("name", edits())
def test_low_vram_patch_gives_the_same(name):
    import comfy.model_patcher

    edit, _ = edits()[name]
    w = rand(6, 10, seed=9)
    patch = comfy.model_patcher.LowVramPatch(KEY, {KEY: [(1.0, edit, 1.0, None, None)]})
    assert torch.allclose(patch(w.clone()), applied(w, edit), atol=1e-6)


def test_pruned_is_exactly_zero_and_kept_exactly_kept():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        mask = rand(7, 13) > 0
        w = rand(7, 13, seed=2).to(dtype)
        got = applied(w, adapters.Prune.of(mask, 7, 13))
        assert torch.equal(got[mask], torch.zeros_like(got[mask])) and torch.equal(
            got[~mask], w[~mask]
        )


def test_masks_are_bit_packed():
    edit = adapters.Prune.of(torch.ones(33, 65).bool(), 33, 65)
    assert edit.weights[0].numel() == -(-33 * 65 // 8)
    with pytest.raises(ValueError, match="column mask"):
        adapters.Prune.of(torch.ones(4).bool(), 4, 5, "column")


def test_sparse_storage_below_a_quarter():
    d = torch.zeros(10, 10)
    d.view(-1)[:24] = 1
    assert adapters.Delta.of(d).weights[1] is not None
    d.view(-1)[:26] = 1
    assert adapters.Delta.of(d).weights[1] is None


def test_patches_are_values():
    types = pack.module("unlearn.types")

    def make(x):
        return types.UnlearnPatch(
            (("a", adapters.Delta.of(torch.full((2, 2), x))),),
            types.Fingerprint({}),
            ({"method": "m"},),
        )

    assert make(1.0) == make(1.0) and hash(make(1.0)) == hash(make(1.0)) and make(1.0) != make(2.0)
    both = make(1.0) + make(2.0)
    assert [k for k, _ in both.edits] == ["a", "a"] and len(both.provenance) == 2
    assert make(1.0) + make(2.0) != make(2.0) + make(1.0)
