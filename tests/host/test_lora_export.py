"""A patch as a LoRA.

Its factors are compared with literal matrices, and the model that ComfyUI's own loader puts it on
draws the pictures of the patched model.
"""

import json
import math

import pytest
import torch

from testbed import pack
from testbed.worlds.evaluate import sample

lora = pack.module("unlearn.files.lora_file")
files = pack.module("unlearn.files.safetensors_io")
adapters = pack.module("unlearn.host.adapters")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")
prompts = pack.module("unlearn.host.text_encoding")
types = pack.module("unlearn.types")
UnlearnError = pack.module("unlearn.errors").UnlearnError
LowRank, Prune, Delta = adapters.LowRank, adapters.Prune, adapters.Delta
TEXTS = ("a photo of a cat", "an image of a house")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def after(w, edits):
    for edit in edits:
        w = w + edit.change(w, 1.0)
    return w


def test_pruned_columns_are_minus_w_times_one_hot():
    w = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    up, down = lora.factors(w, [Prune.of(torch.tensor([False, True, True]), 2, 3, "column")])
    assert up.tolist() == [[-2, -3], [-5, -6]] and down.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert torch.equal(w + up @ down, torch.tensor([[1.0, 0, 0], [4, 0, 0]]))


STACKS = {
    "low rank": (lambda: [LowRank.of(rand(8, 2), rand(2, 12))], 2),
    "column": (lambda: [Prune.of(torch.arange(12) < 3, 8, 12, "column")], 3),
    "row": (lambda: [Prune.of(torch.arange(8) < 2, 8, 12, "row")], 2),
    "connections of two rows": (
        lambda: [Prune.of((rand(8, 12) > 0) & (torch.arange(8) < 2)[:, None], 8, 12)],
        2,
    ),
    "all connections": (lambda: [Prune.of(rand(8, 12) > 0, 8, 12)], 8),
    "sparse": (lambda: [Delta.of(torch.where(torch.arange(12) == 5, rand(8, 12), 0))], 1),
    "dense": (lambda: [Delta.of(rand(8, 12))], 8),
    "nothing": (lambda: [Delta.of(torch.zeros(8, 12))], 0),
    "a stack": (
        lambda: [
            LowRank.of(rand(8, 2), rand(2, 12)),
            Prune.of(torch.arange(12) < 3, 8, 12, "column"),
        ],
        5,
    ),
    "a stack of full rank": (
        lambda: [Delta.of(rand(8, 12)), LowRank.of(rand(8, 2), rand(2, 12))],
        8,
    ),
}


@pytest.mark.parametrize("edits, rank", STACKS.values(), ids=STACKS)
def test_factors_are_exact_and_as_small_as_they_can_be(edits, rank):
    w = rand(8, 12, seed=9)
    up, down = lora.factors(w, edits())
    assert up.shape == (8, rank) and down.shape == (rank, 12)
    torch.testing.assert_close(w + up @ down, after(w, edits()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)])
def test_the_nearest_of_a_rank_is_the_truncated_svd(shape):
    d = rand(*shape)
    u, s, v = torch.linalg.svd(d.double(), full_matrices=False)
    for rank in (1, 3, 8, 20):
        up, down = lora.nearest(d, rank)
        torch.testing.assert_close(
            (up @ down).double(), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-5, rtol=1e-4
        )
        assert up.shape[1] == down.shape[0] == min(rank, *shape)


def made(model, edits):
    return types.UnlearnPatch(
        tuple(edits),
        weights.fingerprint(model, [k for k, _ in edits]),
        ({"method": "m", "concepts": ["cat"]},),
    )


def pruned_columns(model):
    """Some hidden units of every block pruned, and a strong rank-4 change of cross-attention."""
    edits = [
        (
            layer.key,
            Prune.of(
                rand(weights.shape(model, layer.key)[1], seed=i) > 1.5,
                *weights.shape(model, layer.key),
                "column",
            ),
        )
        for i, layer in enumerate(layers.feed_forward(model))
    ]
    down = torch.nn.functional.normalize(rand(4, 768), dim=1)
    for i, layer in enumerate(layers.cross_attention(model)):
        w = weights.read(model, layer.key)
        edits.append(
            (
                layer.key,
                LowRank.of(
                    0.3 * w.norm() * torch.nn.functional.normalize(rand(len(w), 4, seed=i), dim=0),
                    down,
                ),
            )
        )
    return made(model, edits)


def pruned_connections(model):
    return made(
        model,
        [
            (
                layer.key,
                Prune.of(
                    rand(*weights.shape(model, layer.key), seed=i) > 0.0,
                    *weights.shape(model, layer.key),
                ),
            )
            for i, layer in enumerate(layers.feed_forward(model))
        ],
    )


def drawn(loaded, model):
    """Pictures in [0, 1] of TEXTS, as the VAE decodes them."""
    states = prompts.encode(loaded[1], [*TEXTS, ""])
    noise = torch.stack(
        [
            torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i))
            for i in range(len(TEXTS))
        ]
    )
    latents = sample(model, noise, torch.stack([states[t] for t in TEXTS]), states[""], 4, 3.0)
    return loaded[2].decode(latents).float().cpu()


def psnr(a, b):
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


def by_stock_loader(loaded, path):
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(
        loaded[0], loaded[1], comfy.utils.load_torch_file(str(path)), 1.0, 1.0
    )[0]


@pytest.mark.parametrize("make", [pruned_columns, pruned_connections])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_the_stock_loader_on_the_plain_model_gives_the_patched_pictures(
    loaded, tmp_path, caplog, make, precision
):
    model = loaded[0]
    patch = make(model)
    tensors, metadata, report = lora.export(model, patch, dtype=lora.PRECISION[precision])
    files.write(tmp_path / "x.safetensors", tensors, metadata)
    plain, patched = drawn(loaded, model), drawn(loaded, patching.apply(model, patch)[0])
    caplog.clear()
    again = drawn(loaded, by_stock_loader(loaded, tmp_path / "x.safetensors"))
    assert "not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    print(
        f"{make.__name__} {precision}: {psnr(patched, again):.1f} dB, "
        f"plain {psnr(patched, plain):.1f} dB\n{report}"
    )
    assert psnr(patched, plain) < 35 and psnr(patched, again) >= 50
    assert f"{len(patch.edits)} of {len(patch.edits)} weights are exact" in report
    assert ("large for a LoRA" in report) == (make is pruned_connections)
    assert torch.equal(drawn(loaded, model), plain)


def test_a_rank_loses_what_the_report_says(loaded):
    model = loaded[0]
    patch = pruned_connections(model)
    for rank in (8, 128):
        tensors, _, report = lora.export(model, patch, rank)
        lost = total = 0
        for key, edit in patch.edits:
            w, name = weights.read(model, key), layers.of(model).lora_names()[key]
            assert (
                tensors[f"{name}.lora_up.weight"].shape[1] == rank
                and float(tensors[f"{name}.alpha"]) == rank
            )
            change = edit.change(w, 1.0)
            lost += (
                (tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] - change)
                .square()
                .sum()
            )
            total += change.square().sum()
        assert (
            f"{float((lost / total) ** 0.5):.2%} of the change is lost" in report
            and "0 of " in report
        )
        assert "choose 'exact'" in report
    _, _, report = lora.export(model, pruned_columns(model), 4)
    assert f"{len(layers.cross_attention(model))} of " in report  # those of rank 4 stay exact


def test_loras_on_the_model_are_part_of_what_is_pruned(loaded):
    model, key = loaded[0].clone(), layers.feed_forward(loaded[0])[0].key
    bump = rand(*weights.shape(model, key)) / 10
    model.add_patches({key: (bump,)})
    patch = made(model, [(key, Prune.of(torch.arange(1280) < 9, 320, 1280, "column"))])
    tensors, _, _ = lora.export(model, patch)
    name = layers.of(model).lora_names()[key]
    product = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    assert torch.equal(product[:, :9], -weights.read(model, key)[:, :9])


def test_names_are_those_of_kohya_and_known_to_the_host():
    import comfy.lora

    from testbed import shapes

    for kind, key, name in (
        (
            "SD1.5",
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        ),
        (
            "SD1.5",
            "middle_block.1.transformer_blocks.0.ff.net.2",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
        ),
        (
            "SD2.1",
            "output_blocks.3.1.transformer_blocks.0.attn2.to_v",
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v",
        ),
        (
            "SDXL",
            "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
            "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        ),
        (
            "SDXL",
            "output_blocks.0.1.transformer_blocks.9.ff.net.2",
            "lora_unet_output_blocks_0_1_transformer_blocks_9_ff_net_2",
        ),
    ):
        model = shapes.on_meta(kind)
        model.model = as_host(model.model, kind)
        names = layers.of(model).lora_names()
        assert names[f"diffusion_model.{key}.weight"] == name
        known = comfy.lora.model_lora_keys_unet(model.model, {})
        for layer in (*layers.cross_attention(model), *layers.feed_forward(model)):
            assert known[names[layer.key]] == layer.key


def as_host(unet, kind):
    """The stand-in as one of the host's model classes, which tell SDXL from the rest."""
    import comfy.model_base

    from testbed import shapes

    base = {"SDXL": comfy.model_base.SDXL}.get(kind, comfy.model_base.BaseModel)
    model = base.__new__(base)
    torch.nn.Module.__init__(model)
    model.diffusion_model = unet["diffusion_model"]
    config = {**shapes.SHARED, **shapes.CONFIGS[kind]}
    config.setdefault("transformer_depth_output", [])
    model.model_config = type("Config", (), {"unet_config": config})()
    return model


def test_metadata_and_errors(loaded):
    model = loaded[0]
    patch = pruned_columns(model)
    _, metadata, _ = lora.export(model, patch)
    assert (
        metadata["ss_network_module"] == "networks.lora" and metadata["ss_network_dim"] == "Dynamic"
    )
    assert json.loads(metadata["unlearn"])[0]["concepts"] == ["cat"] and all(
        isinstance(v, str) for v in metadata.values()
    )
    with pytest.raises(UnlearnError, match="has this patch on it already"):
        lora.export(patching.apply(model, patch)[0], patch)
    key = layers.feed_forward(model)[0].key
    huge = made(model, [(key, LowRank.of(torch.full((320, 1), 1e6), torch.ones(1, 1280)))])
    with pytest.raises(UnlearnError, match="choose float32"):
        lora.export(model, huge, dtype=torch.float16)


def test_cancel_writes_nothing(loaded, monkeypatch):
    import comfy.model_management as mm

    calls, real = [0], lora.factors

    def stop(*a):
        calls[0] += 1
        if calls[0] == 2:
            mm.interrupt_current_processing()
        return real(*a)

    monkeypatch.setattr(lora, "factors", stop)
    with pytest.raises(mm.InterruptProcessingException):
        lora.export(loaded[0], pruned_columns(loaded[0]))
    mm.interrupt_current_processing(False)
    assert calls[0] == 2
