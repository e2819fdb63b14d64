"""The worlds' text encoder: CLIP-L with seeded random weights, so that no file has to hold it."""

import torch

SEED = 20260111
LAYERS, WIDTH, FFN, VOCAB, POSITIONS = 12, 768, 3072, 49408, 77


def state_dict(prefix="", seed=SEED):
    """CLIP-L text weights under the names of transformers, float32, drawn from the seed.

    Standard deviations: tokens and matrices 0.02, positions 0.005. Norms are 1, biases 0.
    """
    g = torch.Generator("cpu").manual_seed(seed)

    def normal(std, *shape):
        return torch.empty(*shape).normal_(0, std, generator=g)

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
