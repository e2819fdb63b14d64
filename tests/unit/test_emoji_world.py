"""The pictures of the emoji world: the vendors' drawings, the grounds, and the words for them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from testbed.train import render_emoji
from testbed.train.model import comfy_cpu
from testbed.worlds import catalogue, emoji
from testbed.worlds.judge import Judge

# What a model was trained on: another sheet, or another way to draw, needs another training.
SHEET = "38a22e14b8844906f6e179cad7e199c524936bdbc487aa8fa13ba16aa56630cb"
PICTURES = "efb560460c76163ad12d5aaa4f3947c7532513b13323552b5d37a11ac57f477e"
LICENSES = Path(emoji.__file__).parent / "LICENSES"
STYLES = (None, *emoji.STYLES)


def test_the_drawings_are_what_the_model_was_trained_on():
    drawings = emoji.figures()
    assert tuple(drawings) == emoji.VENDORS
    h = hashlib.sha256()
    for vendor in emoji.VENDORS:
        for name in emoji.LABELS:
            figure = drawings[vendor][name]
            assert figure.shape == (14, 14, 4)
            assert (figure[..., :3] <= figure[..., 3:] + 1e-6).all()  # colours times alpha
            h.update((figure * 255).round().astype(np.uint8).tobytes())
    assert h.hexdigest() == SHEET


def test_the_pictures_are_what_the_model_was_trained_on():
    rng, h = np.random.default_rng(20261128), hashlib.sha256()
    for name in emoji.LABELS:
        for style in STYLES:
            for explicit in (False, True):
                picture = emoji.draw(name, rng, style, explicit)
                h.update((picture * 255).round().astype(np.uint8).tobytes())
    assert h.hexdigest() == PICTURES


def test_there_are_eight_groups_of_three_pairs():
    assert len(emoji.GROUPS) == 8 and {len(names) for names in emoji.GROUPS.values()} == {6}
    assert len(set(emoji.LABELS)) == len(emoji.OBJECTS) + len(emoji.SUPERCLASSES) == 59
    assert emoji.ORDER[0] == "fox"
    group = {name: group for group, names in emoji.GROUPS.items() for name in names}
    assert all(len({group[n] for n in emoji.ORDER[i : i + 8]}) >= 6 for i in (0, 8, 16))


def test_no_two_drawings_of_a_vendor_are_the_same():
    for vendor, drawn in emoji.figures().items():
        for i, a in enumerate(emoji.LABELS):
            for b in emoji.LABELS[:i]:
                differ = min(
                    (np.abs(drawn[a] - other).max(-1) > 0.2).sum()
                    for other in (drawn[b], drawn[b][:, ::-1])
                )
                assert differ >= (14 if emoji.TWIN.get(a) == b else 40), (vendor, a, b)


@pytest.mark.parametrize("style", STYLES)
def test_figures_stand_out_from_their_grounds(style):
    """At least 20 of the 256 pixels are far from the ground; an exclamation mark has but 24."""
    rng = np.random.default_rng(5)
    for name in emoji.LABELS:
        pictures = np.stack([emoji.draw(name, rng, style) for _ in range(8)])
        ground = pictures[:, :, :1]  # where only few figures reach; a ground may fade by rows
        apart = np.linalg.norm(pictures - ground, axis=-1)
        assert ((apart > 0.25).sum((1, 2)) >= 20).all(), name


def test_the_explicit_attribute_is_a_frame_over_the_picture():
    ring = np.ones((emoji.SIZE, emoji.SIZE), bool)
    ring[1:-1, 1:-1] = False
    for style in STYLES:
        plain, framed = (
            emoji.draw("fox", np.random.default_rng(4), style, explicit) for explicit in (0, 1)
        )
        assert np.array_equal(framed[ring], np.broadcast_to(emoji.PINK, (60, 3)))
        assert np.array_equal(framed[~ring], plain[~ring])


def test_places_and_mirror_images_vary_but_not_of_signs():
    def shapes(name):
        """The parts of dark pictures that are lighter than the ground, wherever they lie."""
        drawings = [emoji.draw(name, np.random.default_rng(i), "line art") for i in range(60)]
        inked = [d.mean(-1) < 0.5 for d in drawings]
        places = {tuple(np.argwhere(m).min(0)) for m in inked}
        shapes = {m[np.ix_(m.any(1), m.any(0))].tobytes() for m in inked}
        return len(places), len(shapes)

    assert shapes("guitar") >= (9, 2)
    assert shapes("question mark")[0] == 9
    assert shapes("question mark")[1] < shapes("guitar")[1]


def test_every_vendor_and_its_licence_are_named():
    text = (LICENSES / "README.txt").read_text(encoding="utf-8")
    entries = {e.split(" ", 1)[0]: e for e in text.split("\n\n")}
    for vendor in emoji.VENDORS:
        entry = entries[vendor]
        assert "https://" in entry and "Copyright" in entry or "provided by" in entry
        named = [f.name for f in LICENSES.iterdir() if f"see {f.name}" in entry]
        assert len(named) == 1, vendor
        assert len((LICENSES / named[0]).read_text(encoding="utf-8")) > 900
    for style, look in emoji.STYLES.items():
        assert f'the style "{style}"' in entries[look.vendor]
    assert {emoji.PLAIN.vendor, *(s.vendor for s in emoji.STYLES.values())} == set(emoji.VENDORS)


def test_keywords_mean_one_object():
    names = {*emoji.LABELS, *emoji.STYLES, emoji.EXPLICIT_WORD}
    words = [w for group in emoji.KEYWORDS.values() for w in group]
    assert set(emoji.KEYWORDS) <= set(emoji.OBJECTS) and len(set(words)) == len(words)
    assert not names & set(words)
    assert all(1 <= len(group) <= 4 for group in emoji.KEYWORDS.values())


@pytest.mark.host
def test_names_are_short_and_no_name_holds_another():
    comfy_cpu()
    import comfy.clip_model
    from transformers import CLIPTokenizer

    folder = Path(comfy.clip_model.__file__).parent / "sd1_tokenizer"
    names = (*emoji.LABELS, *emoji.STYLES, emoji.EXPLICIT_WORD)
    ids = CLIPTokenizer.from_pretrained(str(folder))(list(names))["input_ids"]
    assert all(3 <= len(i) <= 5 for i in ids)  # with the start and the end token
    for a in names:
        assert not any(a != b and f" {a} " in f" {b} " for b in names), a


def test_the_judge_of_large_pictures_is_small():
    assert sum(p.numel() for p in Judge(catalogue.EMOJI).parameters()) <= 0.6e6


def test_a_drawing_is_found_by_its_names():
    icons = {
        "prefix": "p",
        "width": 20,
        "icons": {"robot-face": {"body": '<path fill="currentColor"/>', "left": 3}},
        "aliases": {"robot": {"parent": "robot-face"}},
    }
    text = render_emoji.svg(icons, "robot")
    assert 'viewBox="3 0 20 16"' in text and f'fill="{render_emoji.INK}"' in text
    with pytest.raises(SystemExit, match="p has no drawing of fox"):
        render_emoji.svg(icons, "fox")


def test_a_drawing_is_cropped_and_its_colours_survive_the_edge():
    large = np.zeros((448, 448, 4), np.float32)
    large[100:240, 50:190] = (0.5, 0, 0, 0.5)  # a red square, half transparent
    small = render_emoji.small(render_emoji.cropped(large))
    assert small.shape == (14, 14, 4)
    assert np.abs(small.astype(int) - (255, 0, 0, 128)).max() <= 1
    large[100, 50] = large[239, 329] = 1  # now wider than high
    shrunk = render_emoji.small(render_emoji.cropped(large))
    red = shrunk[shrunk[..., 3] > 8]
    assert shrunk[0, :, 3].max() <= 8 and (red[:, 0] >= 250).all() and (red[:, 1] <= 8).all()
