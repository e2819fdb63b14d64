"""HiDream-I1: every block reads another layer of Llama, and the first ones T5 as well."""

import re

from .transformer import Matrix, Transformer, attention, pooled, second

_CAPTION = r"caption_projection\.(\d+)\.linear"


class HiDream(Transformer):
    """The last of the projections is that of T5's states."""

    title = "HiDream-I1"
    told_by = (r"caption_projection\.0\.linear", r"p_embedder\.pooled_embedder\.linear_1")
    text = (Matrix(_CAPTION, "entry", "text entry {}", "text {}"),)
    pooled = (pooled(r"p_embedder\.pooled_embedder\.linear_1"),)
    exact = False
    second = (
        second(r"double_stream_blocks\.(\d+)\.block\.ff_t\.w2", "double {} text ff"),
        second(r"single_stream_blocks\.(\d+)\.block\.ff_i\.shared_experts\.w2", "single {} ff"),
    )
    attention = attention(
        r"double_stream_blocks\.(\d+)\.block\.attn1",
        ("to_q_t", "to_k_t", "to_v_t", "to_out_t"),
        "double {}",
    )

    def streams_of(self, group: str) -> tuple[str, ...]:
        numbers = [int(x.label.split()[-1]) for x in self.cross_attention_layers()]
        found = re.fullmatch(r"text (\d+)", group)
        of_t5 = found is not None and int(found[1]) == max(numbers)
        return ("t5xxl",) if of_t5 else ("llama",)
