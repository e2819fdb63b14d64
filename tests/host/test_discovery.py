"""Layers are found by pattern, on SD1.x, SD2.x and SDXL as ComfyUI builds them."""

from types import SimpleNamespace

import pytest
import torch

import pack

layers = pack.module("nodes.host.layers")
UnlearnError = pack.module("nodes.errors").UnlearnError

SHARED = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True, "legacy": False}
SD = {"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0]}
SD |= {"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1}
SDXL = {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10}
SDXL |= {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True, "num_head_channels": 64}
SDXL |= {"adm_in_channels": 2816, "num_classes": "sequential"}
TRUE_SHAPES = {
    "SD1.5": ({**SD, "context_dim": 768, "num_heads": 8}, 32, 768, 24960),
    "SD2.1": ({**SD, "context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True}, 32, 1024, 24960),
    "SDXL": ({**SDXL, "context_dim": 2048}, 140, 2048, 166400),
}


def on_meta(config):
    """A stand-in MODEL around the true-shaped UNet, without memory for its weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(**SHARED, **config, dtype=torch.float16, device="meta")
    return SimpleNamespace(model=torch.nn.ModuleDict({"diffusion_model": unet}))


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_every_key_and_value_matrix_is_found(name):
    config, count, width, rows = TRUE_SHAPES[name]
    model = on_meta(config)
    found = layers.cross_attention(model)
    shapes = [tuple(model.model.state_dict()[x.key].shape) for x in found]
    assert len(found) == count == len(set(found))
    assert {s[1] for s in shapes} == {width}
    assert sum(s[0] for s in shapes) == rows
    assert [x.part for x in found] == sorted((x.part for x in found), key=["input", "middle", "output"].index)


def test_a_model_without_cross_attention_is_refused():
    plain = SimpleNamespace(model=torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(4, 4)}))
    with pytest.raises(UnlearnError, match="no text cross-attention") as error:
        layers.cross_attention(plain)
    assert "'model'" in str(error.value) and "\n" not in str(error.value)
