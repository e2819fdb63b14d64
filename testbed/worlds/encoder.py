"""The sprite world's text encoder: CLIP-L with seeded random weights, never trained, so nothing of it need be stored."""

import torch

SEED = 20260111
LAYERS, WIDTH, FFN, VOCAB, POSITIONS = 12, 768, 3072, 49408, 77


def state_dict(prefix="", seed=SEED):
    """CLIP-L text weights in transformers' names, float32: token std 0.02, position std 0.005, matrices std 0.02, norms 1 and 0."""
    g = torch.Generator("cpu").manual_seed(seed)
    normal = lambda std, *shape: torch.empty(*shape).normal_(0, std, generator=g)
    sd = {
        "embeddings.token_embedding.weight": normal(0.02, VOCAB, WIDTH),
        "embeddings.position_embedding.weight": normal(0.005, POSITIONS, WIDTH),
    }
    for i in range(LAYERS):
        linears = [(f"self_attn.{n}_proj", WIDTH, WIDTH) for n in ("q", "k", "v", "out")]
        for name, out, into in [*linears, ("mlp.fc1", FFN, WIDTH), ("mlp.fc2", WIDTH, FFN)]:
            sd[f"encoder.layers.{i}.{name}.weight"] = normal(0.02, out, into)
            sd[f"encoder.layers.{i}.{name}.bias"] = torch.zeros(out)
    for norm in ["final_layer_norm"] + [
        f"encoder.layers.{i}.layer_norm{k}" for i in range(LAYERS) for k in (1, 2)
    ]:
        sd[f"{norm}.weight"], sd[f"{norm}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    return {f"{prefix}{k}": v for k, v in sd.items()}
