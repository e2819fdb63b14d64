"""Where things are in a UNet: found by pattern over the state dict, so SD1.x, SD2.x, SDXL and cut-down models need no tables."""

import re
from typing import NamedTuple

from ...errors import UnlearnError

_BLOCK = (
    r"diffusion_model\.(input|middle|output)_blocks?\.(\d+)(?:\.\d+)?\.transformer_blocks\.(\d+)"
)
_CROSS = re.compile(rf"^{_BLOCK}\.attn2\.(to_k|to_v)\.weight$")
_FEED_FORWARD = re.compile(rf"^{_BLOCK}\.(ff\.net\.2)\.weight$")
_ORDER = {"input": 0, "middle": 1, "output": 2}


class Layer(NamedTuple):
    """A weight matrix: its patcher key, which part of the UNet it is in, block number, depth in the block, and projection."""

    key: str
    part: str
    block: int
    depth: int
    projection: str

    @property
    def label(self):
        """Short name for reports, as in `input 4.0 k`."""
        return f"{self.part} {self.block}.{self.depth} {self.projection.removeprefix('to_').removesuffix('.net.2')}"


def cross_attention(model):
    """The cross-attention key and value layers of a MODEL, from input to output; raises UnlearnError when there are none."""
    return _found(model, _CROSS, "text cross-attention layers to edit")


def feed_forward(model):
    """The second feed-forward linear of every transformer block of a MODEL, in order; raises UnlearnError when there are none."""
    return _found(model, _FEED_FORWARD, "transformer feed-forward layers to prune")


def _found(model, pattern, what):
    layers = []
    for key in model.model.state_dict().keys():
        if found := pattern.match(key):
            layers.append(Layer(key, found[1], int(found[2]), int(found[3]), found[4]))
    if not layers:
        kind = type(getattr(model.model, "model_config", model.model)).__name__
        raise UnlearnError(
            f"The input 'model' ({kind}) has no {what}; use an SD1.x, SD2.x or SDXL checkpoint."
        )
    return sorted(layers, key=lambda x: (_ORDER[x.part], x.block, x.depth, x.projection))


def label(key: str) -> str:
    """Short name of a weight for reports, as in `input 4.0 ff`. Other weights keep their key."""
    for pattern in (_CROSS, _FEED_FORWARD):
        if found := pattern.match(key):
            return Layer(key, found[1], int(found[2]), int(found[3]), found[4]).label
    return key


def part(key: str) -> str:
    """The part of the UNet that a weight is in: `input`, `middle`, `output`, or '' for neither."""
    found = re.match(_BLOCK, key)
    return found[1] if found else ""


NATIVE_SIZES = {"SDXL": 1024, "SD20": 768}


def native_size(model):
    """Side in pixels of the square pictures a MODEL was made for."""
    kind = type(model.model.model_config).__name__
    if kind == "SD20" and model.model.model_type.name != "V_PREDICTION":
        return 512
    return NATIVE_SIZES.get(kind, 512)
