"""The test worlds: what they draw, what they call it, and the files their models ship in."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.train.model import comfy_cpu
from testbed.worlds import captions, catalogue, checkpoint, glyphs, rounding, transformers
from testbed.worlds.judge import drawn_batch, seen, style_names

EVERY = pytest.mark.parametrize("world", catalogue.WORLDS.values(), ids=catalogue.WORLDS)
TRAINED = pytest.mark.parametrize("world", catalogue.MODELS.values(), ids=catalogue.MODELS)
ONE_LEVEL = ("sprites", "glyphs")  # whose UNets have the same shapes
# Of the sprite world before there was a second one: what was measured on it holds for these only.
PICTURES = "b833d81ee8f99a1ef570024d171e408d60496d3d27a68b4a9bc6730767324266"
CAPTIONS = "2d3c250af0c71250d4dc93b0f0f27acaae954800b6fbbb466d3558b85a4eb15f"
FILE = "afc85dca9ce2b36cf84c6aa320aa0e2f58335c222ade0b8a392af7cbd3df2aa6"


def apart(a, b):
    """Pixels in which two bitmaps differ, whichever way the second is turned."""
    return min((a ^ b).sum(), (a ^ b[:, ::-1]).sum())


def test_the_sprite_world_is_what_it_was():
    world, rng, h = catalogue.get("sprites"), np.random.default_rng(20260111), hashlib.sha256()
    for name in world.bitmaps:
        for style in (None, *world.styles):
            for explicit in (False, True):
                h.update(
                    (world.draw(name, rng, style, explicit) * 255)
                    .round()
                    .astype(np.uint8)
                    .tobytes()
                )
    assert h.hexdigest() == PICTURES
    groups = {k: [tuple(c) for c in cs] for k, cs in world.captions().items()}
    assert hashlib.sha256(repr(groups).encode()).hexdigest() == CAPTIONS
    assert world.captions() == captions.training_captions()
    assert hashlib.sha256(world.file.read_bytes()).hexdigest() == FILE


@EVERY
def test_every_object_has_a_look_alike_of_its_own_kind(world):
    for name in world.objects:
        twin = world.twin[name]
        assert (
            twin != name
            and world.twin[twin] == name
            and world.superclass[twin] == world.superclass[name]
        )
    assert set(world.superclasses) == set(world.superclass.values())
    assert (
        len({frozenset((n, world.twin[n])) for n in world.order})
        == len(world.order)
        == len(world.objects) // 2
    )


def test_look_alikes_differ_little_and_others_much():
    world = catalogue.get("glyphs")
    for i, a in enumerate(world.bitmaps):
        for b in list(world.bitmaps)[:i]:
            differ = apart(world.bitmaps[a], world.bitmaps[b])
            assert 10 <= differ <= 14 if world.twin.get(a) == b else differ >= glyphs.APART, (a, b)
    for a, b in world.twin.items():
        shown = [world.draw(n, np.random.default_rng(0), explicit=True) for n in (a, b)]
        assert (shown[0] != shown[1]).any(-1).sum() >= 6, (
            f"the stripe hides what tells {a} from {b}"
        )


def test_no_name_is_in_sprites_and_in_glyphs():
    """The emoji share words with both on purpose: they are the words that artists use."""
    both = (catalogue.SPRITES, catalogue.GLYPHS)
    words = [{*w.labels, *w.styles, w.explicit_word} for w in both]
    assert not words[0] & words[1]
    assert not {p for w in words[0] for p in w.split()} & {p for w in words[1] for p in w.split()}


@EVERY
def test_drawing_is_seeded_and_in_range(world):
    for style in (None, *world.styles):
        first, again = (
            world.draw(world.objects[0], np.random.default_rng(3), style, True) for _ in range(2)
        )
        assert np.array_equal(first, again) and first.dtype == np.float32
        assert first.shape == (world.size, world.size, 3) and 0 <= first.min() and first.max() <= 1
    assert world.draw_pair(*world.objects[:2], np.random.default_rng(3)).shape == (
        world.size,
        2 * world.size,
        3,
    )


def test_random_figures_are_lighter_than_their_grounds():
    """Otherwise the mean picture of every object is the same grey, and words change nothing."""
    world, rng = catalogue.get("glyphs"), np.random.default_rng(0)
    bits = world.bitmaps["dog"]
    means = np.array(
        [(p[bits].mean(), p[~bits].mean()) for p in (world.draw("dog", rng) for _ in range(200))]
    ).mean(0)
    assert means[0] > means[1] + 0.3
    for figure, *grounds, _ in glyphs.STYLES.values():
        assert all(sum(figure) > sum(ground) for ground in grounds)


@pytest.mark.host
@EVERY
def test_captions_say_what_is_drawn_and_tokenise(world):
    comfy_cpu()
    import comfy.clip_model
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(
        str(Path(comfy.clip_model.__file__).parent / "sd1_tokenizer")
    )
    groups = world.captions()
    texts = [c.text for cs in groups.values() for c in cs]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert max(lengths) < 77
    for c in groups["explicit"]:
        assert c.explicit and world.explicit_word in c.text and c.name in c.text
    for c in groups["styled"]:
        assert c.style in c.text and c.name in c.text
    for c in groups["pair"]:
        assert c.text.index(c.name) < c.text.rindex(c.second)
    assert world.explicit("owl", "{x}").text in (
        "a naked owl",
        "a nude owl",
        "an explicit owl",
    )


@TRAINED
def test_the_judge_reads_drawn_pictures(world):
    judge = checkpoint.load_judge(world.file)
    assert judge.world is (catalogue.EMOJI if world.objects == catalogue.EMOJI.objects else world)
    x, *truth = drawn_batch(np.random.default_rng(99), 2000, noise=0.05, world=world)
    real = truth[0] != seen(world).index("nothing")
    with torch.inference_mode():
        for found, true in zip(judge(x), truth, strict=True):
            assert (found.argmax(1) == true)[real].float().mean() >= 0.98
    assert style_names(world)[0] is None


@TRAINED
def test_the_compact_file_is_small_and_reads_back(world):
    assert world.file.stat().st_size <= 27e6
    unet = checkpoint.read_compact(world.file)
    assert {w.dtype for w in unet.values()} == {torch.float16}
    assert all(w.isfinite().all() for w in unet.values())
    if world.name in ONE_LEVEL:
        assert {k: w.shape for k, w in unet.items()} == {
            k: w.shape for k, w in checkpoint.read_compact().items()
        }


def test_all_models_and_encoders_together_are_small():
    shipped = (path.stat().st_size for path in catalogue.HERE.rglob("*.safetensors"))
    assert sum(shipped) <= 101e6


def test_nibbles_read_back_within_half_a_step():
    d = torch.randn(5, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    packed, scale = rounding.nibbles(d)
    assert (
        packed.dtype == torch.uint8
        and packed.shape == (5, rounding.GROUP // 2)
        and scale.shape == (5, 1)
    )
    back = rounding.from_nibbles(packed, scale, d.shape)
    inside = d.flatten(1).abs() <= 7.5 * scale.float()  # what is beyond was cut off
    assert inside.float().mean() > 0.95
    assert ((back - d).flatten(1).abs() <= 0.51 * scale.float())[inside].all()


@pytest.mark.host
@TRAINED
def test_the_stock_loader_tells_its_family(world):
    comfy_cpu()
    import comfy.model_detection
    import comfy.supported_models

    text = checkpoint.text_format(world.file)
    state = checkpoint.checkpoint_state_dict(checkpoint.read_compact(world.file), text=text)
    config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
    of = "Segmind_Vega" if text == "sdxl" else "SD15"
    if text in transformers.FORMATS:
        of = transformers.FORMATS[text].config
    assert type(config) is getattr(comfy.supported_models, of)


def test_an_unknown_world_is_said_to_be_unknown():
    with pytest.raises(KeyError, match="sprites, glyphs, emoji, emoji_xl"):
        catalogue.get("photos")
