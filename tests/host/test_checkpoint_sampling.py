"""Save Unlearned Checkpoint: what it writes loads as it was, by ComfyUI's own loaders.

That is the sampling of SDXL models (EDM, v-prediction, zero terminal SNR), for whole checkpoints
and for the UNet alone, and quantised weights with low-rank edits.
"""

import pytest
import torch

from testbed import pack, shapes, storages

adapters = pack.module("unlearn.host.adapters")
checkpoint = pack.module("unlearn.host.checkpoint")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")

# The depths of KOALA 700M, which is an SDXL to ComfyUI, at the narrowest width.
NARROW_SDXL = {
    **shapes.SHARED,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 0, 1, 1],
    "use_linear_in_transformer": True,
    "num_head_channels": 64,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
KEY = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
KINDS = {
    "v-prediction": {"v_pred": torch.tensor([])},
    "v-prediction, zero SNR": {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
    "EDM (Playground 2.5)": {"edm_mean": torch.ones(1), "edm_std": torch.ones(1)},
    "EDM v-prediction (CosXL)": {
        "edm_vpred.sigma_max": torch.tensor(120.0),
        "edm_vpred.sigma_min": torch.tensor(0.002),
    },
}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patched(model, keys):
    edits = []
    for key in keys:
        w = weights.read(model, key)
        down = torch.linalg.qr(rand(w.shape[1], 8))[0].T.contiguous()
        edits.append((key, adapters.LowRank.of(-(w @ down.T), down)))
    said = ({"method": "m", "concepts": ["c"]},)
    patch = types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys), said)
    return patching.apply(model, patch)[0]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def saved(model, folder):
    name, _ = checkpoint.save(model, None, None, "model")
    return str(folder / name)


@pytest.fixture(scope="module")
def narrow():
    """Weights of an SDXL UNet in float16, by name as in a checkpoint."""
    import comfy.supported_models

    with torch.inference_mode():
        config = comfy.supported_models.KOALA_700M(dict(NARROW_SDXL))
        config.set_inference_dtype(torch.float16, torch.float32)
        unet = config.get_model({}, "").diffusion_model
        found = {}
        for n, (name, w) in enumerate(unet.state_dict().items()):
            norm = w.ndim == 1 and name.endswith("weight")
            made = (
                rand(*w.shape, seed=n) * (0.7 / w[0].numel() ** 0.5)
                if w.ndim > 1
                else torch.zeros_like(w)
            )
            found[f"model.diffusion_model.{name}"] = (made + norm).half()
        return found


def denoised(model):
    """What the loaded SDXL MODEL makes of noise at one sigma, by ComfyUI's own call."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return model.model.apply_model(
        rand(1, 4, 8, 8) * 3,
        torch.full((1,), 3.0),
        c_crossattn=rand(1, 8, 2048, seed=1),
        y=rand(1, 2816, seed=2),
        transformer_options={},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_survives_both_loaders(narrow, folder, kind):
    import comfy.sd

    plain = comfy.sd.load_state_dict_guess_config(
        {**narrow, **KINDS[kind]}, output_vae=False, output_clip=False
    )[0]
    model = patched(plain, [KEY])
    path, wanted = saved(model, folder), denoised(model)
    whole = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
    for again in (whole, comfy.sd.load_diffusion_model(path)):
        assert again.model.model_type == plain.model.model_type
        one, other = (m.get_model_object("model_sampling") for m in (again, plain))
        assert one.sigma_max == other.sigma_max and one.sigma_min == other.sigma_min
        assert float((denoised(again) - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("storage", ["fp8", "mxfp8", "int8", "nvfp4"])
def test_quantised_weights_with_low_rank_edits_are_not_rounded_in_the_file(folder, storage):
    import comfy.sd

    model = patched(storages.model(storage), storages.KEYS)
    again = comfy.sd.load_diffusion_model(saved(model, folder))
    for key in storages.KEYS:
        want = weights.read(model, key)
        assert float((weights.read(again, key) - want).norm() / want.norm()) < 3e-3
    other = storages.KEYS[0].replace("to_k", "to_v")  # without an edit, and so as it was
    assert torch.equal(weights.read(again, other), weights.read(model, other))
    assert type(again.model.get_submodule(other.removesuffix(".weight")).weight.data) is type(
        model.model.get_submodule(other.removesuffix(".weight")).weight.data
    )
