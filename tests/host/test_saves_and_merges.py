"""ComfyUI's own saves, merges and compilation take as much of an edit as they should.

What is measured is the share of the edit that acts: the change of the UNet's output against the
plain model, projected on the change that the edit makes exactly. 1 is all of it, 0 is nothing.
"""

import pytest
import torch

from testbed import pack, storages
from testbed.storages import KEYS

adapters = pack.module("unlearn.host.adapters")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")

STORAGES = ("fp16", "fp8 storage", "int8")
QUANTISED = ("auto", "bypass", "weights")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_of(kind, w, seed=0):
    """An edit of a weight float32 [d_out, d_in] that changes much of what the layer does."""
    if kind == "prune":
        return adapters.Prune.of(rand(*w.shape, seed=seed) > 0.5, *w.shape)
    if kind == "delta":
        return adapters.Delta.of(rand(*w.shape, seed=seed) * w.std())
    down = torch.linalg.qr(rand(w.shape[1], 64, seed=seed))[0].T.contiguous()
    return adapters.LowRank.of(-2 * (w @ down.T), down)


def patch_of(model, kind="lowrank", seed=0):
    edits = tuple((key, edit_of(kind, weights.read(model, key), seed)) for key in KEYS)
    return types.UnlearnPatch(
        edits, weights.fingerprint(model, KEYS), ({"method": kind, "concepts": ["c"]},)
    )


def output(model):
    """What the loaded MODEL makes of noise and text states, by ComfyUI's own call."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    model.pre_run()
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    x, context = rand(1, 4, 8, 8, seed=1), rand(1, 8, 768, seed=2) * 4
    sigma = torch.full((1,), 1.0)
    return model.model.apply_model(x, sigma, c_crossattn=context, transformer_options=options)


def compiled(model):
    """As TorchCompileModel does; `eager` saves the C++ compiler."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = model.clone(disable_dynamic=True)
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=model, backend="eager", options=options)
    return model


def merge(first, second, ratio):
    """By ModelMergeSimple. What is alike in both is left out, which is quicker."""
    from comfy_extras import nodes_model_merging as merging

    merged = merging.ModelMergeSimple().merge(first, second, ratio)[0]
    merged.patches = {key: merged.patches[key] for key in KEYS}
    return merged


class Shares:
    """How much of a patch acts, on a storage with a plain MODEL."""

    def __init__(self, storage, patch_kind="lowrank", strength=1.0):
        torch.compiler.reset()
        self.plain = storages.model(storage)
        self.patch = patch_of(self.plain, patch_kind)
        self.strength = strength
        self.before = output(self.plain)
        exact = patching.apply(self.plain, self.patch, strength)[0]
        self.change = output(exact) - self.before

    def apply(self, quantised="auto", model=None):
        return patching.apply(model or self.plain, self.patch, self.strength, quantised=quantised)[
            0
        ]

    def __call__(self, model):
        moved = output(model) - self.before
        return float((moved * self.change).sum() / self.change.square().sum())


@pytest.fixture(scope="module", params=STORAGES)
def shares(request):
    with torch.inference_mode():
        found = Shares(request.param)
    found.storage = request.param
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def test_compiled_after_the_plain_model(shares):
    torch.compiler.reset()
    assert shares(compiled(shares.plain)) == pytest.approx(0, abs=0.01)
    for quantised in QUANTISED:
        patched = shares.apply(quantised)
        assert shares(compiled(patched)) == pytest.approx(1, abs=0.02)
        assert shares(patched) == pytest.approx(1, abs=0.02)
        # What was compiled for the patched model must not stay in the plain one.
        assert shares(compiled(shares.plain)) == pytest.approx(0, abs=0.01)


def test_compiled_before_the_plain_model():
    shares = Shares("fp8 storage")
    assert shares(compiled(shares.apply())) == pytest.approx(1, abs=0.02)
    assert shares(compiled(shares.plain)) == pytest.approx(0, abs=0.01)
    assert shares(shares.plain) == pytest.approx(0, abs=0.01)


def by_model_save(model, folder):
    import comfy.sd
    from comfy_extras import nodes_model_merging as merging

    merging.ModelSave().save(model, "model")
    return comfy.sd.load_diffusion_model(str(next(folder.glob("model*"))))


def by_checkpoint_save(model, folder):
    import comfy.sd
    from comfy_extras import nodes_model_merging as merging

    merging.save_checkpoint(model, filename_prefix="whole", output_dir=str(folder))
    path = str(next(folder.glob("whole*")))
    return comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]


@pytest.mark.parametrize("save", [by_model_save, by_checkpoint_save])
def test_stock_saves_hold_all_of_it(shares, folder, save):
    assert shares(save(shares.apply(), folder)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_stock_merges_take_their_share(shares, quantised):
    patched = shares.apply(quantised)
    if shares.storage in storages.QUANTISED:
        with pytest.raises(AttributeError):  # of two plain models too, ComfyUI #14382
            merge(shares.plain, shares.plain.clone(), 0.5)
        return
    for ratio in (1.0, 0.5, 0.0):
        margin = 0.05 if ratio == 0.5 else 0.02
        assert shares(merge(patched, shares.plain, ratio)) == pytest.approx(ratio, abs=margin)
        if quantised == "bypass":  # the second model's patches are read, and the report says so
            continue
        assert shares(merge(shares.plain, patched, ratio)) == pytest.approx(1 - ratio, abs=margin)


@pytest.mark.parametrize("quantised", ["auto", "bypass"])
def test_blocks_added_and_subtracted(shares, quantised):
    """ModelMergeBlocks keeps the first model's edit in blocks whose ratio is 1.

    ModelMergeAdd puts on what ModelMergeSubtract took off.
    """
    from comfy_extras import nodes_model_merging as merging

    if shares.storage in storages.QUANTISED:
        pytest.skip("ComfyUI cannot merge quantised models, #14382")
    patched = shares.apply(quantised)
    ratios = {"input": 0.0, "middle": 0.0, "out": 1.0}
    blocks = merging.ModelMergeBlocks().merge(patched, shares.plain, **ratios)[0]
    blocks.patches = {key: blocks.patches[key] for key in KEYS}
    assert shares(blocks) == pytest.approx(1, abs=0.02)
    if quantised == "auto":
        change = merging.ModelSubtract().merge(patched, shares.plain, 1.0)[0]
        change.patches = {key: change.patches[key] for key in KEYS}
        added = merging.ModelAdd().merge(shares.plain, change)[0]
        added.patches = {key: added.patches[key] for key in KEYS}
        assert shares(added) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("strength", [0.5, -1.0])
@pytest.mark.parametrize("kind", ["prune", "lowrank", "delta"])
def test_of_every_kind_and_strength(folder, kind, strength):
    """On fp8 weights: saved, and merged with nothing of the other model."""
    shares = Shares("fp8 storage", kind, strength)
    patched = shares.apply()
    assert shares(by_model_save(patched, folder)) == pytest.approx(1, abs=0.03)
    assert shares(merge(patched, shares.plain, 1.0)) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("quantised", ["auto", "bypass"])
def test_two_patches_and_a_lora_behind(folder, quantised):
    """On fp8 weights: what is merged and saved is what the model is."""
    shares = Shares("fp8 storage")
    second = patch_of(shares.plain, "delta", seed=5)
    both = patching.apply(shares.apply(quantised), second, quantised=quantised)[0]
    for key in KEYS:
        d_out, d_in = weights.shape(both, key)
        both.add_patches({key: (rand(d_out, d_in, seed=3) / d_in**0.5 / 4,)})
    shares.change = output(both) - shares.before
    assert shares(merge(both, shares.plain, 1.0)) == pytest.approx(1, abs=0.03)
    file = patching.baked(both) if quantised == "bypass" else both
    assert shares(by_model_save(file, folder)) == pytest.approx(1, abs=0.03)
