"""Kandinsky 5: text enters through one matrix, then blocks that the timestep modulates."""

from .transformer import Matrix, Transformer, entry, pooled, second

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
    attention = tuple(
        Matrix(rf"{_ATTENTION}\.{name}", role, "block {} " + label)
        for name, role, label in (
            ("to_query", "query", "q"),
            ("to_key", "key", "k"),
            ("to_value", "value", "v"),
            ("out_layer", "output", "out"),
        )
    )
