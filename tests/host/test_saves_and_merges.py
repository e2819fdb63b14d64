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

STORAGES = ("fp16", "fp8 storage", "int8", "nvfp4")
QUANTISED = ("auto", "bypass", "weights")
# Two roundings of an edited 4-bit weight differ by more than the tolerance of the others.
TOLERANCE = {"nvfp4": 0.05}


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
    from comfy_extras import nodes_model_merging as merging

    return merging.ModelMergeSimple().merge(first, second, ratio)[0]


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
    found.near = TOLERANCE.get(request.param, 0.02)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("quantised", QUANTISED)
def test_compiled_after_the_plain_model(shares, quantised):
    torch.compiler.reset()
    assert shares(compiled(shares.plain)) == pytest.approx(0, abs=0.01)
    patched = shares.apply(quantised)
    assert shares(compiled(patched)) == pytest.approx(1, abs=shares.near)
    assert shares(patched) == pytest.approx(1, abs=shares.near)
    # What was compiled for the patched model must not stay in the plain one.
    assert shares(compiled(shares.plain)) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("quantised", QUANTISED)
def test_compiled_before_the_plain_model(shares, quantised):
    torch.compiler.reset()
    assert shares(compiled(shares.apply(quantised))) == pytest.approx(1, abs=shares.near)
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


@pytest.mark.parametrize("quantised", ["auto", "weights"])
@pytest.mark.parametrize("save", [by_model_save, by_checkpoint_save])
def test_stock_saves_hold_all_of_it(shares, folder, save, quantised):
    assert shares(save(shares.apply(quantised), folder)) == pytest.approx(1, abs=shares.near)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("quantised", QUANTISED)
def test_stock_merges_take_their_share(shares, quantised, ratio):
    patched = shares.apply(quantised)
    if shares.storage in storages.QUANTISED:
        with pytest.raises(AttributeError):  # of two plain models too, ComfyUI #14382
            merge(shares.plain, shares.plain.clone(), ratio)
        return
    margin = 0.05 if ratio == 0.5 else 0.02
    assert shares(merge(patched, shares.plain, ratio)) == pytest.approx(ratio, abs=margin)
    if quantised != "bypass":  # the second model's patches alone are read, and the report says so
        assert shares(merge(shares.plain, patched, ratio)) == pytest.approx(1 - ratio, abs=margin)
