"""Layers are found by pattern, on SD1.x, SD2.x and SDXL as ComfyUI builds them."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack
from testbed.shapes import on_meta

layers = pack.module("unlearn.host.architectures.unet")
UnlearnError = pack.module("unlearn.errors").UnlearnError

# cross-attention matrices, their width and rows; second feed-forward linears, their connections
TRUE_SHAPES = {
    "SD1.5": (32, 768, 24960, 16, 49_561_600),
    "SD2.1": (32, 1024, 24960, 16, 49_561_600),
    "SDXL": (140, 2048, 166400, 70, 409_600_000),
}


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_every_key_and_value_matrix_is_found(name):
    count, width, rows, *_ = TRUE_SHAPES[name]
    model = on_meta(name)
    found = layers.cross_attention(model)
    shapes = [tuple(model.model.state_dict()[x.key].shape) for x in found]
    assert len(found) == count == len(set(found))
    assert {s[1] for s in shapes} == {width}
    assert sum(s[0] for s in shapes) == rows
    assert [x.part for x in found] == sorted(
        (x.part for x in found), key=["input", "middle", "output"].index
    )


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_every_second_feed_forward_linear_is_found(name):
    *_, count, connections = TRUE_SHAPES[name]
    model = on_meta(name)
    found = layers.feed_forward(model)
    assert len(found) == count == len(set(found))
    assert sum(model.model.state_dict()[x.key].numel() for x in found) == connections


def test_a_model_without_cross_attention_is_refused():
    plain = SimpleNamespace(model=torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(4, 4)}))
    with pytest.raises(UnlearnError, match="no text cross-attention") as error:
        layers.cross_attention(plain)
    assert "'model'" in str(error.value) and "\n" not in str(error.value)
