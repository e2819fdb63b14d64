"""Hunyuan Video and Hunyuan Image: a language model's states enter through a refiner.

Text in quotes is read by a second text encoder, ByT5, which is left as it is.
"""

from .transformer import Matrix, Transformer, entry, pooled, second

_TEXT = (entry(r"txt_in\.input_embedder"),)
_MEAN = pooled(r"txt_in\.c_embedder\.in_layer", "mean text", "pooled mean of text")
_SECOND = (
    second(r"double_blocks\.(\d+)\.img_mlp\.2", "double {} picture ff"),
    second(r"double_blocks\.(\d+)\.txt_mlp\.2", "double {} text ff"),
)
_ATTENTION = (
    Matrix(r"double_blocks\.(\d+)\.txt_attn\.qkv", "key and value", "double {} text qkv"),
    Matrix(r"double_blocks\.(\d+)\.txt_attn\.proj", "output", "double {} text out"),
)
_REFINER = r"txt_in\.individual_token_refiner\.blocks\.0\.self_attn\.qkv"


class HunyuanVideo(Transformer):
    """Llama's states, their mean, and the pooled vector of CLIP-L."""

    title = "Hunyuan Video"
    told_by = (r"txt_in\.input_embedder", r"vector_in\.in_layer", _REFINER)
    text = _TEXT
    pooled = (_MEAN, pooled(r"vector_in\.in_layer"))
    exact = False
    streams = ("llama",)
    second = _SECOND
    attention = _ATTENTION
    size = 720


class HunyuanImage(Transformer):
    """Hunyuan Image 2.1 and Hunyuan Video 1.5: Qwen2.5-VL's states and their mean."""

    title = "Hunyuan Image"
    told_by = (r"txt_in\.input_embedder", _REFINER)
    not_told_by = (r"vector_in\..*",)
    text = _TEXT
    pooled = (_MEAN,)
    exact = False
    streams = ("qwen25_7b",)
    second = _SECOND
    attention = _ATTENTION
    size = 2048
    smallest = 4
