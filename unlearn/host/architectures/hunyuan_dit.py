"""Hunyuan-DiT: cross-attention to the states of BERT and of mT5, one after the other."""

from .transformer import Matrix, Transformer, pooled, second

_ATTENTION = r"blocks\.(\d+)\.attn2"
_POOLED_WIDTH = 1024  # of the vector that is pooled from mT5's states


class HunyuanDiT(Transformer):
    """A vector pooled from mT5's states enters beside the timestep."""

    title = "Hunyuan-DiT"
    told_by = (r"mlp_t5\.0", r"blocks\.0\.attn2\.kv_proj")
    text = (Matrix(rf"{_ATTENTION}\.kv_proj", "key and value", "block {} kv"),)
    pooled = (pooled(r"extra_embedder\.0", columns=_POOLED_WIDTH),)
    exact = True
    streams = ("hydit_clip", "mt5xl")
    second = (second(r"blocks\.(\d+)\.mlp\.fc2"),)
    attention = (
        Matrix(rf"{_ATTENTION}\.q_proj", "query", "block {} q"),
        *text,
        Matrix(rf"{_ATTENTION}\.out_proj", "output", "block {} out"),
    )
