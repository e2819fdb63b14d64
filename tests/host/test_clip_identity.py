"""Which text encoder a CLIP is.

Its weights and settings decide, not the device or dtype that it computes in.
"""

import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from testbed import pack, tiny

identities = pack.module("unlearn.host.clip_identity")
states = pack.module("unlearn.files.text_cache")
QUERY = "clip_l.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"
TOKENS = "clip_g.transformer.text_model.embeddings.token_embedding.weight"


def sdxl(seed=0, dtype=None, embeddings=None):
    """A CLIP of two encoders as SDXL's, tiny, of random weights. embeddings: folder of files."""
    import comfy.sd
    import comfy.sdxl_clip
    import comfy.supported_models_base as base

    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    options = {"clip_l_model_config": small, "clip_g_model_config": small}
    if dtype is not None:
        options["dtype"] = dtype
    target = base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(
        target, embedding_directory=embeddings, parameters=1, model_options=options
    )
    g = torch.Generator().manual_seed(seed)
    for name, p in clip.cond_stage_model.named_parameters():
        p.copy_(torch.randn(p.shape, generator=g) / 9)
        if "text_projection" in name:
            p.fill_(float("nan"))  # the host leaves anything in what a checkpoint lacks
    return clip


def identity(clip):
    return identities.identity(clip, states.PROBES)


def test_the_same_encoder_has_one_identity_in_every_dtype_and_state():
    clip = sdxl()
    known = identity(clip)
    assert known is not None and known == identity(clip.clone()) == identity(sdxl())
    assert known == identity(sdxl(dtype=torch.float16))
    clip.encode_from_tokens(clip.tokenize("a cat"))  # loads it
    other = clip.clone()
    other.clip_layer(-3)
    other.encode_from_tokens(other.tokenize("a cat"))  # the modules are shared with the clone
    assert identity(clip) == known
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(3.0)
    assert identity(clip) == known


def patched(strength=1.0, seed=0):
    clip = sdxl()
    g = torch.Generator().manual_seed(seed)
    clip.add_patches({QUERY: (torch.randn(32, 32, generator=g),)}, strength)
    return clip


def skipped(layer):
    clip = sdxl()
    clip.clip_layer(layer)
    return clip


def one_token_changed():
    clip = sdxl()
    dict(clip.cond_stage_model.named_parameters())[TOKENS][1234] += 1
    return clip


def other_tokenizer():
    clip = sdxl()
    clip.set_tokenizer_option("min_length", 99)
    return clip


OTHERS = {
    "checkpoint": lambda: sdxl(seed=1),
    "one token": one_token_changed,
    "lora": patched,
    "strength of a lora": lambda: patched(0.5),
    "another lora": lambda: patched(seed=1),
    "clip skip": lambda: skipped(-2),
    "another clip skip": lambda: skipped(-3),
    "tokenizer": other_tokenizer,
}


def test_everything_that_decides_states_makes_another_identity():
    found = {name: identity(make()) for name, make in OTHERS.items()}
    found["none of these"] = identity(sdxl())
    assert None not in found.values() and len(set(found.values())) == len(found), found


def test_a_lora_in_place_is_as_one_that_is_not_yet_loaded():
    clip = patched()
    known, plain = identity(clip), sdxl()
    clip.encode_from_tokens(clip.tokenize("a cat"))
    assert clip.patcher.backup  # it is in the weights now
    assert identity(clip) == known != identity(plain)
    unpatched = clip.clone()
    unpatched.patcher.patches = {}
    unpatched.patcher.backup = clip.patcher.backup
    assert identity(unpatched) == identity(plain)


@pytest.mark.parametrize("what", ["object_patches", "injections", "forced_hooks"])
def test_what_cannot_be_read_has_no_identity(what):
    clip = sdxl()
    setattr(clip.patcher, what, {"x": object()})
    assert identity(clip) is None
    assert identity(tiny.Clip()) is identity(None) is identity(SimpleNamespace()) is None


def hooked(clip):
    clip.cond_stage_model.clip_g.register_forward_hook(doubled)


def hooked_before(clip):
    inner = clip.cond_stage_model.clip_l.transformer
    inner.register_forward_pre_hook(lambda module, args: args)


def forwarded(clip):
    encoder = clip.cond_stage_model.clip_g
    encoder.forward = lambda *args, real=encoder.forward: doubled(encoder, args, real(*args))


def replaced_module(clip):
    part = clip.cond_stage_model.clip_g.transformer
    clip.patcher.add_object_patch("clip_g.transformer", part)


def injected(clip):
    clip.patcher.set_injections("theirs", [object()])


def doubled(module, args, out):
    """Doubles the states of sentences with a cat in them, and of no probe."""
    cat = 2368
    rows = [any(token == cat for token in row) for row in args[0]]
    factor = torch.tensor([2.0 if there else 1.0 for there in rows])[:, None, None]
    return (out[0] * factor, *out[1:])


ALTERED = {f.__name__: f for f in (hooked, hooked_before, forwarded, replaced_module, injected)}


@pytest.mark.parametrize("how", ALTERED)
def test_a_clip_that_others_have_altered_has_no_identity_and_keeps_nothing(tmp_path, how):
    """What they change need not show in any probe, so nothing that was kept may stand for it."""
    clip = sdxl()
    for p in clip.cond_stage_model.parameters():
        p.nan_to_num_(0.0)
    prompt = states.text_encoding.locate(clip, "a photo of a {concept}", "cat")
    plain = states.TextStateCache(clip, tmp_path).get([prompt])
    ALTERED[how](clip)
    assert identity(clip) is None and identities.clip_altered(clip)
    if how == "injected":
        return  # they cannot be put in place here
    found = states.TextStateCache(clip, tmp_path)
    again = found.get([prompt])
    assert found.folder is None and found.encoded == 1
    same = torch.equal(again[prompt.text], plain[prompt.text])
    assert same == (how not in ("hooked", "forwarded"))


def test_what_is_no_clip_of_comfyui_is_not_altered():
    assert not any(map(identities.clip_altered, (tiny.Clip(), None, SimpleNamespace(), sdxl())))


def test_states_stand_for_an_encoder_without_identity():
    said = {text: torch.full((77, 4), float(i)) for i, text in enumerate(states.PROBES)}
    other = {**said, states.PROBES[0]: said[states.PROBES[0]] + 0.01}
    name = states.fingerprint(None, said)
    assert name == states.fingerprint(None, dict(said)) != states.fingerprint(None, other)


def test_kept_states_are_found_again_by_another_driver(tmp_path, monkeypatch):
    """The same encoder, whose arithmetic differs in the third decimal, as between devices."""
    rows = {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 32)}
    save_file(rows, tmp_path / "mine.safetensors")
    clip = sdxl(embeddings=str(tmp_path))
    for encoder in ("clip_l", "clip_g"):  # the tokenizer is that of the real widths
        getattr(clip.tokenizer, encoder).embedding_size = 32
    for p in clip.cond_stage_model.parameters():
        p.nan_to_num_(0.0)
    tmp_path = tmp_path / "states"
    prompt = states.text_encoding.locate(clip, "a photo of a {concept}", "cat")
    states.TextStateCache(clip, tmp_path).get([prompt])
    real = states.text_encoding.encode
    monkeypatch.setattr(
        states.text_encoding,
        "encode",
        lambda *args: {text: state + 1e-3 for text, state in real(*args).items()},
    )
    again = states.TextStateCache(clip, tmp_path)
    again.get([prompt])
    assert again.encoded == 0


def test_a_prompt_with_an_embedding_is_not_kept(tmp_path):
    rows = {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 32)}
    save_file(rows, tmp_path / "mine.safetensors")
    clip = sdxl(embeddings=str(tmp_path))
    for encoder in ("clip_l", "clip_g"):  # the tokenizer is that of the real widths
        getattr(clip.tokenizer, encoder).embedding_size = 32
    for p in clip.cond_stage_model.parameters():
        p.nan_to_num_(0.0)
    tmp_path = tmp_path / "states"
    prompt = states.text_encoding.locate(clip, "{concept} in embedding:mine", "cat")
    states.TextStateCache(clip, tmp_path).get([prompt])
    again = states.TextStateCache(clip, tmp_path)
    again.get([prompt])
    assert again.encoded == 1 and not list(tmp_path.rglob("*.safetensors"))


def test_reading_the_weights_is_quick(loaded):
    clip = loaded[1]
    identity(clip)
    start = time.perf_counter()
    identity(clip)
    assert time.perf_counter() - start < 2  # 0.02 s alone on one core; this machine may be busy
