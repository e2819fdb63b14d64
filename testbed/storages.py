"""A UNet of one level in every storage of weights that files come in.

ComfyUI's loader detects it as SD1.5. The layers of its later blocks are quantised as in the files
that people share.
"""

import functools
import json

import torch

from testbed import pack, shapes

ONE_LEVEL = {
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
CONFIG = {
    **shapes.SHARED,
    **ONE_LEVEL,
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
}
BLOCK = "diffusion_model.output_blocks.0.1.transformer_blocks.0"
KEYS = (f"{BLOCK}.attn2.to_k.weight", f"{BLOCK}.ff.net.2.weight")  # [320, 768] and [320, 1280]
PLAIN = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8 storage": torch.float8_e4m3fn,
}
QUANTISED = {"fp8": "float8_e4m3fn", "mxfp8": "mxfp8", "int8": "int8_tensorwise", "nvfp4": "nvfp4"}


@functools.cache
def parts():
    """Random float32 weights of the UNet, by name as in a file."""
    pack.load()
    import comfy.supported_models

    config = comfy.supported_models.SD15(dict(CONFIG))
    config.set_inference_dtype(torch.float32, None)
    unet, g = config.get_model({}, "").diffusion_model, torch.Generator().manual_seed(0)
    with torch.inference_mode():
        found = {}
        for name, w in unet.state_dict().items():
            random = torch.randn(w.shape, generator=g) * (
                0.5 * (2 / w[0].numel()) ** 0.5 if w.ndim > 1 else 0
            )
            found[name] = torch.ones_like(w) if w.ndim == 1 and name.endswith(".weight") else random
        return found


def stored(storage):
    """The weights as a file of that storage holds them."""
    import comfy.quant_ops

    if storage in PLAIN:
        return {k: v.to(PLAIN[storage]) for k, v in parts().items()}
    form, found = QUANTISED[storage], {}
    scale = {} if form == "int8_tensorwise" else {"scale": "recalculate"}
    for k, v in parts().items():
        if (
            ".transformer_blocks." not in k or v.ndim != 2 or k.startswith("input_blocks")
        ):  # the loader reads shapes from the first
            found[k] = v
            continue
        found |= comfy.quant_ops.QuantizedTensor.from_float(
            v, comfy.quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"], **scale
        ).state_dict(k)
        found[k.removesuffix("weight") + "comfy_quant"] = torch.tensor(
            list(json.dumps({"format": form}).encode()), dtype=torch.uint8
        )
    return found


def model(storage):
    """A MODEL of that storage, loaded by the stock loader's own function."""
    import comfy.sd

    with torch.inference_mode():
        options = {"dtype": PLAIN[storage]} if storage in PLAIN else {}
        made = comfy.sd.load_diffusion_model_state_dict(stored(storage), model_options=options)
        assert type(made.model.model_config).__name__ == "SD15"
        return made
