"""A tiny model of each family of diffusion transformers, as ComfyUI's own loader makes it.

A checkpoint has its family's key names, its text width and its kinds of layers; widths and depths
within are small, and weights are random. ComfyUI's detection sees the whole checkpoint. Where it
takes sizes for granted that no weight shows, the small ones are put in afterwards.
"""

import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

from testbed.families import text_encoders


class Family(NamedTuple):
    """One family.

    config: a class of comfy.supported_models; sizes: what its detection should find, and what else
    makes the model small. encoder: (module of comfy.text_encoders, tokenizer, encoder) where the
    class does not say it; an encoder with () at its end is called. side: of the latents. shrunk:
    (module, class, its arguments) of a part that takes no sizes from the model's. told_by: true
    sizes by which ComfyUI tells this class from another one. scaled: by patterns of weight names,
    how many times as large weights are as random ones that keep what they read at its size.
    """

    config: str
    sizes: dict[str, Any]
    encoder: tuple[str, str, str] | None = None
    side: int = 4
    shrunk: tuple[str, str, dict[str, Any]] | None = None
    told_by: dict[str, int] = {}
    scaled: dict[str, float] = {}


_PREDICT2 = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 256, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "num_blocks": 2, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
_COSMOS1 = {
    "image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
    "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "model_channels": 256, "block_config": "FA-CA-MLP", "concat_padding_mask": True,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop",
    "block_x_format": "THWBD", "affline_emb_norm": True, "use_adaln_lora": True,
    "adaln_lora_dim": 16, "num_blocks": 2, "num_heads": 2, "extra_per_block_abs_pos_emb": True,
    "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0, "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 256, "out_dim": 16, "num_heads": 2,
    "ffn_dim": 256, "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256,
    "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16,
}  # fmt: skip
_PIXART = {
    "num_heads": 4, "patch_size": 2, "hidden_size": 64, "in_channels": 4, "depth": 2,
    "model_max_length": 300,
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1,
    "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], "yak_mlp": False,
    "txt_norm": False,
}  # fmt: skip
_FLUX2 = {
    **_FLUX, "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "mlp_ratio": 3.0, "theta": 2000,
    "in_channels": 128, "out_channels": 128, "global_modulation": True, "mlp_silu_act": True,
    "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
    "txt_ids_dims": [3], "patch_size": 1, "context_in_dim": 7680, "vec_in_dim": None,
    "guidance_embed": False,
}  # fmt: skip
_CHROMA = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128,
    "hidden_dim": 64, "n_layers": 1, "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0,
    "theta": 10000, "qkv_bias": True, "txt_ids_dims": [], "patch_size": 2, "context_in_dim": 4096,
    "hidden_size": 128, "vec_in_dim": None, "depth": 1, "depth_single_blocks": 1,
}  # fmt: skip
_SD3 = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None,
    "adm_in_channels": 2048, "num_patches": 64, "pos_embed_max_size": 8,
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}
    },
    "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [],
}  # fmt: skip
_NEXT = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "n_layers": 2, "qk_norm": True,
    "n_heads": 1, "n_kv_heads": 1,
}  # fmt: skip
_LUMINA = {
    **_NEXT, "dim": 96, "cap_feat_dim": 2304, "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
_Z_IMAGE = {
    **_NEXT, "n_heads": 2, "n_kv_heads": 2, "dim": 256, "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
_HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096], "max_resolution": [128, 128], "in_channels": 16,
    "llama_layers": [0, 31], "num_attention_heads": 1, "num_routed_experts": 2,
    "num_activated_experts": 1, "num_layers": 1, "num_single_layers": 1, "out_channels": 16,
    "patch_size": 2, "text_emb_dim": 2048,
}  # fmt: skip
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16,
    "vec_in_dim": 768, "axes_dim": [16, 56, 56], "meanflow": False, "context_in_dim": 4096,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "theta": 256, "qkv_bias": True, "byt5": False, "guidance_embed": True,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_HUNYUAN_IMAGE = {
    **_HUNYUAN, "in_channels": 64, "patch_size": [1, 1], "out_channels": 64, "vec_in_dim": None,
    "axes_dim": [64, 64], "context_in_dim": 3584, "byt5": True, "guidance_embed": False,
}  # fmt: skip
_MOCHI = {
    "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 1,
    "hidden_size_x": 96, "hidden_size_y": 64, "mlp_ratio_x": 128.0, "mlp_ratio_y": 4.0,
    "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
    "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
    "use_t5": True, "t5_feat_dim": 4096, "t5_token_length": 256, "rope_theta": 10000.0,
}  # fmt: skip
_COG = {
    "image_model": "cogvideox", "num_attention_heads": 1, "attention_head_dim": 64,
    "time_embed_dim": 64, "num_layers": 2, "in_channels": 16, "patch_size": 2,
    "text_embed_dim": 4096, "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
_OMNIGEN = {
    "image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664],
    "ffn_dim_multiplier": None, "hidden_size": 120, "in_channels": 16, "multiple_of": 256,
    "norm_eps": 1e-05, "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 1,
    "num_refiner_layers": 1, "out_channels": None, "patch_size": 2, "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}  # fmt: skip
_KREA = {
    "image_model": "krea2", "features": 128, "channels": 16, "patch": 2, "layers": 2, "heads": 1,
    "kvheads": 1, "txtlayers": 12, "txtdim": 2560, "multiplier": 1,
}  # fmt: skip
_ERNIE = {
    "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2,
    "ffn_hidden_size": 256,
}  # fmt: skip
_KANDINSKY = {
    "image_model": "kandinsky5", "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0),
    "time_dim": 64, "ff_dim": 256, "visual_embed_dim": 64, "num_text_blocks": 1,
    "num_visual_blocks": 2, "model_dim": 128,
}  # fmt: skip
_CASCADE = {
    "stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2],
    "blocks": [[1, 1], [1, 1]],
}  # fmt: skip
_ADAPTER = ("anima.model", "LLMAdapter", {"num_layers": 1})
# Anima's adapter adds to the vectors of T5's tokens, and its own code starts with nothing added. So
# these are as long as torch makes embeddings, and what is added is a part of what random weights
# would add.
ADAPTER_OUTPUTS, ADAPTER_SHARE = r"llm_adapter\.blocks\..*(o_proj|mlp\.2)\.weight", 0.3
_ANIMA_SCALED = {r"llm_adapter\.embed\.weight": 1024**0.5, ADAPTER_OUTPUTS: ADAPTER_SHARE}
FAMILIES = {
    "Anima": Family(
        "Anima", {"image_model": "anima", **_PREDICT2}, shrunk=_ADAPTER, scaled=_ANIMA_SCALED
    ),
    "Cosmos-Predict2": Family("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **_PREDICT2}),
    "Cosmos 1": Family("CosmosT2V", _COSMOS1),
    "Wan 2.1": Family("WAN21_T2V", _WAN),
    "Wan 2.2 5B": Family("WAN22_T2V", {**_WAN, "in_dim": 48, "out_dim": 48}),
    "LTX-Video": Family(
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 256,
        },
    ),
    "PixArt alpha": Family(
        "PixArtAlpha",
        {**_PIXART, "image_model": "pixart_alpha", "micro_condition": True, "hidden_size": 48},
        side=64,
    ),
    "PixArt sigma": Family(
        "PixArtSigma", {**_PIXART, "image_model": "pixart_sigma", "micro_condition": False}, side=64
    ),
    "Hunyuan-DiT": Family(
        "HunyuanDiT", {"image_model": "hydit", "depth": 2, "hidden_size": 128, "num_heads": 2}
    ),
    "Stable Cascade": Family("Stable_Cascade_C", _CASCADE, side=8),
    "Flux.1": Family("Flux", _FLUX),
    "Flux.1 schnell": Family("FluxSchnell", {**_FLUX, "guidance_embed": False}),
    "Flux.2": Family(
        "Flux2", {**_FLUX2, "context_in_dim": 15360}, ("flux", "Flux2Tokenizer", "flux2_te()")
    ),
    "Flux.2 Klein": Family("Flux2", _FLUX2, ("flux", "KleinTokenizer", "klein_te()")),
    "LongCat": Family(
        "LongCatImage",
        {
            **_FLUX,
            "guidance_embed": False,
            "vec_in_dim": None,
            "context_in_dim": 3584,
            "txt_ids_dims": [1, 2],
        },
    ),
    "Chroma": Family("Chroma", _CHROMA),
    "SD3": Family("SD3", _SD3, ("sd3_clip", "SD3Tokenizer", "sd3_clip()")),
    "AuraFlow": Family(
        "AuraFlow",
        {
            "max_seq": 64,
            "cond_seq_dim": 2048,
            "n_double_layers": 1,
            "n_layers": 2,
            "dim": 128,
            "n_heads": 2,
            "global_conddim": 128,
        },
    ),
    "Qwen-Image": Family(
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1},
    ),
    "Lumina2": Family("Lumina2", _LUMINA),
    "Z-Image": Family("ZImage", _Z_IMAGE, told_by={"dim": 3840}),
    "Omnigen2": Family("Omnigen2", _OMNIGEN),
    "HiDream": Family("HiDream", _HIDREAM, ("hidream", "HiDreamTokenizer", "hidream_clip()")),
    "Krea 2": Family("Krea2", _KREA),
    "Hunyuan Video": Family("HunyuanVideo", _HUNYUAN),
    "Hunyuan Image": Family("HunyuanImage21", _HUNYUAN_IMAGE),
    "Mochi": Family("GenmoMochi", _MOCHI),
    "CogVideoX": Family("CogVideoX_T2V", _COG, ("cogvideo", "CogVideoXTokenizer", "cogvideo_te()")),
    "Ernie": Family("ErnieImage", _ERNIE),
    "Kandinsky 5": Family("Kandinsky5Image", _KANDINSKY, told_by={"model_dim": 2560}),
}


def _class(family: Family) -> Any:
    import comfy.supported_models

    return getattr(comfy.supported_models, family.config)


@contextmanager
def _shrunk(family: Family) -> Iterator[None]:
    """While it lasts, the part of the family that takes no sizes is made small."""
    if family.shrunk is None:
        yield
        return
    path, name, given = family.shrunk
    module = importlib.import_module(f"comfy.ldm.{path}")
    with mock.patch.object(module, name, functools.partial(getattr(module, name), **given)):
        yield


def checkpoint(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of a family's tiny model as its files name them, float32 and random."""
    family, g = FAMILIES[name], torch.Generator().manual_seed(seed)
    config = _class(family)(dict(family.sizes))
    config.set_inference_dtype(torch.float32, None)
    with _shrunk(family):
        made = config.get_model({}, "").diffusion_model
    state = {}
    for key, weight in made.state_dict().items():
        if not weight.is_floating_point():
            state[key] = weight.clone()
        elif weight.ndim > 1:
            fan = max(1, weight[0].numel())
            state[key] = torch.randn(weight.shape, generator=g) / fan**0.5
            for pattern, times in family.scaled.items():
                if re.fullmatch(pattern, key):
                    state[key] *= times
        else:
            noise = 0.1 * torch.randn(weight.shape, generator=g)
            state[key] = noise + (1.0 if _scales(key) else 0.0)
    return state


def _scales(key: str) -> bool:
    """Whether a vector is one that a norm multiplies with."""
    return key.endswith((".weight", ".scale", ".gamma"))


@contextmanager
def _small_where_unseen(family: Family) -> Iterator[None]:
    """While it lasts, sizes that ComfyUI's detection takes for granted are the family's own.

    The detection itself runs as it is, and has to tell the kind of model.
    """
    import comfy.model_detection as detection

    choose = detection.model_config_from_unet_config

    def small(found: dict, *args: Any, **given: Any) -> Any:
        config = choose({**found, **family.told_by}, *args, **given)
        if config is not None:
            config.unet_config.update(family.sizes)
        return config

    with mock.patch.object(detection, "model_config_from_unet_config", small):
        yield


def load(name: str, state: dict[str, torch.Tensor]) -> Any:
    """The MODEL that ComfyUI's loader makes of a checkpoint of a family."""
    import comfy.sd

    family = FAMILIES[name]
    with _shrunk(family), _small_where_unseen(family):
        return comfy.sd.load_diffusion_model_state_dict(
            dict(state), model_options={"dtype": torch.float32}
        )


def model(name: str, seed: int = 0) -> Any:
    """A MODEL of a family with random weights, made in inference mode as ComfyUI makes it."""
    with torch.inference_mode():
        return load(name, checkpoint(name, seed))


def clip(name: str) -> Any:
    """The CLIP that goes with a family, with stand-ins for its networks."""
    import comfy.supported_models_base as base

    family = FAMILIES[name]
    if family.encoder is None:
        target = _class(family)(dict(family.sizes)).clip_target({})
    else:
        path, tokenizer, encoder = family.encoder
        module = importlib.import_module(f"comfy.text_encoders.{path}")
        found = getattr(module, encoder.removesuffix("()"))
        target = base.ClipTarget(
            getattr(module, tokenizer), found() if encoder.endswith("()") else found
        )
    with torch.inference_mode():
        return text_encoders.build(target)


def latent(name: str) -> list[int]:
    """Shape [channels, (frames,) height, width] of the smallest latents of a family."""
    family = FAMILIES[name]
    form = _class(family)(dict(family.sizes)).latent_format
    side = family.side
    frames = [1] if form.latent_dimensions == 3 else []
    return [form.latent_channels, *frames, side, side]
