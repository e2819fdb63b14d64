"""Kandinsky 5: text enters through one matrix, then blocks that the timestep modulates."""

from .transformer import Transformer, attention, entry, pooled, second

_ATTENTION = r"visual_transformer_blocks\.(\d+)\.cross_attention"


class Kandinsky5(Transformer):
    """Qwen2.5-VL's states, and the pooled vector of CLIP-L."""

    title = "Kandinsky 5"
    told_by = (r"text_embeddings\.in_layer", r"pooled_text_embeddings\.in_layer")
    text = (entry(r"text_embeddings\.in_layer"),)
    pooled = (pooled(r"pooled_text_embeddings\.in_layer"),)
    exact = False
    streams = ("qwen25_7b",)
    second = (second(r"visual_transformer_blocks\.(\d+)\.feed_forward\.out_layer"),)
    attention = attention(
        rf"{_ATTENTION}", ("to_query", "to_key", "to_value", "out_layer"), "block {}"
    )
