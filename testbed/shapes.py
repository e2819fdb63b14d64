"""UNets of the true shapes of SD1.5, SD2.1 and SDXL, with random weights or with none."""

from types import SimpleNamespace

import torch

from testbed import device, pack

SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
}
SD |= {
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
}
SDXL |= {
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "num_head_channels": 64,
}
SDXL |= {"adm_in_channels": 2816, "num_classes": "sequential"}
CONFIGS = {
    "SD1.5": {**SD, "context_dim": 768, "num_heads": 8},
    "SD2.1": {
        **SD,
        "context_dim": 1024,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
    },
    "SDXL": {**SDXL, "context_dim": 2048},
}


def on_meta(name):
    """A stand-in MODEL around the true-shaped UNet, without memory for its weights."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        unet = UNetModel(**SHARED, **CONFIGS[name], dtype=torch.float16, device="meta")
    return SimpleNamespace(model=torch.nn.ModuleDict({"diffusion_model": unet}))


def random_model(name="SD1.5", seed=0, dtype=torch.float32):
    """A genuine MODEL of the true shape with random weights that keep activations finite.

    dtype: of weights and activations.
    """
    pack.load()
    import comfy.supported_models

    kinds = {
        "SD1.5": comfy.supported_models.SD15,
        "SD2.1": comfy.supported_models.SD20,
        "SDXL": comfy.supported_models.SDXL,
    }
    config = kinds[name]({**SHARED, **CONFIGS[name]})
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5 / 2, generator=g)
                if module.bias is not None:
                    module.bias.zero_()
            elif getattr(module, "weight", None) is not None:  # norms
                module.weight.fill_(1)
                module.bias.zero_()
    return device.patcher(model)
