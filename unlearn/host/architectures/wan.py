"""Wan 2.1 and 2.2: cross-attention to UMT5's states behind a projection that all blocks share."""

from .transformer import Matrix, Transformer, key_and_value, second

_ATTENTION = r"blocks\.(\d+)\.cross_attn"


class Wan(Transformer):
    """Variants that read a picture have keys and values of their own for it, which stay as they
    are. Wan 2.2 14B has two models, each solved by itself."""

    title = "Wan"
    told_by = (r"head\.head", r"text_embedding\.0", r"blocks\.0\.cross_attn\.k")
    text = key_and_value(_ATTENTION, "k", "v")
    exact = True
    streams = ("umt5xxl",)
    second = (second(r"blocks\.(\d+)\.ffn\.2"),)
    attention = (
        Matrix(rf"{_ATTENTION}\.q", "query", "block {} q"),
        *text,
        Matrix(rf"{_ATTENTION}\.o", "output", "block {} out"),
    )
    size = 640
