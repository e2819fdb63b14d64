"""A tiny model of every class of UNet that ComfyUI knows, and a text encoder that goes with it.

A model has its class's own structure: levels, where attention stands, temporal layers, what is
concatenated and what is embedded beside the text. Channels, depths and text widths are small, and
weights are random.
"""

import functools
from typing import NamedTuple

import torch

from testbed import device, shapes

NARROWER = 16  # text widths are divided by this
POOLED = 1280
VIDEO = {
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "use_temporal_resblock": True,
    "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}


class Family(NamedTuple):
    """A class of comfy.supported_models, and what its checkpoints have beyond `unet_config`.

    levels: depth of attention at each level; middle: at the bottom, -1 without attention, -2
    without a block. velocity: whether a file of it is told as v-prediction.
    """

    config: str
    levels: tuple[int, ...] = (1, 1, 0)
    middle: int = 1
    more: dict = {}
    velocity: bool = False
    text: str = "l"  # names under which its tokenizer gives tokens
    size: int = 512  # pixels


XL = dict(levels=(0, 1, 2), text="gl", size=1024)
# Every class with a UNet, by the name under which tests show it.
FAMILIES = {
    "SD1.5": Family("SD15"),
    "SD1.5 inpainting": Family("SD15", more={"in_channels": 9}),
    "SD1.5 InstructPix2Pix": Family("SD15_instructpix2pix"),
    "SD-XS": Family("SD15", levels=(0, 1, 1), middle=-2),
    "SD0.9-XS": Family(
        "SD20", (1, 1, 1), -2, {"disable_self_attentions": [True, False, False]}, text="h"
    ),
    "SD2": Family("SD20", text="h"),
    "SD2 v": Family("SD20", velocity=True, text="h", size=768),
    "SD2 inpainting": Family("SD20", more={"in_channels": 9}, text="h"),
    "SD2.1 unCLIP-L": Family("SD21UnclipL", velocity=True, text="h", size=768),
    "SD2.1 unCLIP-H": Family("SD21UnclipH", velocity=True, text="h", size=768),
    "SD x4 upscaler": Family("SD_X4Upscaler", levels=(0, 1, 1, 1), text="h"),
    "LotusD": Family("LotusD", more={"context_dim": 1024}, text="h"),
    "SDXL": Family("SDXL", **XL),
    "SDXL inpainting": Family("SDXL", more={"in_channels": 9}, **XL),
    "SDXL InstructPix2Pix": Family("SDXL_instructpix2pix", **XL),
    "SDXL v": Family("SDXL", velocity=True, **XL),
    "SSD-1B": Family("SSD1B", middle=-1, **XL),
    "Segmind Vega": Family("Segmind_Vega", middle=-1, **XL),
    "KOALA 700M": Family("KOALA_700M", middle=-2, **XL),
    "KOALA 1B": Family("KOALA_1B", **XL),
    "SDXL refiner": Family("SDXLRefiner", levels=(0, 1, 1, 0), text="gl", size=1024),
    "SVD": Family("SVD_img2vid", more=VIDEO),
    "SV3D-u": Family("SV3D_u", more=VIDEO),
    "SV3D-p": Family("SV3D_p", more=VIDEO),
    "Zero123": Family("Stable_Zero123"),
}
PICTURES_ONLY = ("SVD", "SV3D-u", "SV3D-p", "Zero123")


def unet_config(name: str) -> dict:
    """The UNet's configuration, as the host's detection would give it."""
    import comfy.supported_models

    family = FAMILIES[name]
    declared = getattr(comfy.supported_models, family.config).unet_config
    depths = list(family.levels)
    config = {
        **shapes.SHARED,
        "num_res_blocks": [1] * len(depths),
        "channel_mult": [1, 2, 2, 2][: len(depths)],
        "transformer_depth": depths,
        "transformer_depth_output": [d for d in depths for _ in range(2)],
        "transformer_depth_middle": family.middle,
        **{k: v for k, v in declared.items() if k != "transformer_depth"},
        **family.more,
        "model_channels": 32,
    }
    config["context_dim"] //= NARROWER
    if config.get("adm_in_channels") is not None and "num_classes" not in config:
        config["num_classes"] = "sequential"
    return config


def model(name: str):
    """A MODEL of a family with random float32 weights, made in inference mode as by the host."""
    import comfy.supported_models

    family, g = FAMILIES[name], torch.Generator().manual_seed(0)
    config = getattr(comfy.supported_models, family.config)(unet_config(name))
    config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    config.set_inference_dtype(torch.float32, None)
    spread = torch.cat([torch.ones(500), -torch.ones(500)])  # by which the host tells v in SD2.x
    state = {
        "cc_projection.weight": torch.randn(48, 52, generator=g),
        "cc_projection.bias": torch.zeros(48),
    }
    if family.velocity:
        state |= {"output_blocks.11.1.transformer_blocks.0.norm1.bias": spread, "v_pred": spread}
    with torch.inference_mode():
        made = config.get_model(state, "")
        for module in made.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor):
                continue
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=g) / weight[0].numel() ** 0.5)
            else:
                weight.fill_(1)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        made.diffusion_model.out[2].weight.mul_(0.1)  # so that training steps stay small
    return device.patcher(made)


@functools.cache
def tokenizer():
    """ComfyUI's tokenizer of CLIP-L."""
    import comfy.sd1_clip

    return comfy.sd1_clip.SD1Tokenizer()


class TextEncoder:
    """ComfyUI's tokenizer and made-up states, mixed along the sentence as a causal encoder does."""

    def __init__(self, width: int, text: str = "l") -> None:
        self.text = text
        self.table = torch.randn(49408, 64, generator=torch.Generator().manual_seed(1))
        g = torch.Generator().manual_seed(2)
        self.out = torch.randn(64, width, generator=g) / 8
        self.pooled = torch.randn(64, POOLED, generator=g) / 8

    def tokenize(self, words: str, return_word_ids: bool = False, **_) -> dict:
        chunks = tokenizer().tokenize_with_weights(words, return_word_ids)["l"]
        return {name: chunks for name in self.text}

    def _mixed(self, tokens: dict) -> torch.Tensor:
        chunks = next(iter(tokens.values()))
        x = self.table[torch.tensor([[entry[0] for entry in chunk] for chunk in chunks])]
        return x + 0.5 * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def encode_from_tokens(self, tokens: dict, return_pooled: bool = False):
        mixed = self._mixed(tokens)
        states = (mixed @ self.out).flatten(0, 1)[None]
        return (states, mixed[:1, 5] @ self.pooled) if return_pooled else states

    def encode_from_tokens_scheduled(self, tokens: dict) -> list:
        states, pooled = self.encode_from_tokens(tokens, return_pooled=True)
        return [[states, {"pooled_output": pooled}]]


def clip(name: str) -> TextEncoder:
    """A text encoder that fits a family."""
    return TextEncoder(unet_config(name)["context_dim"], FAMILIES[name].text)
