"""The emoji world's text encoders in ComfyUI's own classes: wide and narrow say the same."""

import functools
import json
from pathlib import Path

import pytest
import torch

from testbed import pack
from testbed.worlds import captions, evaluate, meaning
from testbed.worlds.meaning import clip_tokenizer

pack.load()

TEXTS = ("a photo of a fox", "a fox and a house, by van gogh", "")
CONFIGS = {"l": "sd1_clip_config.json", "g": "clip_config_bigg.json"}
# CLIP-G has 32 layers, 28 of them empty. Six do for a test, and take a sixth of the memory.
FEW = {"l": meaning.KINDS["l"], "g": meaning.KINDS["g"]._replace(layers=6, active=(0, 2, 3, 5))}
LEFT = 2e-3  # relative, of what the checkpoint's 16 bits take away


def shipped_parts(*values):
    """A parameter for each text encoder, skipped where its file is not there yet."""
    return [
        pytest.param(
            part,
            *values,
            marks=pytest.mark.skipif(
                not meaning.file_of(part).exists(),
                reason=f"{meaning.file_of(part).name} is not there: it is not trained yet",
            ),
        )
        for part in FEW
    ]


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    """The file of the first encoder, and beside it that of the other, with random weights."""
    path = tmp_path_factory.mktemp("text") / "text.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        table = torch.randn(meaning.START, meaning.COMPONENTS)
        for part, kind in FEW.items():
            meaning.write(part, meaning.Narrow(kind.quick).state_dict(), table, path)
    return path


def config(part):
    import comfy.clip_model

    folder = Path(comfy.clip_model.__file__).parent
    return json.loads((folder / CONFIGS[part]).read_text()) | {
        "num_hidden_layers": FEW[part].layers
    }


def rows(texts):
    return [clip_tokenizer()(text)["input_ids"] for text in texts]


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def few_layers(monkeypatch):
    monkeypatch.setattr(meaning, "KINDS", FEW)


@pytest.mark.parametrize("part, ships", [*((part, False) for part in FEW), *shipped_parts(True)])
def test_the_wide_encoder_says_what_the_narrow_one_says(part, ships, random_file, few_layers):
    import comfy.clip_model
    import comfy.ops

    kind, file = FEW[part], meaning.FILE if ships else random_file
    wide = comfy.clip_model.CLIPTextModel_(
        config(part), torch.float32, "cpu", comfy.ops.disable_weight_init
    )
    sd = {k: w.half().float() for k, w in meaning.state_dict(part, path=file).items()}
    wide.load_state_dict(sd)  # strict
    ids = torch.full((len(TEXTS), meaning.POSITIONS), kind.pad)
    lengths = [len(of) for of in rows(TEXTS)]
    for row, of in zip(ids, rows(TEXTS), strict=True):
        row[: len(of)] = torch.tensor(of)
    last, before, pooled = wide(
        embeds=wide.embeddings.token_embedding(ids),
        num_tokens=lengths,
        intermediate_output=-2,
        final_layer_norm_intermediate=False,
    )
    narrow, widening = meaning.NarrowEncoder(part, file), meaning.widening(kind)
    states, ends = narrow.read(rows(TEXTS))
    assert apart(states @ widening.T, last) < LEFT
    assert apart(narrow.read(rows(TEXTS), layer=-2)[0] @ widening.T, before) < LEFT
    assert apart(ends @ widening.T, pooled) < LEFT
    assert apart(states[:1] @ widening.T, last[1:2]) > 10 * LEFT  # another text is another state


def test_the_names_of_an_sdxl_checkpoint_fit_its_text_encoders(random_file, few_layers):
    """What ComfyUI makes of both encoders' names fills its two models, with nothing left over."""
    import comfy.clip_model
    import comfy.ops
    import comfy.supported_models
    import comfy.utils

    sd = meaning.state_dict(
        "l", "conditioner.embedders.0.transformer.text_model.", path=random_file
    ) | meaning.open_clip_state_dict("conditioner.embedders.1.model.", path=random_file)
    found = comfy.supported_models.SDXL({}).process_clip_state_dict(sd)
    widening = meaning.widening(FEW["g"])
    for part in FEW:
        model = comfy.clip_model.CLIPTextModel(
            config(part), torch.float32, "cpu", comfy.ops.disable_weight_init
        )
        own = {
            k.removeprefix(f"clip_{part}.transformer."): found.pop(k)
            for k in list(found)
            if k.startswith(f"clip_{part}.transformer.")
        }
        missing, unexpected = model.load_state_dict(own, strict=False)
        # SD1.5 and SDXL have no projection of CLIP-L; ComfyUI fills it in itself.
        assert not unexpected and set(missing) <= {"text_projection.weight"}, part
        assert not missing or part == "l"
    assert set(found) == {"clip_g.logit_scale"}
    ids = rows(TEXTS[:1])
    embeds = model.text_model.embeddings.token_embedding(torch.tensor(ids))
    padded = torch.nn.functional.pad(embeds, (0, 0, 0, meaning.POSITIONS - embeds.shape[1]))
    projected = model(embeds=padded, num_tokens=[len(ids[0])])[2]
    assert (
        apart(meaning.NarrowEncoder("g", random_file).read(ids)[1] @ widening.T, projected) < LEFT
    )


@functools.cache
def shipped(part):
    return meaning.NarrowEncoder(part)


def likeness(part, one, other):
    """Centred cosine of two words at the end token; the centre is of unlike words."""
    every = [one, other, "mountain", "spoon", "happiness", "river", "computer", "shirt", "king"]
    ids = rows([f"a photo of {captions.a(word)}" for word in every])
    states = shipped(part).read(ids)[1]
    unit = torch.nn.functional.normalize(states - states[2:].mean(0), dim=1)
    return float(unit[0] @ unit[1])


@pytest.mark.parametrize("part", shipped_parts())
def test_words_of_one_meaning_are_near(part):
    for word, same, other in (
        ("automobile", "car", "fox"),
        ("doughnut", "donut", "castle"),
        ("kitten", "cat", "guitar"),
        ("soccer", "football", "pear"),
    ):
        assert likeness(part, word, same) > likeness(part, word, other) + 0.2, (word, same)


@pytest.mark.parametrize("part", shipped_parts()[:1])
def test_the_pack_reads_the_shipped_encoder_as_it_is(part):
    """The pack's own fast reading of a CLIP gives ComfyUI's states of this one too."""
    import comfy.sd

    encoding = pack.module("unlearn.host.text_encoding")
    clip = comfy.sd.load_text_encoder_state_dicts(
        [{k: w.half() for k, w in meaning.state_dict(part, "text_model.").items()}],
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )
    states = encoding.encode(clip, TEXTS)
    wanted = shipped(part).read(rows(TEXTS))[0] @ meaning.widening(meaning.KINDS[part]).T
    for text, state in zip(TEXTS, wanted, strict=True):
        assert apart(states[text], state) < LEFT


@pytest.mark.parametrize("part", shipped_parts()[:1])
@pytest.mark.parametrize("skip", [1, 2])
def test_leaving_out_empty_layers_changes_no_state(part, skip):
    import comfy.sd

    clip = comfy.sd.load_text_encoder_state_dicts(
        [{k: w.half() for k, w in meaning.state_dict(part, "text_model.").items()}],
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
    )
    clip.clip_layer(-skip)
    before = [clip.encode_from_tokens(clip.tokenize(text)) for text in TEXTS]
    evaluate.leave_out_empty_layers(clip)
    layers = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
    assert len(layers) == meaning.DEPTH + 1  # the one before the last is empty, and stays
    for text, states in zip(TEXTS, before, strict=True):
        assert torch.equal(clip.encode_from_tokens(clip.tokenize(text)), states)
