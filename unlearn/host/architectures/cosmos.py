"""Anima, Cosmos-Predict2 and Cosmos 1: cross-attention to states that T5's tokens stand for."""

from .transformer import Matrix, Transformer, attention, key_and_value, second

_BLOCK = r"blocks\.(\d+)"
_ATTENTION = attention(
    rf"{_BLOCK}\.cross_attn", ("q_proj", "k_proj", "v_proj", "output_proj"), "block {}"
)


class CosmosPredict2(Transformer):
    """Keys and values read the text encoder's states."""

    title = "Cosmos-Predict2"
    told_by = (r"blocks\.0\.mlp\.layer1", r"blocks\.0\.cross_attn\.k_proj")
    not_told_by = (r"llm_adapter\..*",)
    text = key_and_value(rf"{_BLOCK}\.cross_attn", "k_proj", "v_proj")
    exact = True
    streams = ("t5xxl",)
    second = (second(rf"{_BLOCK}\.mlp\.layer2"),)
    attention = _ATTENTION


class Anima(CosmosPredict2):
    """The same behind an adapter, which mixes a language model's states into T5's tokens."""

    title = "Anima"
    told_by = (*CosmosPredict2.told_by, r"llm_adapter\.out_proj")
    not_told_by = ()


class Cosmos1(Transformer):
    """The second part of each block is cross-attention."""

    title = "Cosmos 1"
    told_by = (r"blocks\.block0\.blocks\.1\.block\.attn\.to_k\.0",)
    text = key_and_value(r"blocks\.block(\d+)\.blocks\.1\.block\.attn", r"to_k\.0", r"to_v\.0")
    exact = True
    streams = ("t5xxl",)
    second = (second(r"blocks\.block(\d+)\.blocks\.2\.block\.layer2"),)
    attention = (
        Matrix(r"blocks\.block(\d+)\.blocks\.1\.block\.attn\.to_q\.0", "query", "block {} q"),
        *text,
        Matrix(r"blocks\.block(\d+)\.blocks\.1\.block\.attn\.to_out\.0", "output", "block {} out"),
    )
