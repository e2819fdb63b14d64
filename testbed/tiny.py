"""A MODEL, CLIP and VAE so small that a whole node runs in a second.

The UNet has ComfyUI's own classes; text states and pictures are made up.
"""

import functools

import torch

from testbed import device, shapes

UNET = {
    **shapes.SHARED,
    "model_channels": 32,
    "context_dim": 768,
    "num_heads": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
}
UNET |= {
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
}


def model(kind="SD15", **config):
    """A MODEL with random weights; `config` overrides entries of UNET.

    kind: a class of comfy.supported_models. It is made in inference mode, as ComfyUI makes models.
    """
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)({**UNET, **config})
    config.set_inference_dtype(torch.float32, None)
    made, g = config.get_model({}, ""), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for name, w in list(made.state_dict().items()):
            if w.ndim > 1:
                w.copy_(torch.randn(w.shape, generator=g) / w[0].numel() ** 0.5)
            elif name.startswith("diffusion_model."):
                w.fill_(1.0 if name.endswith("weight") else 0.0)
    return device.patcher(made)


SDXL_WIDTHS = (128, 384)  # of the two encoders


def sdxl(kind="SDXL", numbers=6, widths=SDXL_WIDTHS, **config):
    """A MODEL of the SDXL kind that goes with `sdxl_clip` of these widths.

    numbers: how many sizes and the like are embedded behind the pooled text.
    """
    config |= {"adm_in_channels": widths[1] + 256 * numbers, "num_classes": "sequential"}
    return model(kind, **{"context_dim": sum(widths), **config})


@functools.cache
def tokenizer():
    import comfy.sd1_clip

    return comfy.sd1_clip.SD1Tokenizer()


class Clip:
    """ComfyUI's tokenizer, and a seeded vector for each token, mixed with those before it."""

    def __init__(self):
        self.table = torch.randn(49408, 64, generator=torch.Generator().manual_seed(1))
        self.out = torch.randn(64, 768, generator=torch.Generator().manual_seed(2)) / 8

    def tokenize(self, words, return_word_ids=False):
        return tokenizer().tokenize_with_weights(words, return_word_ids)

    def encode_from_tokens(self, tokens):
        x = self.table[torch.tensor([[t[0] for t in chunk] for chunk in tokens["l"]])]
        return (
            (x + 0.5 * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]) @ self.out
        ).flatten(0, 1)[None]

    def encode_from_tokens_scheduled(self, tokens):
        states = self.encode_from_tokens(tokens)
        return [[states, {"pooled_output": states[:, 5]}]]


class Vae:
    """Latents [n, 4, h, w] as pictures [n, 8h, 8w, 3]."""

    def decode(self, latents):
        return (
            latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1).sigmoid()
        )


def defaults(inputs):
    """The widget values a new node has."""
    found = {}
    for i in inputs:
        if options := getattr(i, "options", None):
            if hasattr(options[0], "inputs"):
                found[i.id] = {i.id: options[0].key, **defaults(options[0].inputs)}
            else:
                found[i.id] = i.default if i.default is not None else options[0]
        elif getattr(i, "default", None) is not None:
            found[i.id] = i.default
    return found


def sdxl_clip(seed=0, widths=SDXL_WIDTHS):
    """A tiny CLIP of two encoders as SDXL's with random weights, spread as in worlds/encoder.py.

    The last layer but one is read, one of them pads with zeros, and the second gives the pooled
    vectors.
    """
    import comfy.sd
    import comfy.sdxl_clip
    import comfy.supported_models_base as base

    options = {
        f"clip_{name}_model_config": {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_attention_heads": width // 32,
            "num_hidden_layers": 3,
        }
        for name, width in zip("lg", widths, strict=True)
    }
    target = base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(target, parameters=1, model_options=options)
    g = torch.Generator().manual_seed(seed)
    for name, p in clip.cond_stage_model.named_parameters():
        size = 0.005 if "position_embedding" in name else 0.02 if p.dim() > 1 else 0.0
        scale = "norm" in name and name.endswith("weight")
        p.copy_(torch.ones(p.shape) if scale else torch.randn(p.shape, generator=g) * size)
    return clip
