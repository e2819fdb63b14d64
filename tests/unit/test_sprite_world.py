"""The sprite world's pictures and files."""

import numpy as np
import torch

from testbed.worlds import captions, checkpoint, sprites
from testbed.worlds.judge import NOTHING, drawn_batch


def test_sprites_can_be_told_apart():
    names = list(sprites.BITMAPS)
    for i, a in enumerate(names):
        for b in names[:i]:
            apart = min(
                (sprites.BITMAPS[a] ^ other).sum()
                for other in (sprites.BITMAPS[b], sprites.BITMAPS[b][:, ::-1])
            )
            assert apart >= 8, (a, b)


def test_there_are_enough_of_everything():
    assert (
        len(sprites.OBJECTS) >= 24 and len(sprites.SUPERCLASSES) == 6 and len(sprites.STYLES) == 6
    )
    assert set(sprites.TWIN) == set(sprites.OBJECTS)
    assert all(sprites.SUPERCLASS[a] == sprites.SUPERCLASS[b] for a, b in sprites.TWIN.items())


def test_drawing_is_seeded_and_in_range():
    first, again = (sprites.draw("cat", np.random.default_rng(3), "klimt", True) for _ in range(2))
    assert np.array_equal(first, again) and first.dtype == np.float32
    assert first.shape == (8, 8, 3) and 0 <= first.min() and first.max() <= 1


def test_captions_say_what_is_drawn():
    assert captions.plain("axe", "a photo of {a}").text == "a photo of an axe"
    assert captions.explicit("axe", "{x}").text == "a naked axe"
    groups = captions.training_captions()
    assert all(c.name for group, cs in groups.items() for c in cs if group != "empty")


def test_judge_reads_drawn_sprites():
    judge = checkpoint.load_judge()
    x, label, style, explicit = drawn_batch(np.random.default_rng(99), 3000, noise=0.05)
    real = label != NOTHING
    with torch.inference_mode():
        seen = [o.argmax(1) for o in judge(x)]
    assert (seen[0] == label)[real].float().mean() >= 0.99
    assert (seen[1] == style)[real].float().mean() >= 0.99
    assert (seen[2] == explicit)[real].float().mean() >= 0.99


def test_rows_survive_quantisation():
    w = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    q, scale = checkpoint.quantise(w)
    assert q.dtype == torch.int8
    back = q.float() * scale.float().view(-1, 1, 1, 1)
    assert ((back - w).flatten(1).abs().amax(1) <= 0.51 * scale.float() + 1e-3).all()


def test_shipped_file_is_small():
    assert checkpoint.SHIPPED.stat().st_size <= 30 * 2**20
