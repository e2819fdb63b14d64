"""Tiny models of every class of model that ComfyUI's loader knows, with random weights.

`unets` has the UNets. `transformers` has the diffusion transformers and Stable Cascade, each with
its own text encoder in the form of a stand-in (`text_encoders`).
"""

from testbed.families.unets import (
    FAMILIES,
    PICTURES_ONLY,
    POOLED,
    Family,
    TextEncoder,
    clip,
    model,
    tokenizer,
    unet_config,
)

__all__ = [
    "FAMILIES", "PICTURES_ONLY", "POOLED", "Family", "TextEncoder", "clip", "model", "tokenizer",
    "unet_config",
]  # fmt: skip
