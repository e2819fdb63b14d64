"""Stable Cascade's stage C: CLIP-G's states and vector enter through one matrix each."""

from .transformer import Transformer, attention, entry, pooled

_ATTENTION = r"((?:down|up)_blocks)\.(\d+)\.(\d+)\.attention\.attn"


class StableCascade(Transformer):
    """What enters is normalised together with a picture's tokens, which are zero without one. So
    what is erased at the entry is gone everywhere."""

    title = "Stable Cascade"
    told_by = (r"clip_txt_mapper", r"clip_txt_pooled_mapper")
    text = (entry(r"clip_txt_mapper"),)
    pooled = (pooled(r"clip_txt_pooled_mapper"),)
    exact = True
    streams = ("g",)
    attention = attention(rf"{_ATTENTION}", ("to_q", "to_k", "to_v", "out_proj"), "{} {}.{}")
