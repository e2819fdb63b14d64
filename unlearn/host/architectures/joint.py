"""Families whose text enters through one matrix and then stands beside the picture's tokens.

SD3, AuraFlow, Qwen-Image, Lumina2 and Z-Image, Omnigen2, Krea 2, CogVideoX, Ernie and Mochi.
"""

from .transformer import Matrix, Transformer, attention, entry, pooled, second


class SD3(Transformer):
    """SD3 and SD3.5: the states of both CLIPs side by side, then those of T5."""

    title = "SD3"
    told_by = (r"context_embedder", r"joint_blocks\.0\.context_block\.attn\.qkv")
    text = (entry(r"context_embedder"),)
    pooled = (pooled(r"y_embedder\.mlp\.0"),)
    exact = False
    streams = ("l", "t5xxl")
    second = (
        second(r"joint_blocks\.(\d+)\.x_block\.mlp\.fc2", "joint {} picture ff"),
        second(r"joint_blocks\.(\d+)\.context_block\.mlp\.fc2", "joint {} text ff"),
    )
    attention = (
        Matrix(
            r"joint_blocks\.(\d+)\.context_block\.attn\.qkv", "key and value", "joint {} text qkv"
        ),
        Matrix(r"joint_blocks\.(\d+)\.context_block\.attn\.proj", "output", "joint {} text out"),
    )


class AuraFlow(Transformer):
    """Pile-T5's states."""

    title = "AuraFlow"
    told_by = (r"cond_seq_linear", r"double_layers\.0\.attn\.w1q")
    text = (entry(r"cond_seq_linear"),)
    exact = False
    second = (
        second(r"double_layers\.(\d+)\.mlpX\.c_proj", "double {} picture ff"),
        second(r"double_layers\.(\d+)\.mlpC\.c_proj", "double {} text ff"),
        second(r"single_layers\.(\d+)\.mlp\.c_proj", "single {} ff"),
    )
    attention = attention(
        r"double_layers\.(\d+)\.attn", ("w1q", "w1k", "w1v", "w1o"), "double {} text"
    )


class QwenImage(Transformer):
    """Qwen2.5-VL's states, normalised."""

    title = "Qwen-Image"
    told_by = (r"txt_norm", r"txt_in", r"transformer_blocks\.0\.attn\.add_k_proj")
    text = (entry(r"txt_in"),)
    exact = False
    second = (
        second(r"transformer_blocks\.(\d+)\.img_mlp\.net\.2", "block {} picture ff"),
        second(r"transformer_blocks\.(\d+)\.txt_mlp\.net\.2", "block {} text ff"),
    )
    attention = attention(
        r"transformer_blocks\.(\d+)\.attn",
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "block {} text",
    )
    size = 1328


class NextDiT(Transformer):
    """Lumina2 and Z-Image: a language model's states, normalised, then a refiner of the text."""

    title = "Z-Image and Lumina2"
    told_by = (r"cap_embedder\.1", r"noise_refiner\.0\.attention\.k_norm")
    text = (entry(r"cap_embedder\.1"),)
    exact = False
    second = (
        second(r"context_refiner\.(\d+)\.feed_forward\.w2", "text {} ff"),
        second(r"layers\.(\d+)\.feed_forward\.w2"),
    )
    attention = (
        Matrix(r"context_refiner\.(\d+)\.attention\.qkv", "key and value", "text {} qkv"),
        Matrix(r"context_refiner\.(\d+)\.attention\.out", "output", "text {} out"),
    )


class Omnigen2(Transformer):
    """Qwen2.5-VL's states, normalised, then a refiner of the text."""

    title = "Omnigen2"
    told_by = (
        r"time_caption_embed\.caption_embedder\.1",
        r"context_refiner\.0\.attn\.to_k",
    )
    not_told_by = (r"double_stream_layers\..*",)
    text = (entry(r"time_caption_embed\.caption_embedder\.1"),)
    exact = False
    second = (
        second(r"context_refiner\.(\d+)\.feed_forward\.linear_2", "text {} ff"),
        second(r"layers\.(\d+)\.feed_forward\.linear_2"),
    )
    attention = attention(
        r"context_refiner\.(\d+)\.attn", ("to_q", "to_k", "to_v", r"to_out\.0"), "text {}"
    )


class Krea2(Transformer):
    """Twelve layers of Qwen3-VL, fused into one row for each token before they enter."""

    title = "Krea 2"
    told_by = (r"txtfusion\.projector", r"txtmlp\.1")
    text = (entry(r"txtmlp\.1"),)
    exact = False
    second = (
        second(r"txtfusion\.refiner_blocks\.(\d+)\.mlp\.down", "text {} ff"),
        second(r"blocks\.(\d+)\.mlp\.down"),
    )
    attention = attention(
        r"txtfusion\.refiner_blocks\.(\d+)\.attn", ("wq", "wk", "wv", "wo"), "text {}"
    )


class CogVideoX(Transformer):
    """T5's states."""

    title = "CogVideoX"
    told_by = (r"patch_embed\.text_proj", r"blocks\.0\.norm1\.linear")
    text = (entry(r"patch_embed\.text_proj"),)
    exact = False
    streams = ("t5xxl",)
    second = (second(r"blocks\.(\d+)\.ff_out"),)
    attention = attention(r"blocks\.(\d+)", ("q", "k", "v", "attn_out"), "block {}")
    size = 720


class Ernie(Transformer):
    """Ministral's states."""

    title = "Ernie-Image"
    told_by = (r"text_proj", r"layers\.0\.mlp\.linear_fc2")
    text = (entry(r"text_proj"),)
    exact = False
    second = (second(r"layers\.(\d+)\.mlp\.linear_fc2"),)
    attention = attention(
        r"layers\.(\d+)\.self_attention", ("to_q", "to_k", "to_v", r"to_out\.0"), "block {}"
    )
    smallest = 4


class Mochi(Transformer):
    """T5's states, and a vector that attention pools from them."""

    title = "Mochi"
    told_by = (r"t5_yproj", r"t5_y_embedder\.to_kv")
    text = (entry(r"t5_yproj"),)
    pooled = (pooled(r"t5_y_embedder\.to_out"),)
    exact = False
    streams = ("t5xxl",)
    second = (
        second(r"blocks\.(\d+)\.mlp_x\.w2", "block {} picture ff"),
        second(r"blocks\.(\d+)\.mlp_y\.w2", "block {} text ff"),
    )
    attention = (
        Matrix(r"blocks\.(\d+)\.attn\.qkv_y", "key and value", "block {} text qkv"),
        Matrix(r"blocks\.(\d+)\.attn\.proj_y", "output", "block {} text out"),
    )
    size = 640
