"""Flux.1, Flux.2, Chroma and LongCat: text enters through one matrix and joins the picture."""

from .transformer import Matrix, Transformer, entry, pooled, second

_SECOND = (
    second(r"double_blocks\.(\d+)\.img_mlp\.2", "double {} picture ff"),
    second(r"double_blocks\.(\d+)\.txt_mlp\.2", "double {} text ff"),
)
_ATTENTION = (
    Matrix(r"double_blocks\.(\d+)\.txt_attn\.qkv", "key and value", "double {} text qkv"),
    Matrix(r"double_blocks\.(\d+)\.txt_attn\.proj", "output", "double {} text out"),
)
_DOUBLE = r"double_blocks\.0\.txt_attn\.qkv"


class Flux1(Transformer):
    """T5's states, and the pooled vector of CLIP-L."""

    title = "Flux.1"
    told_by = (r"txt_in", r"vector_in\.in_layer", _DOUBLE)
    text = (entry(r"txt_in"),)
    pooled = (pooled(r"vector_in\.in_layer"),)
    exact = False
    streams = ("t5xxl",)
    second = _SECOND
    attention = _ATTENTION


class Flux2(Transformer):
    """States of three layers of a language model, side by side."""

    title = "Flux.2"
    told_by = (r"txt_in", r"double_stream_modulation_img\.lin", _DOUBLE)
    text = (entry(r"txt_in"),)
    exact = False
    second = _SECOND
    attention = _ATTENTION
    smallest = 4


class Chroma(Transformer):
    """Made from Flux.1, without a pooled vector."""

    title = "Chroma"
    told_by = (r"txt_in", r"distilled_guidance_layer\..*", _DOUBLE)
    text = (entry(r"txt_in"),)
    exact = False
    streams = ("t5xxl",)
    second = _SECOND
    attention = _ATTENTION


class LongCat(Transformer):
    """Built as Flux.1, and reads Qwen2.5-VL."""

    title = "LongCat-Image"
    told_by = (r"txt_in", _DOUBLE)
    not_told_by = (
        r"vector_in\..*",
        r"distilled_guidance_layer\..*",
        r"double_stream_modulation_img\..*",
        r"txt_norm.*",
    )
    text = (entry(r"txt_in"),)
    exact = False
    second = _SECOND
    attention = _ATTENTION
