"""LTX-Video 0.9: cross-attention to T5's states behind a projection that all blocks share."""

from .transformer import Matrix, Transformer, key_and_value, second

_ATTENTION = r"transformer_blocks\.(\d+)\.attn2"


class LTXVideo(Transformer):
    """LTX-2 reads sound as well and scales its text by the timestep; it is not this family."""

    title = "LTX-Video"
    told_by = (r"caption_projection\.linear_1", r"transformer_blocks\.0\.attn2\.to_k")
    not_told_by = (r"audio_adaln_single\..*",)
    text = key_and_value(_ATTENTION, "to_k", "to_v")
    exact = True
    streams = ("t5xxl",)
    second = (second(r"transformer_blocks\.(\d+)\.ff\.net\.2"),)
    attention = (
        Matrix(rf"{_ATTENTION}\.to_q", "query", "block {} q"),
        *text,
        Matrix(rf"{_ATTENTION}\.to_out\.0", "output", "block {} out"),
    )
    size = 768
