"""PixArt alpha and sigma: cross-attention whose keys and values are one matrix."""

from .transformer import Matrix, Transformer, second

_ATTENTION = r"blocks\.(\d+)\.cross_attn"


class PixArt(Transformer):
    """T5's states come through a projection that all blocks share."""

    title = "PixArt"
    told_by = (r"y_embedder\.y_proj\.fc1", r"blocks\.0\.cross_attn\.kv_linear")
    text = (Matrix(rf"{_ATTENTION}\.kv_linear", "key and value", "block {} kv"),)
    exact = True
    streams = ("t5xxl",)
    second = (second(r"blocks\.(\d+)\.mlp\.fc2"),)
    attention = (
        Matrix(rf"{_ATTENTION}\.q_linear", "query", "block {} q"),
        *text,
        Matrix(rf"{_ATTENTION}\.proj", "output", "block {} out"),
    )
    smallest = 64  # its positions are counted in parts of a picture of 512 pixels
