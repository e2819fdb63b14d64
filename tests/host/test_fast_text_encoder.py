"""Prompts read without most of the padding.

The states are the full encoder's, from a quarter of the positions, or the encoder is read in full.
"""

import pytest
import torch

from testbed import pack

fast = pack.module("unlearn.host.fast_text_encoder")
prompts = pack.module("unlearn.host.text_encoding")
states = pack.module("unlearn.files.text_cache")
UnlearnError = pack.module("unlearn.errors").UnlearnError
TEXTS = (
    "a cat",
    "",
    "a photo of a fox",
    "two people looking at a ship at night, sharp focus",
    "the dog in the garden",
)


def located(clip, texts=TEXTS):
    return [prompts.locate(clip, "{concept}", t) for t in texts]


def wide(clip):
    """A list that grows by how many positions enter the first layer of an encoder of a CLIP."""
    fed = []
    for encoder in clip.cond_stage_model.children():

        def hook(module, given):
            return fed.append(given[0].shape[0] * given[0].shape[1])

        encoder.transformer.text_model.encoder.layers[0].register_forward_pre_hook(hook)
    return fed


def sdxl(seed=0):
    """A tiny CLIP of two encoders as SDXL's, of random weights.

    The last layer but one is read, and one of them pads with zeros.
    """
    import comfy.sd
    import comfy.sdxl_clip
    import comfy.supported_models_base as base

    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    options = {
        "clip_l_model_config": small,
        "clip_g_model_config": {**small, "hidden_size": 48, "num_attention_heads": 3},
    }
    target = base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(target, parameters=1, model_options=options)
    g = torch.Generator().manual_seed(seed)
    for name, p in clip.cond_stage_model.named_parameters():
        size = (
            0.02
            if "position_embedding" in name
            else 0.5
            if "embedding" in name
            else 0.1
            if p.dim() < 2
            else p.shape[-1] ** -0.5
        )
        p.copy_(
            torch.ones(p.shape)
            if "norm" in name and "weight" in name
            else torch.randn(p.shape, generator=g) * size
        )
    return clip


def near(clip, read, whole):
    """The largest relative error of the padding.

    Asserts that all other states that are read are the encoder's.
    """
    worst = 0.0
    for p in located(clip, whole):
        where = torch.tensor(states.kept_positions(p.end, len(whole[p.text])))
        a, b = read[p.text][where], whole[p.text][where]
        own, behind = where <= p.end, where > p.end
        assert torch.allclose(a[own], b[own], rtol=1e-4, atol=1e-4), p.text
        worst = max(worst, float((a[behind] - b[behind]).norm() / b[behind].norm()))
    return worst


def test_states_are_exact_up_to_the_end_token_and_near_behind_it(loaded):
    clip = loaded[1]
    encoder = fast.build(clip, states.kept_positions, prompts.encode(clip, states.PROBES))
    assert near(clip, encoder.encode(located(clip)), prompts.encode(clip, TEXTS)) < fast.NEAR


def test_two_encoders_and_the_last_layer_but_one():
    clip = sdxl()
    whole = prompts.encode(clip, TEXTS)
    encoder = fast.build(clip, states.kept_positions, prompts.encode(clip, states.PROBES))
    assert (
        whole["a cat"].shape == (77, 80)
        and near(clip, encoder.encode(located(clip)), whole) < fast.NEAR
    )


def test_few_positions_are_computed_shared_beginnings_once_and_the_clip_stays_as_it_was():
    clip = sdxl()
    before, truth = prompts.encode(clip, TEXTS), prompts.encode(clip, states.PROBES)
    fed = wide(clip)
    encoder = fast.unchecked(clip, states.kept_positions)
    read = encoder.encode(located(clip))
    chosen = [
        len({*states.kept_positions(p.end, 77), *(p.end + k for k in fast.DENSE)})
        for p in located(clip)
    ]
    assert fed == [sum(chosen) - 5] * 2  # "a" is shared by two, and the start token by all five
    assert sum(chosen) < 5 * 77 / 3
    fed.clear()
    assert all(torch.equal(before[t], s) for t, s in prompts.encode(clip, TEXTS).items()) and set(
        fed
    ) == {5 * 77}
    assert encoder.matches_full_encoder(located(clip, truth), truth) and all(
        read[t].shape == before[t].shape for t in TEXTS
    )


def test_whom_a_text_is_read_beside_changes_nothing():
    clip = sdxl()
    encoder = fast.unchecked(clip, states.kept_positions)
    texts = [
        f"a photo of a {a} {b}" for a in ("red", "blue") for b in ("cat", "fox", "dog", "ship")
    ] + [*TEXTS, "a photo", "a"]
    together, by_two = encoder.encode(located(clip, texts)), {}
    for i in range(0, len(texts), 2):
        by_two |= encoder.encode(located(clip, texts[i : i + 2]))
    assert len(together) == len(texts) and all(
        torch.allclose(s, by_two[t], atol=1e-5) for t, s in together.items()
    )


def test_where_nobody_reads_the_padding_it_is_not_computed():
    """All up to the end token, and the pooled vector there, are as they were."""
    clip = sdxl()
    pooled, vectors = {}, {}
    whole = prompts.encode(clip, TEXTS, pooled=vectors)
    wanted = [p._replace(padded=False) for p in located(clip)]
    fed, encoder = wide(clip), fast.unchecked(clip, states.kept_positions)
    found = encoder.encode(wanted, pooled=pooled)
    assert fed == [sum(p.end + 1 for p in wanted) - 5] * 2
    for p in wanted:
        assert len(found[p.text]) == p.end + 1
        assert torch.allclose(found[p.text], whole[p.text][: p.end + 1], atol=1e-4), p.text
        assert torch.allclose(pooled[p.text], vectors[p.text], atol=1e-4)


def test_states_without_their_padding_are_kept_and_serve_nobody_who_reads_it(tmp_path):
    clip = sdxl()
    whole = prompts.encode(clip, TEXTS)
    padded, cut = located(clip), [p._replace(padded=False) for p in located(clip)]

    def encoded(wanted):
        """How many prompts a new store encodes, whose states are the encoder's."""
        store = states.TextStateCache(clip, tmp_path)
        found = store.get(wanted)
        assert near(clip, found, whole) < fast.NEAR if wanted[0].padded else True
        assert all(
            torch.allclose(found[p.text][: p.end + 1], whole[p.text][: p.end + 1], atol=1e-4)
            for p in padded
        )
        return store.encoded

    assert encoded(cut) == len(TEXTS) and encoded(cut) == 0
    assert encoded(padded) == len(TEXTS) and encoded(padded) == 0
    assert encoded(cut) == 0 and encoded([*cut, *padded]) == 0


def test_where_all_positions_are_read_nothing_differs():
    clip = sdxl()
    encoder = fast.unchecked(clip, lambda end, length: [*range(length)])
    whole = prompts.encode(clip, TEXTS)
    found = encoder.encode(located(clip))
    assert found.keys() == whole.keys()
    assert all(torch.allclose(s, whole[t], atol=1e-5) for t, s in found.items())


def test_counting_what_a_position_stands_for_is_what_brings_it_near(monkeypatch):
    """Without it the padding weighs a fifth of what it does, and the probes tell."""
    clip = sdxl()
    truth = prompts.encode(clip, states.PROBES)
    encoder = fast.unchecked(clip, states.kept_positions)
    counted = near(clip, encoder.encode(located(clip, truth)), truth)
    monkeypatch.setattr(fast, "_counts", torch.ones_like)
    assert near(clip, encoder.encode(located(clip, truth)), truth) > 2 * counted


def test_an_encoder_that_sees_ahead_is_read_in_full(monkeypatch):
    clip = sdxl()
    stack = clip.cond_stage_model.clip_l.transformer.text_model.encoder
    plain = stack.forward
    monkeypatch.setattr(
        stack, "forward", lambda x, mask=None, **rest: plain(x, mask=torch.zeros_like(mask), **rest)
    )
    assert fast.build(clip, states.kept_positions, prompts.encode(clip, states.PROBES)) is None
    store = states.TextStateCache(clip)
    assert store.fast_encoder is None
    whole = prompts.encode(clip, TEXTS)
    found = store.get(located(clip))
    assert found.keys() == whole.keys()
    assert all(torch.equal(s, whole[t]) for t, s in found.items())


@pytest.mark.parametrize("broken", ["no model", "another build", "an encoder of another build"])
def test_an_encoder_that_is_not_built_as_clip_is_read_in_full(broken):
    clip = sdxl()
    if broken == "no model":
        clip = None
    elif broken == "another build":
        clip.cond_stage_model = torch.nn.Linear(2, 2)
    else:
        clip.cond_stage_model.clip_g.transformer = torch.nn.Linear(2, 2)
    assert fast.build(clip, states.kept_positions, {}) is None


def test_a_prompt_with_an_embedding_in_it_is_read_in_full():
    clip = sdxl()
    plain = clip.tokenize

    def tokenize(text, **rest):
        found = plain(text, **rest)
        for encoder, width in (("l", 32), ("g", 48)):
            found[encoder][0][2] = (torch.full((width,), 0.3), *found[encoder][0][2][1:])
        return found

    clip.tokenize = tokenize
    encoder, fed = fast.unchecked(clip, states.kept_positions), wide(clip)
    whole = prompts.encode(clip, TEXTS[2:])
    fed.clear()
    read = encoder.encode(located(clip, TEXTS[2:]))
    assert fed == [3 * 77 - 2] * 2  # all but the start tokens, which are alike
    assert all(torch.allclose(read[t], whole[t], atol=1e-5) for t in TEXTS[2:])


def test_nan_and_cancelling_come_through(monkeypatch):
    clip = sdxl()
    encoder = fast.unchecked(clip, states.kept_positions)
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        encoder.encode(located(clip))
    clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].layer_norm1.bias[0] = (
        float("nan")
    )
    with pytest.raises(UnlearnError, match="NaN"):
        encoder.encode(located(clip))
